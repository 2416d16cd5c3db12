"""Tests of consilium.metrics."""
