"""What each site gets: the best of three models on its own hold-out, and a signed statement in an
append-only ledger.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consilium.errors import ConfigurationError, FederationError
from consilium.federation.durable import write_durably

CHOICES = ("local", "global", "personalised")
NEVER_WORSE_BY = 0.005


def choose_model(dice: Mapping[str, float]) -> str:
    """Which of the three models a site is given: the best on its own hold-out; its own where nothing beats
    it.

    Args:
        dice: ``local``, ``global`` and ``personalised`` -> mean Dice on the site's own hold-out.

    Returns:
        The name of the model. Its Dice is never below ``local``'s, so never worse by more than
        `NEVER_WORSE_BY`.

    Raises:
        ConfigurationError: If one of the three is missing or not in [0, 1].
    """
    if set(dice) != set(CHOICES) or not all(0.0 <= value <= 1.0 for value in dice.values()):
        raise ConfigurationError(
            f"choice: needs a Dice in 0 to 1 for each of {', '.join(CHOICES)}; found {dict(dice)}."
        )
    return max(CHOICES, key=lambda name: (dice[name], name == "local"))


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What one site gave and got in one federation; figures only.

    Args:
        federation: Its name.
        job_digest: Digest of its settings.
        site: Whose statement.
        cases: Cases it enrolled with.
        rounds_counted: Rounds in which its update counted.
        contribution: Its mean gain, see `contribution.compute_contributions`; None where not measured.
        dice: Dice of the three models on its own hold-out; empty where not measured.
        given: Which model it was given; empty where not measured.
        model_digest: Digest of the final model.
        audit_head: Head of the audit log at the end.
    """

    federation: str
    job_digest: str
    site: str
    cases: int
    rounds_counted: int
    contribution: float | None
    dice: Mapping[str, float]
    given: str
    model_digest: str
    audit_head: str


class SigningKey:
    """The coordinator's Ed25519 key.

    Args:
        path: Where it is kept, readable by this user alone; made when absent.

    Raises:
        ConfigurationError: If ``cryptography`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric import ed25519
        except ImportError as fault:
            raise ConfigurationError(
                "ledger: signing needs cryptography. pip install 'consilium[federation]'."
            ) from fault
        if not path.exists():
            write_durably(path, ed25519.Ed25519PrivateKey.generate().private_bytes_raw())
            path.chmod(0o600)
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(path.read_bytes())

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits: sites keep it."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, content: bytes) -> str:
        """The signature, 128 hexadecimal digits."""
        return self._key.sign(content).hex()


class Ledger:
    """Signed statements, one a line, each with the hash of the one before; nothing is ever changed.

    Args:
        path: The file; created with the first statement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, statement: Statement, key: SigningKey) -> None:
        """Sign a statement and add it, durably."""
        lines = self._read_lines()
        entry = {"statement": asdict(statement), "previous": _hash(lines[-1]) if lines else "0" * 64}
        signed = entry | {"signature": key.sign(_canonical(entry))}
        write_durably(
            self._path, "".join(f"{line}\n" for line in [*lines, _canonical(signed).decode()]).encode()
        )

    def verify(self, public: str) -> list[Statement]:
        """All statements, after checking every signature and every link.

        Args:
            public: The coordinator's public key, as the site has kept it.

        Raises:
            FederationError: At the first line that was changed, removed or added by someone else.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519

        verifier = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        statements, previous = [], "0" * 64
        for number, line in enumerate(self._read_lines()):
            try:
                entry: dict[str, Any] = json.loads(line)
                signature = bytes.fromhex(entry.pop("signature"))
                verifier.verify(signature, _canonical(entry))
                linked = entry["previous"] == previous
                statements.append(Statement(**entry["statement"]))
            except (InvalidSignature, ValueError, KeyError, TypeError):
                linked = False
            if not linked:
                raise FederationError(f"ledger: line {number + 1} is not what the coordinator signed there.")
            previous = _hash(line)
        return statements

    def _read_lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), default=dict).encode()


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
