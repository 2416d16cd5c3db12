"""What was decided, by whom, and what it cost: the figures with which a clinic sees what it saves."""

import statistics
from collections.abc import Sequence

from consilium.pages.page import Section, TableBlock, Text
from consilium.review.store import Recorded, Verdict

NOTE = (
    "Seconds: from choosing the structure to deciding, without the time in which the page was hidden. "
    "Contour changed: length of contour in mm that was drawn anew, slice by slice."
)


def decision_sections(history: Sequence[Recorded]) -> list[Section]:
    """Totals per structure, and every decision, the latest first."""
    if not history:
        text = "Nobody has decided yet. Open a case, choose a contour, and accept, correct or reject it."
        return [Section(title="Decisions", blocks=[Text(text=text)])]
    return [
        Section(title="Per structure", blocks=[_totals(history)]),
        Section(title="Every decision, the latest first", blocks=[_all(history)]),
    ]


def _totals(history: Sequence[Recorded]) -> TableBlock:
    by_structure: dict[str, list[Recorded]] = {}
    for recorded in history:
        by_structure.setdefault(recorded.decision.structure, []).append(recorded)
    rows = [_total(name, found) for name, found in sorted(by_structure.items())]
    if len(rows) > 1:
        rows.append(_total("all", history))
    return TableBlock(
        title="Decisions and the work they took",
        columns=[
            "structure", "decisions", "accepted", "corrected", "rejected",
            "median seconds", "seconds in all", "median mm changed (corrected)",
        ],
        rows=rows,
        note=NOTE,
    )  # fmt: skip


def _total(name: str, found: Sequence[Recorded]) -> list[object]:
    decisions = [recorded.decision for recorded in found]
    counts = [sum(d.verdict is verdict for d in decisions) for verdict in
              (Verdict.ACCEPTED, Verdict.CORRECTED, Verdict.REJECTED)]  # fmt: skip
    seconds = [d.seconds_spent for d in decisions]
    changed = [d.contour_changed_mm for d in decisions if d.verdict is Verdict.CORRECTED]
    return [
        name,
        len(decisions),
        *counts,
        round(statistics.median(seconds), 1),
        round(sum(seconds), 1),
        round(statistics.median(changed), 1) if changed else None,
    ]


def _all(history: Sequence[Recorded]) -> TableBlock:
    rows = [
        (
            r.time_utc[:19].replace("T", " "),
            r.decision.person,
            r.decision.case_id,
            r.decision.structure,
            r.decision.reader,
            str(r.decision.verdict),
            r.decision.reason,
            round(r.decision.seconds_spent, 1),
            round(r.decision.contour_changed_mm, 1),
        )
        for r in reversed(history)
    ]
    return TableBlock(
        title="History",
        columns=[
            "time (UTC)", "who", "case", "structure", "contour of", "decision", "reason", "seconds",
            "contour changed (mm)",
        ],
        rows=rows,
        note="Nothing in this history can be changed or removed; a later decision stands beside the earlier.",
    )  # fmt: skip
