"""The pages at a federation's end: one for each hospital, one for the council of all."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from consilium.federation.contribution import Contribution
from consilium.federation.reciprocity import CHOICES, NEVER_WORSE_BY, Statement
from consilium.hospital.comparison import FEDERATED, Comparison
from consilium.hospital.outcome import Figures, Outcome
from consilium.pages.page import Section, TableBlock, Text, write_page

WORDS = {
    "local": "own patients only",
    "global": "the federation's",
    "personalised": "the federation's, fine-tuned here",
}
HOW = (
    "Dice on patients of this hospital that trained no model, whole volumes on the images' own grid; mean "
    "over patients, with the 95 % bootstrap interval over patients. The three models took equally many "
    "steps from the same first weights; the fine-tuned one some more at a low rate. The best "
    "of three on these very patients is given, so its figure is slightly too good."
)
CONTRIBUTION = (
    "How much better a round's common model is, on all hospitals' hold-outs together, with a hospital's "
    "update than without it (leave one out, mean over a few rounds). It splits the value of what two "
    "hospitals have in common between them, and a small or negative figure over few rounds is no verdict. "
    "Hospitals whose updates were the same in every round stand last: look whether a dataset was enrolled "
    "twice."
)


def write_site_page(path: Path, outcome: Outcome, *, federation: str) -> None:
    """What a hospital got."""
    gain = outcome.dice[outcome.given] - outcome.dice["local"]
    answer = (
        f"Given: {WORDS[outcome.given]}. Its mean Dice on this hospital's {outcome.hold_out_cases} held-out "
        f"cases is {outcome.dice[outcome.given]:.3f}; the model of its own patients alone reaches "
        f"{outcome.dice['local']:.3f} ({gain:+.3f})."
    )
    rows: list[list[object]] = [
        ["mean over structures", outcome.hold_out_cases, *(outcome.figures[c].mean for c in CHOICES)]
    ]
    names = list(dict.fromkeys(n for c in CHOICES for n in outcome.figures[c].structures))
    for name in names:
        patients = max(outcome.figures[c].patients.get(name, 0) for c in CHOICES)
        rows.append([name, patients, *(_with_interval(outcome.figures[c], name) for c in CHOICES)])
    table = TableBlock(
        title="Three models on this hospital's own held-out patients",
        columns=["structure", "patients", *(WORDS[c] for c in CHOICES)],
        rows=rows,
        note=HOW,
    )
    rest = Text(
        text="Structures that this hospital does not contour cannot be judged here; for them use the "
        "federation's model as it is, since fine-tuning at home has not seen them.",
        kind="note",
    )
    promise = Text(
        text=f"What is given is never worse here than the own model by more than {NEVER_WORSE_BY}."
    )
    sections = [
        Section(title="What this hospital got", blocks=[Text(text=answer), table, rest, promise]),
    ]
    write_page(
        path, f"{outcome.site} in {federation}", sections, subtitle=f"{outcome.training_cases} cases trained"
    )


def write_council_page(
    path: Path,
    *,
    federation: str,
    outcomes: Mapping[str, Outcome],
    statements: Sequence[Statement] = (),
    contributions: Sequence[Contribution] = (),
    comparison: Comparison | None = None,
) -> list[TableBlock]:
    """What all hospitals gave and got; returns its tables for the terminal."""
    sections, tables = [], []
    if comparison is not None:
        both = [structure_table(comparison), cross_table(comparison)]
        tables += both
        sections.append(Section(title="Alone, together, in one place", blocks=[*both, Text(text=STEPS)]))
    if outcomes:
        tables.append(outcome_table(outcomes))
        sections.append(Section(title="What each hospital got", blocks=[tables[-1], Text(text=HOW)]))
    if contributions:
        tables.append(contribution_table(contributions))
        sections.append(
            Section(title="What each hospital gave", blocks=[tables[-1], Text(text=CONTRIBUTION)])
        )
    if statements:
        sections.append(Section(title="Ledger", blocks=[_ledger_table(statements)]))
    write_page(path, f"The council of {federation}", sections, subtitle=f"{len(outcomes)} hospitals")
    return tables


STEPS = (
    "Every model took as many steps as one hospital in the federation, from the same first weights. Pooled "
    "is the yardstick that needs all records in one place."
)


def structure_table(comparison: Comparison) -> TableBlock:
    """Models against structures, over the hold-outs of all hospitals."""
    rows: list[list[object]] = []
    for name, figures in comparison.models.items():
        cells = [_with_interval(figures, structure) for structure in comparison.structures]
        rows.append([name, figures.mean, *cells])
    return TableBlock(
        title="Dice on the held-out patients of all hospitals",
        columns=["model", "mean", *comparison.structures],
        rows=rows,
        note="A patient counts for the structures that its hospital contours. 0 means that a model never "
        "learnt the structure.",
        flagged=frozenset(k for k, name in enumerate(comparison.models) if name == FEDERATED),
    )


def cross_table(comparison: Comparison) -> TableBlock:
    """Models against hospitals."""
    sites = list(next(iter(comparison.by_site.values())))
    rows = [[model, *(found[site].mean for site in sites)] for model, found in comparison.by_site.items()]
    return TableBlock(
        title="Mean Dice of every model at every hospital",
        columns=["model", *(f"at {site}" for site in sites)],
        rows=rows,
        note="Over the structures that the hospital contours.",
        flagged=frozenset(k for k, (model, *_) in enumerate(rows) if model == FEDERATED),
    )


def outcome_table(outcomes: Mapping[str, Outcome]) -> TableBlock:
    """The three models of each hospital, and what it was given."""
    rows: list[list[object]] = []
    for site, outcome in sorted(outcomes.items()):
        cells = [_ends(outcome.figures[c].overall) for c in CHOICES]
        rows.append(
            [site, outcome.hold_out_cases, *(outcome.dice[c] for c in CHOICES), WORDS[outcome.given], *cells]
        )
    return TableBlock(
        title="Three models on each hospital's own held-out patients (mean Dice)",
        columns=[
            "hospital",
            "patients",
            *(WORDS[c] for c in CHOICES),
            "given",
            *(f"{WORDS[c]}: 95 % over patients" for c in CHOICES),
        ],
        rows=rows,
    )


def contribution_table(contributions: Sequence[Contribution]) -> TableBlock:
    """In the order that `compute_contributions` gives."""
    rows = [[c.site, c.mean_gain, c.rounds, ", ".join(c.same_as) or "–"] for c in contributions]
    return TableBlock(
        title="Contribution",
        columns=["hospital", "mean gain in Dice", "rounds measured", "same update as"],
        rows=rows,
    )


def _ledger_table(statements: Sequence[Statement]) -> TableBlock:
    rows = [
        [s.site, s.cases, s.rounds_counted, s.contribution, s.given, s.model_digest[:16], s.audit_head[:16]]
        for s in statements
    ]
    return TableBlock(
        title="Signed statements",
        columns=["hospital", "cases", "rounds counted", "contribution", "given", "model", "audit log"],
        rows=rows,
        note="Each is signed with the coordinator's key and chained to the one before in ledger.jsonl.",
    )


def _with_interval(figures: Figures, structure: str) -> str:
    if structure not in figures.structures:
        return "–"
    mean, low, high = figures.structures[structure]
    return f"{mean:.3f}{'' if math.isnan(low) else f' ({low:.2f} to {high:.2f})'}"


def _ends(ends: tuple[float, float, float]) -> str:
    return "–" if math.isnan(ends[1]) else f"{ends[1]:.3f} to {ends[2]:.3f}"
