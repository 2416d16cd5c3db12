"""Tests of the federation, on arrays of a few elements."""
