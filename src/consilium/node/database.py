"""The node's SQLite file: its tables, and transactions that are on the disk when they end."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
  number INTEGER PRIMARY KEY, series_uid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, revision INTEGER NOT NULL,
  attempts INTEGER NOT NULL, quiet_since REAL NOT NULL, complete INTEGER NOT NULL, message TEXT NOT NULL,
  changed_at REAL NOT NULL, purged INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS objects (
  sop_instance_uid TEXT PRIMARY KEY, series INTEGER NOT NULL REFERENCES series, kind TEXT NOT NULL,
  digest TEXT NOT NULL, received_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS objects_of ON objects (series);
CREATE TABLE IF NOT EXISTS feeds (
  series INTEGER NOT NULL REFERENCES series, association TEXT NOT NULL, sender TEXT NOT NULL,
  broken INTEGER NOT NULL, PRIMARY KEY (series, association));
CREATE TABLE IF NOT EXISTS results (
  series INTEGER NOT NULL REFERENCES series, revision INTEGER NOT NULL, digest TEXT NOT NULL,
  sop_instance_uid TEXT NOT NULL UNIQUE, made_at REAL NOT NULL, PRIMARY KEY (series, revision));
CREATE TABLE IF NOT EXISTS sendings (
  number INTEGER PRIMARY KEY, series INTEGER NOT NULL, revision INTEGER NOT NULL, destination TEXT NOT NULL,
  state TEXT NOT NULL, attempts INTEGER NOT NULL, next_at REAL NOT NULL, message TEXT NOT NULL,
  UNIQUE (series, revision, destination));
CREATE TABLE IF NOT EXISTS refusals (
  sender TEXT NOT NULL, reason TEXT NOT NULL, remedy TEXT NOT NULL, count INTEGER NOT NULL,
  last_at REAL NOT NULL, PRIMARY KEY (sender, reason, remedy));
CREATE TABLE IF NOT EXISTS left_out (reason TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""


class NodeDatabase:
    """One connection, used by one thread at a time.

    Args:
        path: Made if absent.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        path.chmod(0o600)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, without any effect if it raises."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """What a query gives."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()
