"""Tests of vijax.testing."""
