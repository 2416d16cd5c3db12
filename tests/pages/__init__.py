"""Tests of consilium.pages."""
