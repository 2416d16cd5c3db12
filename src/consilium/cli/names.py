"""``consilium names``: propose standard names for a dataset's structures, accept and apply them."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.dataset import Dataset, open_dataset
from consilium.cases.names import NAMES_FILE, ProposedName, apply_names, load_names, save_names
from consilium.cli.console import console, print_table
from consilium.errors import ConfigurationError
from consilium.standards.names import Proposal, propose_name


def names(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    accept: Annotated[
        float | None, typer.Option(help="Accept every proposal of at least this confidence, e.g. 0.9.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Rename what is accepted, in every case.")] = False,
) -> None:
    """Propose AAPM TG-263 names, write them to names.toml for you to accept, and apply what is accepted."""
    if accept is not None and not 0 < accept <= 1:
        raise ConfigurationError(f"--accept: must lie above 0 and up to 1; got {accept:g}.")
    opened = open_dataset(dataset)
    accepted = load_names(opened.folder)
    proposals = [(p, n) for p, n in _proposals(opened) if p.original not in accepted]
    if accept is not None:
        sure = [(p.original, p.name) for p, _ in proposals if p.name and p.confidence >= accept]
        # What a person decided stays: a name that was chosen, and what stands in a standard name's place.
        chosen = set(accepted.values())
        accepted |= {old: accepted.get(new, new) for old, new in sure if old not in chosen}
    open_lines = [
        ProposedName(original=p.original, name=p.name, note=f"{p.confidence:.2f}, {n} cases, {p.reason}")
        for p, n in proposals
        if p.name and p.name != p.original
    ]
    save_names(opened.folder, accepted, open_lines)
    rows = [
        (p.original, p.name or "–", p.confidence, n, "accepted" if p.original in accepted else p.reason)
        for p, n in proposals
        if p.name != p.original
    ]
    print_table("Names", ("here", "TG-263", "confidence", "cases", "why"), rows)
    if apply:
        for old, count in sorted(apply_names(opened).items()):
            console.print(f"{old} → {accepted[old]} in {count} cases", markup=False)
    else:
        console.print(
            f"{len(accepted)} accepted in {opened.folder / NAMES_FILE}; nothing renamed.", markup=False
        )


def _proposals(dataset: Dataset) -> list[tuple[Proposal, int]]:
    """One per name, the surest first, with the number of cases that have it."""
    counts = Counter(name for case in dataset.cases() for name in {a.structure for a in case.annotations})
    found = [(propose_name(name), count) for name, count in counts.items()]
    return sorted(found, key=lambda item: (-item[0].confidence, item[0].original))
