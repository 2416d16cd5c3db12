"""Fixtures every test may use."""

import os

# One thread per test process: the suite runs in parallel, and threads that fight double its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator: no test depends on global random state."""
    return np.random.default_rng(20261123)
