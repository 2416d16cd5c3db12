"""Tests of consilium.inference."""
