"""Tests of consilium.standards."""
