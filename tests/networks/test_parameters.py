"""Canonical parameters: what is listed is what the networks have, and the document names all of it."""

import re
from pathlib import Path

import pytest

from consilium.networks.build import build_network
from consilium.networks.config import NetworkConfig
from consilium.networks.parameters import choose_group, list_parameters

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "parameters.md"
CHANGES = [
    {},
    {"norm": "none"},
    {"dims": 2},
    {"stem": "plain", "heads": 1},
    {"resampling": ((1, 2, 2), (2, 2, 2)), "blocks": (1, 2, 3)},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("kind", ["unet3d", "iunet"])
def test_the_list_is_what_the_network_has(kind: str, changes: dict[str, object]) -> None:
    settings: dict[str, object] = {"channels": (8, 16, 32), "out_channels": 2, "heads": 3, **changes}
    config = NetworkConfig(kind=kind, **settings)  # type: ignore[arg-type]
    network = build_network(config, seed=0)
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert list_parameters(config) == found
    assert list(list_parameters(config)) == [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize("kind", ["unet3d", "iunet"])
def test_the_document_names_every_parameter_with_its_dimensions(kind: str) -> None:
    chapter = DOCUMENT.read_text(encoding="utf-8").partition(f"## `{kind}`")[2].partition("\n## ")[0]
    documented = {}
    for names, shape in re.findall(r"^\| (`[^|]+`) \| \(([^)]+)\) \|", chapter, flags=re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            documented[name] = len(shape.split(","))
    listed = {
        re.sub(r"\.\d+", ".N", re.sub(r"\.\d+", ".S", name, count=1)): len(shape)
        for name, shape in list_parameters(NetworkConfig(kind=kind, heads=2)).items()
    }
    assert documented == listed


def test_groups_of_the_optimiser() -> None:
    assert choose_group("heads.0.weight", 5) == "heads"
    assert choose_group("trunk.resampling.0.weight", 2) == "decayed"
    assert choose_group("encoder.0.0.norm_weight", 1) == "plain"
    assert choose_group("loss.log_variance", 1) == "plain"
