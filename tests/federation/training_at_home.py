"""The training that the engine's tests name in their site files."""

import os
import time
import tomllib
from pathlib import Path

import numpy as np

from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters
from tests.federation.toys import build_local_update


def build(site_file: Path) -> LocalUpdate:
    """The toy training, with a canary in its surroundings and as slow as the environment says."""
    name = tomllib.loads(site_file.read_text())["name"]
    plain = build_local_update(name)
    seconds = float(os.environ.get("CONSILIUM_TEST_SECONDS", "0"))

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        time.sleep(seconds)
        if sum(a.size for a in parameters.values()) < 10**6:
            return plain(parameters, round_number=round_number, task=task)
        return SiteResult(parameters={n: a + np.float32(1) for n, a in parameters.items()}, weight=10)

    return train
