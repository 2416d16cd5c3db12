"""Tests of consilium.training."""
