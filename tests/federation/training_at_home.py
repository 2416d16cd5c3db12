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
    """The toy training, as slow as the environment says; to a large model a number of the site's is added.

    It reads the patients' files beside the site's file, and where one is named ``unreadable`` it fails the
    first time, with an error that names the patient. It waits as long as a file ``hold`` is there.
    """
    name = tomllib.loads(site_file.read_text())["name"]
    plain = build_local_update(name)
    step = np.float32(1 + name.encode()[-1] % 7)
    seconds = float(os.environ.get("CONSILIUM_TEST_SECONDS", "0"))

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        time.sleep(seconds)
        while (site_file.parent / "hold").exists():
            time.sleep(0.05)
        for path in sorted((site_file.parent / "patients").glob("*")):
            text = path.read_text()
            if "unreadable" in path.name:
                path.unlink()
                raise ValueError(f"{path}: the record of {text} cannot be read")
        if sum(a.size for a in parameters.values()) < 10**5:
            return plain(parameters, round_number=round_number, task=task)
        return SiteResult(parameters={n: a + step for n, a in parameters.items()}, weight=10)

    return train
