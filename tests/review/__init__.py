"""Tests of consilium.review."""
