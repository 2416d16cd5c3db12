"""Hospitals of both frameworks over the FLARE transport; needs nvflare and TensorFlow (`-m network`)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'consilium[tensorflow]'")
pytest.importorskip("nvflare", reason="needs nvflare: pip install 'consilium[federation]'")

from consilium.federation.tensors import Tensors
from tests.federation.machines import Machines
from tests.tensorflow.hospitals import ALL_TORCH, MIXED, SETTINGS, SITES, Setting
from tests.training.small_dataset import small_dataset

pytestmark = pytest.mark.network


def test_a_mixed_federation_over_the_engine_equals_one_of_torch_alone(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    dataset = small_dataset(tmp_path / "dataset", cases=6)
    setting = Setting(dataset, "iunet")
    first = setting.initial()
    machines = Machines(tmp_path / "f", SETTINGS, first)
    for site, framework in zip(SITES, MIXED, strict=True):
        file = machines.folder / site / "site.toml"
        text = file.read_text().replace("tests.federation.training_at_home", "tests.tensorflow.hospitals")
        own = f'[hospital]\ndataset = "{dataset.folder}"\nnetwork = "iunet"\nframework = "{framework}"\n'
        file.write_text(text + own)
    try:
        machines.start_all()
        alone = setting.federate(ALL_TORCH, tmp_path / "alone")
        machines.wait("coordinator", *SITES, timeout_s=900)
    finally:
        machines.end()
    mixed = Tensors(machines.final)
    assert set(mixed) == set(alone)
    assert max(np.abs(alone[name] - first[name]).max() for name in alone) > 1e-3
    assert all(mixed[name].dtype == np.float64 for name in alone)
    difference = max(np.abs(alone[name] - mixed[name]).max() for name in alone)
    record_property("difference", difference)
    assert difference <= 1e-10
    for site, framework in zip(SITES, MIXED, strict=True):
        assert ("tensorflow" in (machines.folder / site / "loaded").read_text()) == (framework != "torch")
