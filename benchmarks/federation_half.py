"""What does half precision on the wire cost in Dice?

Three phantom hospitals with different scanners, and patients that none of them has seen, train a small
U-Net together, once with models and changes as 32-bit numbers and once as 16-bit ones; everything else,
seeds included, is the same. ``ours`` and ``ratio`` are the largest difference of the mean Dice (32-bit less
16-bit) over the seeds; the limit is 0.01. The bytes of an update are printed for both.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import median, report
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.messages import wire_schema
from consilium.federation.parameters import Parameters, Schema
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.losses.multiscale import structure_loss
from consilium.networks.build import build_network
from consilium.networks.config import NetworkConfig
from consilium.phantoms.pelvis import HOSPITALS, Hospital, PhantomPatient, build_cohort

STRUCTURES = ("Bladder", "FemoralHead_L", "FemoralHead_R")
NETWORK = NetworkConfig(kind="unet3d", out_channels=len(STRUCTURES), channels=(8, 16, 32))
PATIENTS, UNSEEN = 4, 3


def coarse(hospital: Hospital) -> Hospital:
    """The hospital's scanner on a grid that a small network gets through quickly."""
    return replace(hospital, shape_zyx=(20, 48, 48), spacing_zyx_mm=(6.0, 7.5, 7.5))


def prepare(patient: PhantomPatient) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, 1, Z, Y, X) and masks (1, S, Z, Y, X)."""
    grid = patient.image.grid
    image = np.clip(patient.image.array.astype(np.float32) / 200, -2, 2)
    (nz, ny, nx), (sz, sy, sx) = grid.shape_zyx, grid.spacing_zyx_mm
    ox, oy, oz = grid.affine.origin_lps_mm
    z, y, x = oz + sz * np.arange(nz), oy + sy * np.arange(ny), ox + sx * np.arange(nx)
    at = x[None, None, :], y[None, :, None], z[:, None, None]
    masks = np.stack([patient.organs[name].depth_mm(*at) > 0 for name in STRUCTURES])
    return torch.from_numpy(image)[None, None], torch.from_numpy(masks.astype(np.float32))[None]


def load(network: torch.nn.Module, parameters: Parameters) -> None:
    """Put federated parameters into the network."""
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in parameters.items()})


def unload(network: torch.nn.Module) -> Parameters:
    """The network's parameters for the federation."""
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def build_training(cohort: list[PhantomPatient], steps: int) -> LocalUpdate:
    """A hospital's training: some steps of Adam, their order from the task's seed."""
    cases = [prepare(patient) for patient in cohort]
    known = torch.ones(1, len(STRUCTURES), dtype=torch.bool)

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        network = build_network(NETWORK, seed=0)
        load(network, parameters)
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        rng = np.random.default_rng(task.seed)
        for index in rng.integers(len(cases), size=steps):
            image, masks = cases[index]
            optimiser.zero_grad()
            logits = network(image)
            logits = logits[0] if isinstance(logits, list | tuple) else logits
            structure_loss(logits, masks, known).backward()
            optimiser.step()
        return SiteResult(parameters=unload(network), weight=len(cases))

    return train


def score(parameters: Parameters, unseen: list[PhantomPatient]) -> float:
    """Mean Dice over patients and structures."""
    network = build_network(NETWORK, seed=0)
    load(network, parameters)
    network.eval()
    found = []
    for patient in unseen:
        image, masks = prepare(patient)
        with torch.no_grad():
            logits = network(image)
        logits = logits[0] if isinstance(logits, list | tuple) else logits
        prediction = (logits[0] > 0).float()
        for one, other in zip(prediction, masks[0], strict=True):
            found.append(float(2 * (one * other).sum() / (one.sum() + other.sum())))
    return float(np.mean(found))


def run(seed: int, rounds: int, steps: int) -> tuple[float, float]:
    """Dice with 32 and with 16 bits."""
    hospitals = [coarse(hospital) for hospital in HOSPITALS]
    cohorts = {h.name: build_cohort(h, PATIENTS, seed=seed) for h in hospitals[:3]}
    unseen = [p for h in hospitals for p in build_cohort(h, UNSEEN, seed=1000 + seed)]
    updates = {name: build_training(cohort, steps) for name, cohort in cohorts.items()}
    initial = unload(build_network(NETWORK, seed=seed))
    sites = tuple(SiteEnrolment(name=name, cases=PATIENTS) for name in cohorts)
    settings = FederationSettings(name="half", rounds=rounds, sites=sites, quorum=3, seed=seed)
    dice = []
    for half in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            final = simulate(replace(settings, half_precision=half), initial, updates, Path(folder))
        dice.append(score(final, unseen))
        wire = wire_schema(Schema.of(initial), control=False, half_precision=half)
        own = sum(spec.nbytes for _, spec in wire.tensors)
        bits = 16 if half else 32
        print(
            f"seed {seed}, {bits} bits: Dice {dice[-1]:.4f}; an update's parameters {own} bytes", flush=True
        )
    return dice[0], dice[1]


def main() -> None:
    """Compare the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds: shows that it runs")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds, steps = (2, 4) if arguments.quick else (10, 20)
    pairs = [run(seed, rounds, steps) for seed in range(1 if arguments.quick else arguments.seeds)]
    losses = [full - half for full, half in pairs]
    print(f"Dice lost by 16 bits: median {median(losses):+.4f}, {min(losses):+.4f} to {max(losses):+.4f}")
    peers = {"32-bit Dice, median": median([full for full, _ in pairs])}
    report("Dice lost by half precision", "Dice", max(losses), peers, limit=0.01, ratio=max(losses))


if __name__ == "__main__":
    main()
