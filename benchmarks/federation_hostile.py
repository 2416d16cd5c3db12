"""Which hostile updates does an aggregator take into the model?

Two honest sites send ones and threes; a third sends what is in the table. An update counts as *taken* if the
result is not bitwise that of the two honest sites. ``ours`` and ``peers`` are how many of the inputs were
taken or stopped the aggregation; the limit is 0. ``ratio`` is ours over the number of inputs. The peers run
in their own environments (requirements-peers/): ``--flare PYTHON`` and ``--flower PYTHON`` name their
interpreters; a peer that is not named is left out.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import report
from consilium.errors import DataError, UpdateRefused
from consilium.federation.combine import Collection
from consilium.federation.messages import (
    UpdateHeader,
    encode_update,
    max_update_bytes,
    read_update,
    wire_schema,
)
from consilium.federation.parameters import Parameters, Schema, compute_digest
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.strategies.fedavg import FedAvg
from consilium.federation.updates import OpenRound, check_update

INPUTS = (
    "NaN",
    "Inf",
    "shape (1,)",
    "wrong dtype",
    "weight 1e12",
    "weight -9",
    "missing array",
    "extra array",
)

PEER = """
import json, sys
import numpy as np
def fill(value):
    return {"w": np.full(4, value, np.float32), "b": np.full(2, value, np.float32)}
honest = fill(1), fill(3)
hostile = {
    "NaN": ({"w": np.full(4, np.nan, np.float32), "b": np.ones(2, np.float32)}, 10),
    "Inf": ({"w": np.full(4, np.inf, np.float32), "b": np.ones(2, np.float32)}, 10),
    "shape (1,)": ({"w": np.full(1, 9, np.float32), "b": np.ones(2, np.float32)}, 10),
    "wrong dtype": ({"w": np.full(4, 9, np.float64), "b": np.ones(2, np.float64)}, 10),
    "weight 1e12": ({"w": np.full(4, 9, np.float32), "b": np.ones(2, np.float32)}, 10**12),
    "weight -9": ({"w": np.full(4, 9, np.float32), "b": np.ones(2, np.float32)}, -9),
    "missing array": ({"w": np.full(4, 9, np.float32)}, 10),
    "extra array": ({"w": np.full(4, 9, np.float32), "b": np.ones(2, np.float32), "c": np.ones(2,
    np.float32)}, 10),
}
def outcome(run):
    wanted = run([(honest[0], 10), (honest[1], 10)])
    table = {}
    for name, (update, weight) in hostile.items():
        try:
            found = run([(honest[0], 10), (honest[1], 10), (update, weight)])
        except Exception as fault:
            table[name] = "stops with " + type(fault).__name__
            continue
        same = len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted))
        table[name] = "refused" if same else "taken"
    print(json.dumps(table))
"""

FLARE = """
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
def run(updates):
    helper = WeightedAggregationHelper()
    for number, (update, weight) in enumerate(updates):
        helper.add(data=dict(update), weight=weight, contributor_name=f"site-{number}", contribution_round=0)
    result = helper.get_result()
    return [np.asarray(result[name]) for name in sorted(result)]
outcome(run)
"""

FLOWER = """
from flwr.server.strategy.aggregate import aggregate
def run(updates):
    return aggregate([([update[name] for name in sorted(update)], weight) for update, weight in updates])
outcome(run)
"""


def run_peer(python: str, program: str) -> dict[str, str]:
    """Input -> what the peer's aggregator did with it."""
    output = subprocess.run(
        [python, "-W", "ignore", "-c", PEER + program], capture_output=True, text=True, check=True
    )
    table: dict[str, str] = json.loads(output.stdout.splitlines()[-1])
    return table


MODEL: Parameters = {"w": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)}
SITES = tuple(SiteEnrolment(name=f"site-{n}", cases=10) for n in range(3))
SETTINGS = FederationSettings(name="hostile", rounds=2, sites=SITES)
ROUND = OpenRound(
    round_number=1,
    base=MODEL,
    base_digest=compute_digest(MODEL),
    schema=Schema.of(MODEL),
    job_digest=SETTINGS.digest,
)


def fill(value: float) -> Parameters:
    """The model with one value everywhere."""
    return {name: np.full_like(array, value) for name, array in MODEL.items()}


def encode(parameters: Parameters, site: str = "site-2", **changes: Any) -> bytes:
    """An update as it travels."""
    header = UpdateHeader(
        site=site,
        round_number=1,
        job_digest=SETTINGS.digest,
        base_digest=ROUND.base_digest,
        weight=10,
        cases_by_structure={},
        metrics={},
    )
    return encode_update(replace(header, **changes), parameters, {})


def reweigh(weight: int) -> bytes:
    """A weight that no honest program can put into a header."""
    header = read_update(encode(fill(9)), max_bytes=10**6).header
    object.__setattr__(header, "weight", weight)
    return encode_update(header, fill(9), {})


def hostile_updates() -> dict[str, bytes]:
    """What the third site sends."""
    nine = fill(9)
    return {
        "NaN": encode(nine | {"w": np.full(4, np.nan, np.float32)}),
        "Inf": encode(nine | {"w": np.full(4, np.inf, np.float32)}),
        "shape (1,)": encode(nine | {"w": np.full(1, 9, np.float32)}),
        "wrong dtype": encode({name: array.astype(np.float64) for name, array in nine.items()}),
        "weight 1e12": reweigh(10**12),
        "weight -9": reweigh(-9),
        "missing array": encode({"w": nine["w"]}),
        "extra array": encode(nine | {"c": np.ones(2, np.float32)}),
        "header of 10 GB": (10 * 2**30).to_bytes(8, "little") + bytes(100),
        "replay of round 0": encode(nine, round_number=0),
        "another site's identity": encode(nine, site="site-0"),
        "another model": encode(nine, base_digest="0" * 64),
    }


def run_ours(hostile: bytes | None) -> tuple[bytes, str]:
    """The result's bytes, and the reason for which the hostile update was refused (empty if it was not)."""
    collection = Collection(ROUND, SETTINGS, FedAvg())
    wire = wire_schema(ROUND.schema, control=False, half_precision=False)
    updates = [("site-0", encode(fill(1), "site-0")), ("site-1", encode(fill(3), "site-1"))]
    reason = ""
    for site, content in [*updates, *([("site-2", hostile)] if hostile is not None else [])]:
        try:
            update = read_update(content, max_bytes=max_update_bytes(wire))
            collection.add(check_update(update, site, ROUND, SETTINGS))
        except UpdateRefused as refusal:
            reason = refusal.reason
        except DataError as fault:
            reason = str(fault)
    return b"".join(array.tobytes() for _, array in collection.means()), reason


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the same; it takes seconds")
    parser.add_argument("--flare", help="interpreter of an environment with requirements-peers/flare.txt")
    parser.add_argument("--flower", help="interpreter of an environment with requirements-peers/flower.txt")
    arguments = parser.parse_args()
    tables = {}
    for name, python, program in (("FLARE", arguments.flare, FLARE), ("Flower", arguments.flower, FLOWER)):
        if python:
            tables[name] = run_peer(python, program)
        else:
            print(f"{name}: left out; name its interpreter with --{name.lower()}")
    wanted, _ = run_ours(None)
    taken = 0
    for kind, content in hostile_updates().items():
        found, reason = run_ours(content)
        taken += found != wanted
        peers = "; ".join(
            f"{name}: {table.get(kind, 'not an input of it')}" for name, table in tables.items()
        )
        print(f"{kind} | {'taken' if found != wanted else 'refused'}: {reason} | {peers}")
    counts = {name: float(sum(v != "refused" for v in table.values())) for name, table in tables.items()}
    print("peers: an input counts that is taken, or that stops the whole aggregation; of", len(INPUTS))
    report(
        "hostile updates that reach the model",
        "updates",
        taken,
        counts,
        limit=0,
        ratio=taken / len(hostile_updates()),
    )


if __name__ == "__main__":
    main()
