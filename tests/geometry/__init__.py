"""Tests of consilium.geometry."""
