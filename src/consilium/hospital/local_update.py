"""The training that a hospital brings into a federation: its dataset, the agreed plan, no code to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.cases.case import Case
from consilium.cases.dataset import Dataset, open_dataset
from consilium.cases.split import Split, split_cases
from consilium.errors import ConfigurationError, DatasetError, MemoryPlanError
from consilium.federation.federation_file import read_site_file
from consilium.federation.local import LocalTask, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.site import fit_rows
from consilium.hospital.agreement import Agreement, head_map, read_agreement
from consilium.hospital.gradients import GradientRule
from consilium.hospital.sketching import check_plan, known_structures, load_sketches
from consilium.inference.device import available_memory_bytes, choose_device, has_fast_bf16
from consilium.inference.memory import predict_training_bytes
from consilium.inference.model import Model
from consilium.networks.build import build_network
from consilium.tensorflow.installed import check_installed
from consilium.training.data import PreparedCase, prepare_cases
from consilium.training.loop import build_recipe
from consilium.training.site import TORCH, SiteFramework, SiteTask, update_at_site
from consilium.training.validation import DiceScores, compute_dice
from consilium.types import Array, Progress, no_progress

FRAMEWORKS = ("torch", "tensorflow")


@dataclass(frozen=True, kw_only=True)
class HospitalData:
    """The ``[hospital]`` table of a site's file.

    Args:
        dataset: Folder of the dataset; a relative path is seen from the site's file.
        reader: Whose contours; empty: each case's first reader who is not derived.
        hold_out: Share of the patients that never train and judge every model, in [0, 1).
        seed: Decides who is held out.
        framework: ``"torch"`` or ``"tensorflow"``: what trains here; the others need not know.
    """

    dataset: str
    reader: str = ""
    hold_out: float = 0.2
    seed: int = 0
    framework: str = "torch"

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not self.dataset:
            raise ConfigurationError(
                "site file: [hospital] needs dataset, the folder of this hospital's cases."
            )
        if self.framework not in FRAMEWORKS:
            raise ConfigurationError(
                f"site file: framework must be one of {', '.join(FRAMEWORKS)}; got {self.framework!r}."
            )
        if not 0 <= self.hold_out < 1:
            raise ConfigurationError(f"site file: hold_out must be in [0, 1); got {self.hold_out}.")

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> "HospitalData":
        """From the parsed table.

        Raises:
            ConfigurationError: A name is unknown or missing, or a value cannot be.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown or "dataset" not in table:
            what = f"{unknown[0]!r} is not a setting" if unknown else "dataset is missing"
            raise ConfigurationError(f"site file: [hospital]: {what}. Known: {', '.join(known)}.")
        return cls(**table)


class Hospital:
    """One hospital's cases under an agreement; calling it is a `consilium.federation.local.LocalUpdate`.

    The same call with the same task gives the same bits on the same machine: order and changes of the cases
    follow from the agreed seed and the round, everything else from what is received and remembered.

    Args:
        name: As enrolled.
        agreement: What all hospitals agreed on.
        training: Prepared cases that train.
        hold_out: Prepared cases that only judge.
        enrolled: As what: of other structures than these it reports nothing, and before its
            ``heads_only_until`` only the heads are trained. None: of all, and everything.
        framework: That trains.
        progress: Told after each training step.
    """

    def __init__(
        self,
        name: str,
        agreement: Agreement,
        training: Sequence[PreparedCase],
        hold_out: Sequence[PreparedCase],
        *,
        enrolled: SiteEnrolment | None = None,
        framework: SiteFramework = TORCH,
        progress: Progress = no_progress,
    ) -> None:
        if not training:
            raise DatasetError(f"site {name}: needs at least one case to train on; found none.")
        self.name, self.agreement = name, agreement
        self.training, self.hold_out = tuple(training), tuple(hold_out)
        self._progress = progress
        self._heads_only_until = 0 if enrolled is None else enrolled.heads_only_until
        self._reported = frozenset(agreement.plan.structures if enrolled is None else enrolled.structures)
        self._heads = head_map(agreement.plan).tensors
        self._recipe = build_recipe(agreement.plan, agreement.config, self.training)
        self._framework = framework
        self._state = framework.start(agreement.plan, agreement.config, list(agreement.prior))
        self._initial = framework.get_parameters(self._state)
        # Models are scored by torch, whatever trains.
        self._device = choose_device()
        bf16 = agreement.plan.network.bf16 and has_fast_bf16(self._device)
        self._scratch = build_network(agreement.plan.network_for(bf16=bf16), seed=0).to(self._device).eval()

    def __call__(self, parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        """Train one round, as enrolled."""
        heads_only = round_number < self._heads_only_until
        return self.train_round(parameters, round_number=round_number, task=task, heads_only=heads_only)

    def train_round(
        self, parameters: Parameters, *, round_number: int, task: LocalTask, heads_only: bool = False
    ) -> SiteResult:
        """Train one round, everything or the heads alone."""
        agreed, state = self.agreement, self._state
        metrics = self._score_received(parameters, round_number)
        framework = self._framework
        framework.put_parameters(state, self.complete(parameters))
        framework.put_memory(state, self._fit_memory(task.memory))
        state.step = round_number * agreed.steps_per_round
        rule = GradientRule(parameters, task, state.device, only=self._heads if heads_only else ())
        update = update_at_site(
            state,
            {},
            self.training,
            SiteTask(
                plan=agreed.plan,
                recipe=self._recipe,
                config=agreed.config,
                steps=agreed.steps_per_round,
                total_steps=agreed.total_steps,
            ),
            change_gradients=rule,
            framework=framework,
            progress=self._progress,
        )
        return SiteResult(
            parameters=update.parameters,
            weight=update.cases,
            cases_by_structure={
                name: n for name, n in update.cases_by_structure.items() if name in self._reported
            },
            metrics={**metrics, "loss": update.loss},
            control_variates=rule.control_variates(),
            memory=framework.get_memory(state),
        )

    def complete(self, parameters: Mapping[str, Array]) -> Parameters:
        """Every array of the network; what never travelled has its first value where it is not given."""
        return {**self._initial, **parameters}

    def model_of(self, parameters: Mapping[str, Array]) -> Model:
        """The parameters as a model, on this machine; it is overwritten by the next call."""
        weights = {n: torch.from_numpy(np.array(v)) for n, v in self.complete(parameters).items()}
        self._scratch.load_state_dict(weights)
        description = self.agreement.plan.describe_model()
        return Model(description=description, network=self._scratch, device=self._device)

    def score(self, parameters: Mapping[str, Array], *, progress: Progress = no_progress) -> DiceScores:
        """Dice of a model on this hospital's hold-out, whole volumes on the images' own grid."""
        return compute_dice(self.model_of(parameters), self.hold_out, progress=progress)

    def _score_received(self, parameters: Parameters, round_number: int) -> dict[str, float]:
        every = self.agreement.validate_every
        if not every or round_number % every or not self.hold_out or not round_number:
            return {}
        scores = self.score(parameters)
        found = {
            f"dice/{name}": value
            for name, value in scores.per_structure().items()
            if value == value and name in self._reported
        }
        return {**found, "dice": scores.mean} if found else {}

    def _fit_memory(self, memory: Mapping[str, Array]) -> dict[str, Array]:
        """The memory with rows for structures that were added to the model since; they start at zero."""
        shapes = {name: value.shape for name, value in self._initial.items()}
        fitted = {}
        for key, value in memory.items():
            wanted = shapes.get(key.partition("/")[2], value.shape)
            grows = value.ndim and value.shape[1:] == wanted[1:]
            fitted[key] = fit_rows(value, np.zeros(wanted, value.dtype)) if grows else value
        return fitted


def build(site_file: Path) -> Hospital:
    """What ``training = "consilium.hospital.local_update:build"`` in a site's file names."""
    return open_hospital(site_file)


def open_hospital(site_file: Path, *, progress: Progress = no_progress) -> Hospital:
    """The hospital of a site's file, with its cases prepared.

    Raises:
        ConfigurationError: A file is wrong, or the plan does not follow from the sketches.
        DatasetError: The dataset holds nothing that this federation can learn from.
        MemoryPlanError: This machine has too little memory for the agreed plan.
    """
    site, settings, _ = read_site_file(site_file)
    data = HospitalData.read(site.hospital)
    sketches = load_sketches((site_file.parent / site.federation).parent)
    if sketches:
        check_plan(settings, sketches)
    dataset = open_dataset(site_file.parent / data.dataset)
    return prepare_hospital(site.name, settings, dataset, data, progress=progress)


def prepare_hospital(
    name: str,
    settings: FederationSettings,
    dataset: Dataset,
    data: HospitalData,
    *,
    progress: Progress = no_progress,
) -> Hospital:
    """As `open_hospital`, of what is open already."""
    agreement = read_agreement(settings)
    plan, reader = agreement.plan, data.reader or None
    split = split_known(list(dataset.cases()), plan.structures, data)
    enrolled = settings.get_site(name)
    if enrolled is not None and len(split.training) > enrolled.cases:
        raise ConfigurationError(
            f"site {name}: may train on the {enrolled.cases} cases it enrolled with; the dataset has "
            f"{len(split.training)}. Send a new sketch, or take cases out."
        )
    cases = prepare_cases(
        dataset,
        (*split.training, *split.validation),
        plan.structures,
        plan.preprocessing,
        reader=reader,
        progress=progress,
    )
    _check_memory(name, agreement, cases)
    count = len(split.training)
    return Hospital(
        name,
        agreement,
        cases[:count],
        cases[count:],
        enrolled=enrolled,
        framework=_load_framework(data.framework),
        progress=progress,
    )


def _load_framework(name: str) -> SiteFramework:
    if name == "torch":
        return TORCH
    check_installed('site file: framework = "tensorflow"')
    from consilium.tensorflow.site import TENSORFLOW

    return TENSORFLOW


def split_known(cases: Sequence[Case], structures: Sequence[str], data: HospitalData) -> Split:
    """Who trains and who is held out, among the cases that know a structure of the federation.

    Raises:
        DatasetError: There is none.
    """
    reader = data.reader or None
    known = [case for case in cases if set(known_structures(case, reader)) & set(structures)]
    if not known:
        raise DatasetError(
            f"dataset: some case must know a structure of the federation ({', '.join(structures)}); none "
            "does. Rename structures with consilium standardise, or ask for yours to be added."
        )
    if not data.hold_out:
        return Split(training=tuple(sorted(c.case_id for c in known)), validation=(), structures={})
    return split_cases(known, seed=data.seed, validation_fraction=data.hold_out)


def _check_memory(name: str, agreement: Agreement, cases: Sequence[PreparedCase]) -> None:
    plan, device = agreement.plan, choose_device()
    if plan.patch_zyx is not None:
        largest, batch = plan.patch_zyx, plan.batch
    else:
        shapes = np.array([case.shape_zyx for case in cases])
        z, y, x = (int(n) for n in shapes.max(axis=0))
        largest, batch = (z, y, x), 1
    network = plan.network_for(bf16=plan.network.bf16 and has_fast_bf16(device))
    need, have = predict_training_bytes(network, largest, batch), available_memory_bytes(device)
    if need > have:
        raise MemoryPlanError(
            f"site {name}: a training step by the agreed plan needs {need / 2**30:.1f} GiB here; "
            f"{have / 2**30:.1f} GiB are free. Close other programs, or agree on a smaller memory_gib."
        )
