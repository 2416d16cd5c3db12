"""From facts to findings: what each case shows by itself, and what stands out among all of them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from consilium.audit.facts import AIR_HU, CaseFacts, StructureFacts, compute_case_facts
from consilium.cases.dataset import Dataset
from consilium.cases.validate import RESTORE
from consilium.errors import DataError
from consilium.standards.names import CONFIDENT, find_sure_name, propose_name
from consilium.types import Progress, no_progress

SOFT_HU = (-150, 150)
MIN_AIR_SHARE = 0.2
MAX_BORDER_SHARE = 0.1
MAX_SPACING_MM, MIN_SLICES = 5.0, 10
MIN_PEERS = 8
"""So many cases of a structure are needed before one of them can stand out."""
OUTLIER_SIGMAS = 4.5
MIN_ALIKE = 3
"""So many cases of like spacing are a protocol."""
USUAL_SHARE = 0.9
MIN_VOLUME_RATIO, MIN_HU_SHIFT, MIN_AIR_SHIFT = 4.0, 120.0, 0.4
MIN_PLACE_SHIFT = (40.0, 40.0, 0.4)
"""Along x and y in mm, along z in body heights."""
MIN_SIDE_MM, MAX_PAIR_MM = 5.0, 40.0
BLOCKING_CODES = frozenset(
    {"uneven-slices", "copied-files", "wrong-patient", "wrong-frame", "refused-structures"}
)
"""Importers' findings that keep a case from being used before they are mended."""
REDRAW = "Look at the contour; correct it, or set the structure to unknown."


class Weight(StrEnum):
    """BLOCKING: not to be used before it is mended. LOOK: usable, but somebody should look."""

    BLOCKING = "blocking"
    LOOK = "look"


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One thing found; ``structure`` and ``reader`` are "" where it is about the whole case."""

    weight: Weight
    code: str
    case_id: str
    message: str
    remedy: str
    structure: str = ""
    reader: str = ""


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Of a structure: contoured cases, those without a blocking finding, and their share from 0 to 1."""

    structure: str
    contoured: int
    usable: int

    @property
    def score(self) -> float:
        """Share of the contoured cases that can be used; 0 where there are none."""
        return self.usable / self.contoured if self.contoured else 0.0


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result: findings case by case, readiness per structure, and how many cases there are of what."""

    cases: int
    usable_cases: int
    findings: tuple[AuditFinding, ...]
    readiness: tuple[Readiness, ...]
    protocols: Mapping[str, int]


def audit_dataset(dataset: Dataset, progress: Progress = no_progress) -> Audit:
    """Look at every case of a dataset, one at a time.

    Returns:
        What was found; an empty dataset has no finding and no usable case.
    """
    facts = []
    damaged = []
    case_ids = dataset.case_ids
    for done, case_id in enumerate(case_ids):
        progress("auditing cases", done, len(case_ids))
        try:
            facts.append(compute_case_facts(dataset, dataset.case(case_id)))
        except DataError as fault:
            damaged.append(_block("unusable-case", case_id, str(fault).removeprefix(f"{case_id}: "), RESTORE))
    progress("auditing cases", len(case_ids), len(case_ids))
    return judge(facts, damaged, found=len(case_ids))


def judge(
    facts: Sequence[CaseFacts],
    refused: Sequence[AuditFinding] = (),
    *,
    found: int | None = None,
) -> Audit:
    """Findings of all cases together.

    Args:
        facts: Of the cases that could be read.
        refused: Findings of those that could not, and of what belongs to no case.
        found: Number of cases in all; by default those that could be read.
    """
    findings = [*refused]
    findings += [finding for case in facts for finding in _judge_image(case)]
    findings += [finding for case in facts for finding in _judge_structures(case)]
    findings += _duplicates(facts)
    findings += _outliers(facts)
    findings += _unlikely_absent(facts)
    findings += _protocols(facts)
    findings.sort(key=lambda f: (f.case_id, f.structure, f.code))
    blocked = {(f.case_id, f.structure) for f in findings if f.weight is Weight.BLOCKING}
    readiness = []
    for name in sorted({standard_name(s.structure) for case in facts for s in case.structures}):
        having = [
            (case.case_id, {s.structure for s in case.structures if standard_name(s.structure) == name})
            for case in facts
        ]
        contoured = [(case_id, spellings) for case_id, spellings in having if spellings]
        usable = sum(
            (i, "") not in blocked and not any((i, spelling) in blocked for spelling in spellings)
            for i, spellings in contoured
        )
        readiness.append(Readiness(structure=name, contoured=len(contoured), usable=usable))
    ids = [case.case_id for case in facts]
    return Audit(
        cases=len(facts) if found is None else found,
        usable_cases=sum((case_id, "") not in blocked for case_id in ids),
        findings=tuple(findings),
        readiness=tuple(readiness),
        protocols=dict(Counter(_protocol(case) for case in facts)),
    )


@lru_cache(maxsize=10_000)
def standard_name(structure: str) -> str:
    """What structures of several spellings are counted under: the TG-263 name where it is sure."""
    return find_sure_name(structure) or structure


def _judge_image(facts: CaseFacts) -> Iterable[AuditFinding]:
    image, case_id = facts.image, facts.case_id
    grid = facts.grid
    if facts.modality == "CT":
        air_wrong = not (AIR_HU[0] <= image.air_hu <= AIR_HU[1] and image.air_share >= MIN_AIR_SHARE)
        soft_wrong = not SOFT_HU[0] <= image.soft_hu <= SOFT_HU[1]
        if air_wrong or soft_wrong:
            message = (
                f"air must be near −1000 HU and soft tissue near 0; found {image.air_hu:.0f} "
                f"and {image.soft_hu:.0f} HU."
            )
            remedy = "Check slope and intercept of the series, and export it again."
            yield _block("hu-calibration", case_id, message, remedy)
    if image.border_share > MAX_BORDER_SHARE:
        message = f"the body must lie inside the image; it covers {image.border_share:.0%} of its border."
        yield _look("truncated-view", case_id, message, "Prefer a reconstruction of the full field of view.")
    if image.blank_slices:
        message = f"every slice must show something; {image.blank_slices} are blank."
        yield _block("blank-slices", case_id, message, "Export the series again: slices are lost.")
    if image.repeated_slices:
        message = f"no slice may repeat the one before; {image.repeated_slices} do."
        yield _block("repeated-slices", case_id, message, "Export the series again: slices are doubled.")
    if max(grid.spacing_zyx_mm) > MAX_SPACING_MM:
        found = max(grid.spacing_zyx_mm)
        message = f"voxels should measure at most {MAX_SPACING_MM:g} mm; found {found:.2f} mm."
        yield _look("coarse", case_id, message, "Prefer a finer reconstruction for small structures.")
    if min(grid.shape_zyx) < MIN_SLICES:
        message = f"a volume should have at least {MIN_SLICES} voxels each way; found {grid.shape_zyx}."
        yield _look("few-slices", case_id, message, "Check that the whole series was imported.")
    if grid.affine.is_sheared:
        yield _look("tilted", case_id, "slices lie askew (gantry tilt).", "Nothing, if it was meant.")
    for finding in facts.findings:
        make = _block if finding.code in BLOCKING_CODES else _look
        yield make(finding.code, case_id, finding.message, finding.remedy)


def _judge_structures(facts: CaseFacts) -> Iterable[AuditFinding]:
    case_id = facts.case_id
    seen: dict[tuple[str, str], str] = {}
    for s in facts.structures:
        of = (s.structure, s.reader)
        proposal = propose_name(s.structure)
        if proposal.name != s.structure:
            hint = f"; perhaps {proposal.name} ({proposal.confidence:.2f})" if proposal.name else ""
            message = f"the name should be TG-263's{hint}."
            yield _look("name", case_id, message, "Accept a name with: consilium names DATASET", of)
        if s.volume_cm3 == 0:
            yield _block(
                "empty", case_id, "a contoured structure must hold a voxel; it is empty.", REDRAW, of
            )
            continue
        twin = seen.setdefault((s.reader, s.sha256), s.structure)
        if twin != s.structure:
            yield _block("same-mask", case_id, f"must differ from {twin}; both are the same.", REDRAW, of)
        if s.missing_slices:
            message = f"should be on every slice from first to last; {s.missing_slices} slices lack it."
            yield _look("missing-contours", case_id, message, REDRAW, of)
    yield from _laterality(facts)


def _laterality(facts: CaseFacts) -> Iterable[AuditFinding]:
    """Left must lie to the left (+x) of its right twin, or of the body's middle where it has none."""
    sided: dict[tuple[str, str], dict[str, StructureFacts]] = defaultdict(dict)
    for s in facts.structures:
        proposal = propose_name(s.structure)
        name = proposal.name or ""
        if s.centre_lps_mm and proposal.confidence >= CONFIDENT and name[-2:] in ("_L", "_R"):
            sided[name[:-2], s.reader][name[-1]] = s
    for pair in sided.values():
        left, right = pair.get("L"), pair.get("R")
        if left and right and left.centre_lps_mm and right.centre_lps_mm:
            wrong = [left, right] if left.centre_lps_mm[0] <= right.centre_lps_mm[0] else []
            apart = abs(left.centre_lps_mm[2] - right.centre_lps_mm[2])
            for s in [left, right] if apart > MAX_PAIR_MM else []:
                message = f"left and right must lie at one height; they are {apart:.0f} mm apart."
                yield _block("uneven-pair", facts.case_id, message, REDRAW, (s.structure, s.reader))
        else:
            places = [(s, s.place[0] if side == "L" else -s.place[0]) for side, s in pair.items() if s.place]
            wrong = [s for s, offset in places if offset < -MIN_SIDE_MM]
        for s in wrong:
            message = "left must lie to the patient's left; it lies to the right, or right to the left."
            remedy = "Left and right are swapped, or the image is mirrored: correct it."
            yield _block("laterality", facts.case_id, message, remedy, (s.structure, s.reader))


def _duplicates(facts: Sequence[CaseFacts]) -> Iterable[AuditFinding]:
    same: dict[str, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        same[case.content_sha256].append(case)
    for twins in same.values():
        patients = {case.patient for case in twins}
        for case in twins if len(twins) > 1 else []:
            if len(patients) > 1:
                message = f"an image must be of one patient; {len(patients)} patients have this very image."
                remedy = "Find out whose it is: one patient could be in training and validation."
                yield _block("duplicate-patient", case.case_id, message, remedy)
            else:
                message = f"should be there once; {len(twins)} cases of this patient have this very image."
                yield _look("duplicate-image", case.case_id, message, "Remove one of them.")


def _outliers(facts: Sequence[CaseFacts]) -> Iterable[AuditFinding]:
    """What stands out among the cases that have the structure, by median and median absolute deviation."""
    groups: dict[str, list[tuple[str, StructureFacts]]] = defaultdict(list)
    for case in facts:
        for s in case.structures:
            if s.volume_cm3 > 0:
                groups[standard_name(s.structure)].append((case.case_id, s))
    for members in groups.values():
        if len(members) < MIN_PEERS:
            continue
        volumes = [math.log(s.volume_cm3) for _, s in members]
        yield from _stand_out("volume", members, volumes, math.log(MIN_VOLUME_RATIO), Weight.LOOK)
        yield from _stand_out(
            "density", members, [s.mean_hu for _, s in members], MIN_HU_SHIFT, Weight.BLOCKING
        )
        air = [s.in_air_share for _, s in members]
        yield from _stand_out("outside-body", members, air, MIN_AIR_SHIFT, Weight.BLOCKING)
        pieces = [float(s.pieces) for _, s in members]
        yield from _stand_out("pieces", members, pieces, 0.9, Weight.LOOK)
        for axis in range(3):
            places = [s.place[axis] if s.place else float("nan") for _, s in members]
            yield from _stand_out("place", members, places, MIN_PLACE_SHIFT[axis], Weight.BLOCKING)


def _unlikely_absent(facts: Sequence[CaseFacts]) -> Iterable[AuditFinding]:
    """What is said to be absent where nearly every other case has it."""
    having = Counter(name for case in facts for name in {standard_name(s.structure) for s in case.structures})
    lacking = Counter(name for case in facts for name in {standard_name(s) for s in case.absent})
    for case in facts:
        for structure in case.absent:
            name = standard_name(structure)
            count = having[name] + lacking[name]
            if having[name] >= MIN_PEERS and having[name] >= USUAL_SHARE * count:
                message = f"is said to be absent (an empty mask); {having[name]} of {count} cases have it."
                yield _look("absent", case.case_id, message, REDRAW, (structure, ""))


def _stand_out(
    code: str,
    members: Sequence[tuple[str, StructureFacts]],
    values: Sequence[float],
    at_least: float,
    weight: Weight,
) -> Iterable[AuditFinding]:
    array = np.asarray(values)
    middle = float(np.nanmedian(array))
    spread = 1.4826 * float(np.nanmedian(np.abs(array - middle)))
    limit = max(at_least, OUTLIER_SIGMAS * spread)
    for (case_id, s), value in zip(members, array, strict=True):
        if abs(value - middle) > limit:
            shown = (math.exp(value), math.exp(middle)) if code == "volume" else (value, middle)
            message = f"{code.replace('-', ' ')} stands out: {shown[0]:.3g}, the median is {shown[1]:.3g}."
            yield AuditFinding(
                weight=weight,
                code=code,
                case_id=case_id,
                message=message,
                remedy=REDRAW,
                structure=s.structure,
                reader=s.reader,
            )


def _protocols(facts: Sequence[CaseFacts]) -> Iterable[AuditFinding]:
    if len(facts) < MIN_PEERS:
        return
    spacings = np.log([case.grid.spacing_zyx_mm for case in facts])
    middle = np.median(spacings, axis=0)
    for case, spacing in zip(facts, spacings, strict=True):
        # Several protocols in one archive are usual; a protocol that only one case has is not.
        alike = int((np.abs(spacings - spacing).max(axis=1) <= math.log(1.5)).sum())
        if np.abs(spacing - middle).max() > math.log(2.5) and alike < MIN_ALIKE:
            shown = " × ".join(f"{s:.2f}" for s in case.grid.spacing_zyx_mm)
            usual = " × ".join(f"{s:.2f}" for s in np.exp(middle))
            message = f"spacing stands out: {shown} mm (z, y, x), usual is {usual} mm."
            yield _look("spacing", case.case_id, message, "Check it against the scanner's protocol.")


def _protocol(facts: CaseFacts) -> str:
    scanner = facts.scanner
    parts = [str(scanner.get(key, "")) for key in ("Manufacturer", "ManufacturerModelName", "KVP")]
    thickness = facts.grid.spacing_zyx_mm[0]
    return " ".join([*(part for part in parts if part), f"{thickness:.1f} mm"])


def _block(
    code: str, case_id: str, message: str, remedy: str, of: tuple[str, str] = ("", "")
) -> AuditFinding:
    return _finding(Weight.BLOCKING, code, case_id, (message, remedy), of)


def _look(code: str, case_id: str, message: str, remedy: str, of: tuple[str, str] = ("", "")) -> AuditFinding:
    return _finding(Weight.LOOK, code, case_id, (message, remedy), of)


def _finding(
    weight: Weight, code: str, case_id: str, text: tuple[str, str], of: tuple[str, str]
) -> AuditFinding:
    return AuditFinding(
        weight=weight,
        code=code,
        case_id=case_id,
        message=text[0],
        remedy=text[1],
        structure=of[0],
        reader=of[1],
    )
