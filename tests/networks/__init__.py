"""Tests of consilium.networks."""
