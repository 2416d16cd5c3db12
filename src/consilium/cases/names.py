"""The accepted names of a dataset's structures: one file that a person edits, applied from then on."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.cases.case import Case, Finding, check_name
from consilium.cases.draft import CaseDraft
from consilium.cases.files import write_atomically
from consilium.errors import DatasetError

if TYPE_CHECKING:
    from consilium.cases.dataset import Dataset

NAMES_FILE = "names.toml"
RENAMED = "renamed"
HEADER = """# Names of structures. Under [accepted], the left side is renamed to the right side: in every case
# that is imported from now on, and in what is there by: consilium names DATASET --apply
# Under [proposed] nothing happens: move a line up to accept it, correct it as you like, or leave it.
"""


@dataclass(frozen=True, kw_only=True)
class ProposedName:
    """A line of the file that a person may accept.

    Args:
        original: As the dataset has it.
        name: What it is proposed to become.
        note: For the person, e.g. the confidence.
    """

    original: str
    name: str
    note: str


def load_names(folder: Path) -> dict[str, str]:
    """The accepted map of a dataset's folder; empty if there is none.

    Raises:
        DatasetError: If the file is no such map, or a name cannot be a structure's.
    """
    path = folder / NAMES_FILE
    if not path.exists():
        return {}
    try:
        accepted = tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{NAMES_FILE}: must be TOML; {error}. Correct that line.") from error
    if not isinstance(accepted, dict) or not all(isinstance(name, str) for name in accepted.values()):
        raise DatasetError(f'{NAMES_FILE}: [accepted] must hold lines like "Parotis li" = "Parotid_L".')
    both = sorted(old for old, new in accepted.items() if new != old and accepted.get(new, new) != new)
    if both:
        raise DatasetError(
            f"{NAMES_FILE}: a name must not be renamed to one that is renamed itself; {both[0]!r} is. "
            "Give the last name at once."
        )
    return {check_name(old, NAMES_FILE): check_name(new, NAMES_FILE) for old, new in accepted.items()}


def save_names(folder: Path, accepted: Mapping[str, str], proposed: list[ProposedName]) -> None:
    """Write the file; what a person accepted or corrected is in ``accepted`` and stays."""
    lines = [HEADER, "[accepted]"]
    lines += [f"{_quoted(old)} = {_quoted(new)}" for old, new in sorted(accepted.items())]
    lines += ["", "[proposed]"]
    lines += [
        f"{_quoted(p.original)} = {_quoted(p.name)}  # {p.note}"
        for p in proposed
        if p.original not in accepted
    ]
    write_atomically(folder / NAMES_FILE, ("\n".join(lines) + "\n").encode())


def rename_draft(draft: CaseDraft, accepted: Mapping[str, str]) -> CaseDraft:
    """A case to be imported, with the accepted names and a finding for each change.

    A structure keeps its name where two would become the same of one reader: that is a finding, too.
    """
    pairs = [(a.structure, a.reader) for a in draft.annotations]
    mapping, findings = _plan(pairs, accepted)
    if not findings:
        return draft
    return replace(
        draft,
        annotations=tuple(
            replace(a, structure=mapping.get(a.structure, a.structure)) for a in draft.annotations
        ),
        instances=tuple(replace(i, structure=mapping.get(i.structure, i.structure)) for i in draft.instances),
        findings=(*draft.findings, *findings),
    )


def rename_case(case: Case, accepted: Mapping[str, str]) -> Case:
    """`rename_draft` for a case that is in a dataset; its files stay where they are."""
    mapping, findings = _plan([(a.structure, a.reader) for a in case.annotations], accepted)
    new_findings = tuple(finding for finding in findings if finding not in case.findings)
    return replace(
        case,
        annotations=tuple(
            replace(a, structure=mapping.get(a.structure, a.structure)) for a in case.annotations
        ),
        instances=tuple(replace(i, structure=mapping.get(i.structure, i.structure)) for i in case.instances),
        findings=(*case.findings, *new_findings),
    )


def apply_names(dataset: "Dataset") -> dict[str, int]:
    """Rename what the dataset's file accepts, in every case.

    Returns:
        Original name -> number of cases in which it was renamed; names that nothing bears are left out.
    """
    accepted = load_names(dataset.folder)
    counts: dict[str, int] = {}
    for case in dataset.cases():
        if rename_case(case, accepted) == case:
            continue
        renamed = dataset.change(case.case_id, partial(rename_case, accepted=accepted))
        for old in {a.structure for a in case.annotations} - {a.structure for a in renamed.annotations}:
            counts[old] = counts.get(old, 0) + 1
    return counts


def _plan(pairs: list[tuple[str, str]], accepted: Mapping[str, str]) -> tuple[dict[str, str], list[Finding]]:
    """Which names change, and what to say of each; no two structures of a reader become one."""
    mapping: dict[str, str] = {}
    findings: list[Finding] = []
    for old in sorted({structure for structure, _ in pairs}):
        new = accepted.get(old, old)
        if new == old:
            continue
        readers = {reader for structure, reader in pairs if structure == old}
        taken = {
            (mapping.get(structure, structure), reader) for structure, reader in pairs if structure != old
        }
        if any((new, reader) in taken for reader in readers):
            message = f"{old!r} keeps its name: another structure of the same reader is {new!r} already."
            remedy = f"Accept another name for one of them in {NAMES_FILE}."
            findings.append(Finding(code="name-taken", message=message, remedy=remedy))
            continue
        mapping[old] = new
        message = f"{old!r} is called {new!r} here, as {NAMES_FILE} says."
        findings.append(Finding(code=RENAMED, message=message, remedy=""))
    return mapping, findings


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
