"""Tests of consilium.losses."""
