"""Tests mirror src/consilium; real data is found by `tests.data`."""
