"""Tests of consilium.radiomics."""
