"""Tests of vijax.models."""
