"""Tests of what every objective does."""
