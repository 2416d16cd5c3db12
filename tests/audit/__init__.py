"""Tests of consilium.audit."""
