"""The SQLite file of counts and reports: opening it, its tables, and transactions.

In WAL mode, so that a process killed at any point leaves what it committed and nothing else. One connection, for any
thread, one at a time.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sikkerguard.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

FILE = "records.sqlite3"
# The ledger's name for packets whose rows were deleted, so that a sum over everything is still possible.
PURGED = "filed_packets_purged"
_VERSION = 1
# Seconds that a transaction waits for another process: a backup, or a person with a shell.
_BUSY_SECONDS = 5.0
# Pages of 4 KiB kept in memory: a megabyte is more than all of it in quiet times.
_CACHE_PAGES = 256

# `ledger`: totals by name. `blocked`: packets of a source by protocol and port since they were last made into report
# rows; both are -1 where the kernel did not tell them apart. `sources` and `ports`: those of the ledger's day.
# `outbox`: one row for each source and category of a day, `state` being waiting, sending, sent, rejected,
# unanswered or withheld (see the outbox). Addresses are packed, days are counted since 1970-01-01 in UTC.
_SCHEMA = """
CREATE TABLE ledger (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE blocked (
    address BLOB NOT NULL, protocol INTEGER NOT NULL, port INTEGER NOT NULL, packets INTEGER NOT NULL,
    PRIMARY KEY (address, protocol, port)
) WITHOUT ROWID;
CREATE TABLE sources (address BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE ports (
    protocol INTEGER NOT NULL, port INTEGER NOT NULL, packets INTEGER NOT NULL, PRIMARY KEY (protocol, port)
) WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY, day INTEGER NOT NULL, address BLOB NOT NULL, category TEXT NOT NULL,
    protocol TEXT NOT NULL, packets INTEGER NOT NULL, state TEXT NOT NULL, request INTEGER,
    UNIQUE (day, address, category)
);
CREATE INDEX outbox_by_state ON outbox (state, packets DESC);
"""


class Database:
    """The file in this state directory, opened at the first need. Every method raises `RecordError`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or make it. One that is damaged is set aside, and a new one takes its place."""
        with self._lock:
            try:
                self._connection = self._connection or self._opened_or_new()
            except (sqlite3.Error, OSError) as error:
                raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file; everything committed is in it."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing. What is committed survives the death of the process; with `durable`, at the price of a
        sync, also a power failure at that moment."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._opened_or_new()
                self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    with suppress(sqlite3.Error):  # the first error is the one to tell
                        self._connection.rollback()
                    raise
                self._connection.commit()
            except (sqlite3.Error, OSError) as error:
                if self._connection is not None:
                    with suppress(sqlite3.Error):  # a commit that failed leaves its transaction open
                        self._connection.rollback()
                raise self._unusable(error) from error

    def _opened_or_new(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.OperationalError:
            raise  # no room, no right, locked: the file may be sound
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        # Before there is anything in it: the files beside it get its rights when they are made.
        self._path.touch(0o600)
        self._path.chmod(0o600)
        # The driver's own transactions are switched off: they begin where one does not expect them.
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA cache_size={_CACHE_PAGES}")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("its pages contradict each other")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_VERSION};COMMIT")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version} instead of {_VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: sqlite3.Error) -> None:
        aside = self._path.with_name(f"{FILE}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(FILE + suffix).unlink(missing_ok=True)
        log.error(
            "%s can't be used (%s): it is set aside as %s, counts begin anew, and what waited to be reported is not "
            "reported. Blocking is not touched by it.",
            self._path,
            error,
            aside.name,
        )

    def _unusable(self, error: Exception) -> RecordError:
        return RecordError(f"{self._path} can't be used ({error}); make room, or mend its rights")


def add(connection: sqlite3.Connection, name: str, value: int) -> None:
    """Add to a total of the ledger, within a transaction."""
    if value:
        connection.execute(
            "INSERT INTO ledger VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, value),
        )
