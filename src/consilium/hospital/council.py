"""What the coordinator keeps of a federation's end: a signed statement for every hospital, in a ledger."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from consilium.federation.contribution import Contribution
from consilium.federation.journal import Journal
from consilium.federation.reciprocity import Ledger, SigningKey, Statement
from consilium.federation.settings import FederationSettings
from consilium.hospital.outcome import Outcome

KEY, LEDGER = "ledger.key", "ledger.jsonl"


def count_rounds(journal_folder: Path) -> dict[str, int]:
    """Site -> number of rounds in which its update counted, from the audit log.

    What was accepted before the coordinator was killed is lost, and its round opened again: only who was
    there when the round was closed counts.
    """
    accepted: dict[int, set[str]] = {}
    counted: dict[int, set[str]] = {}
    for line in (journal_folder / "audit.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("event") == "accepted":
            accepted.setdefault(int(record["round"]), set()).add(str(record["site"]))
        elif record.get("event") == "closed":
            number = int(record["round"])
            counted[number] = accepted.get(number, set()) - set(record["absent"])
    return dict(sorted(Counter(site for sites in counted.values() for site in sites).items()))


def state_outcomes(
    folder: Path,
    settings: FederationSettings,
    outcomes: Mapping[str, Outcome],
    contributions: Sequence[Contribution] = (),
) -> list[Statement]:
    """Sign what each hospital gave and got, and append it to the ledger; what stands there already stays.

    Args:
        folder: The coordinator's; the key is made in it where there is none.
        settings: Of the federation.
        outcomes: Site -> its outcome; sites without one get a statement of what they gave.
        contributions: Where they were measured.

    Raises:
        ConfigurationError: If ``cryptography`` is not installed.
        FederationError: If the ledger is not what was signed.
    """
    key, ledger = SigningKey(folder / KEY), Ledger(folder / LEDGER)
    journal = Journal(folder / "journal", write=False)
    state, counted = journal.need_state(), count_rounds(folder / "journal")
    gains = {c.site: c.mean_gain for c in contributions if c.mean_gain == c.mean_gain}
    known = ledger.verify(key.public)
    statements = []
    for site in settings.sites:
        outcome = outcomes.get(site.name)
        dice = {} if outcome is None else outcome.dice
        statement = Statement(
            federation=settings.name,
            job_digest=settings.digest,
            site=site.name,
            cases=site.cases,
            rounds_counted=counted.get(site.name, 0),
            contribution=gains.get(site.name),
            dice={name: value for name, value in dice.items() if value == value},
            given="" if outcome is None else outcome.given,
            model_digest=state.model_digest,
            audit_head=journal.audit.head,
        )
        statements.append(statement)
        if statement not in known:
            ledger.append(statement, key)
    return statements
