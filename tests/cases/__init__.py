"""Tests of consilium.cases."""
