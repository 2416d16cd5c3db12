"""Tests of consilium.cli."""
