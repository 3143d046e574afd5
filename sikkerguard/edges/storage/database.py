"""The SQLite file of counts and reports: opening it, its tables, and transactions.

In WAL mode, so that a process killed at any point leaves what it committed and nothing else, and locked for as long as
it is open: so SQLite keeps the index of the WAL in memory. Otherwise it is a file that is mapped, and where a full disk
has no room for one of its pages, touching that ends the process by SIGBUS. One connection, for any thread, one at a
time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from sikkerguard.edges.storage.directory import Directory
from sikkerguard.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

FILE = "records.sqlite3"
# The total of packets whose rows were deleted, so that a sum over everything is still possible.
PURGED = "filed_packets_purged"
_VERSION = 4
# Seconds that opening waits for another process, a backup or a person with a shell; it is tried again soon.
_BUSY_SECONDS = 0.2
# Pages of 4 KiB kept in memory: a megabyte is more than all of it in quiet times.
_CACHE_PAGES = 256

# `totals`: `core.traffic.totals.Totals` by field, and sums over all reports, by name. `meta`: quotas, request numbers
# and the machine's boot, by name. `blocked`: packets of a source by protocol and port since they were last made into
# report rows; both are -1 where the kernel did not tell them apart. `sources` and `ports`: those of the totals' day.
# `outbox`: one row for each source (an IPv4 address, or an IPv6 /64) and category of a day, `state` being waiting,
# sending, sent, rejected, unanswered or withheld (see the outbox), and `seen` the day on which packets last came. It is
# in the name of one `address` of the source, which sent so many of its packets itself (`leading`, kept up for IPv6
# only); `entry` is that of a list that covers this address, and `own` is 1 where none but the local file is known to.
# Addresses are packed, days are counted since 1970-01-01 in UTC.
_OUTBOX = """
CREATE TABLE {name} (
    id INTEGER PRIMARY KEY, day INTEGER NOT NULL, source BLOB NOT NULL, category TEXT NOT NULL, address BLOB NOT NULL,
    leading INTEGER NOT NULL, entry TEXT NOT NULL, own INTEGER NOT NULL, protocol TEXT NOT NULL,
    packets INTEGER NOT NULL, state TEXT NOT NULL, request INTEGER, seen INTEGER NOT NULL,
    UNIQUE (day, source, category)
);
"""
_INDEX = "CREATE INDEX outbox_by_state ON outbox (state, packets DESC);"
_NUMBERS = """
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_SCHEMA = f"""{_NUMBERS}
CREATE TABLE blocked (
    address BLOB NOT NULL, protocol INTEGER NOT NULL, port INTEGER NOT NULL, packets INTEGER NOT NULL,
    PRIMARY KEY (address, protocol, port)
) WITHOUT ROWID;
CREATE TABLE sources (address BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE ports (
    protocol INTEGER NOT NULL, port INTEGER NOT NULL, packets INTEGER NOT NULL, PRIMARY KEY (protocol, port)
) WITHOUT ROWID;
{_OUTBOX.format(name="outbox")}{_INDEX}
"""
_IS_META = """(name LIKE 'quota%' OR name LIKE 'request%' OR name = 'last_report_at')"""
# From each earlier version to the next.
_MIGRATIONS = {
    # Until then a row that waited had the day of its last round, which is as much as is known.
    1: "ALTER TABLE outbox ADD COLUMN seen INTEGER NOT NULL DEFAULT 0; UPDATE outbox SET seen = day;",
    # Until then each address of an IPv6 /64 had rows of its own. They become one row, which has the fate of the one
    # that got farthest: what was sent for one of them is not sent again for another. Which lists cover them is not
    # known, so they count as the local file's until a list in force is asked.
    2: f"""
{_OUTBOX.format(name="merged")}
INSERT INTO merged
SELECT id, day, source, category, address, packets, hex(source), 1, protocol, together, state, request, newest
FROM (
    SELECT *, sum(packets) OVER each_source AS together, max(seen) OVER each_source AS newest,
        row_number() OVER (each_source ORDER BY
            CASE state WHEN 'sent' THEN 1 WHEN 'unanswered' THEN 2 WHEN 'sending' THEN 3 WHEN 'rejected' THEN 4
                ELSE 5 END,
            packets DESC, address
        ) AS place
    FROM (SELECT *, CASE length(address) WHEN 16 THEN substr(address, 1, 8) ELSE address END AS source FROM outbox)
    WINDOW each_source AS (PARTITION BY day, source, category)
)
WHERE place = 1;
DROP TABLE outbox;
ALTER TABLE merged RENAME TO outbox;
{_INDEX}
""",
    # Until then one table had both, and some totals other names.
    3: f"""
{_NUMBERS}
INSERT INTO meta SELECT name, value FROM ledger WHERE {_IS_META};
INSERT INTO totals
SELECT CASE name WHEN 'named' THEN 'attributed' WHEN 'told' THEN 'logged' ELSE replace(name, '_octets', '_bytes') END,
    value
FROM ledger WHERE NOT {_IS_META};
DROP TABLE ledger;
""",
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Database:
    """The file in this state directory, opened, or made, at the first need. One that is damaged is set aside, and a new
    one takes its place. Every method raises `RecordError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = Directory(directory)
        self._path = directory / FILE
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        # Damage was met while the file was in use: it may be where the quick look of a start does not find it.
        self._suspect = False

    def close(self) -> None:
        """Close the file; everything committed is in it."""
        with self._lock:
            self._close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A context within which all changes happen, or none. What is committed survives the death of the process; with
        `durable`, at the price of a sync, also a power failure at that moment."""
        with self._lock:
            try:
                connection = self._ready()
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    with suppress(sqlite3.Error):  # the first error is the one to raise
                        connection.rollback()
                    raise
                connection.commit()
            except (sqlite3.Error, OSError) as error:
                if self._connection is not None:
                    with suppress(sqlite3.Error):  # a commit that failed leaves its transaction open
                        self._connection.rollback()
                if _is_damage(error):
                    # No later transaction of this connection would fare better; the next opening checks the file.
                    self._suspect = True
                    with suppress(sqlite3.Error):
                        self._close()
                raise self._unusable(error) from error

    def _ready(self) -> sqlite3.Connection:
        """The connection, opened if need be; of a file that was deleted meanwhile all content is in a new one."""
        connection = self._connection
        if connection is not None and self._identity != (found := _identity(self._path)):
            self._connection = None
            if found is None:
                self._copy(connection)
            connection.close()
        if self._connection is None:
            self._connection = self._opened_or_new()
            self._identity = _identity(self._path)
        return self._connection

    def _copy(self, connection: sqlite3.Connection) -> None:
        self._make(directory=True)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(FILE + suffix).unlink(missing_ok=True)
        with closing(sqlite3.connect(self._path)) as copy:
            connection.backup(copy)
        log.warning("%s was deleted; it is there again with all that was in it.", self._path)

    def _make(self, *, directory: bool) -> None:
        """Make an empty file where there is none, for its owner alone, and its directory if that is wanted. No link is
        followed, and no file of another user is taken; SQLite itself follows no link to the files beside it
        (os_unix.c, O_NOFOLLOW)."""
        handle = self._directory.open_or_make(FILE, make_directory=directory)
        try:
            os.fchmod(handle, 0o600)
        finally:
            os.close(handle)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened_or_new(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.OperationalError:
            raise  # no room, no permission, locked: the file may be sound
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        # Before there is anything in it: the files beside it get its permissions when they are made.
        self._make(directory=False)
        # The driver's own transactions are switched off: they begin at unexpected places.
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # before the first look at the file
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA cache_size={_CACHE_PAGES}")
            check = "integrity_check" if self._suspect else "quick_check"
            if connection.execute(f"PRAGMA {check}(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("its pages contradict each other")
            self._suspect = False
            _bring_up_to_date(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename a damaged file, so that a new one can take its place and this one can be looked at."""
        aside = self._path.with_name(f"{FILE}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(FILE + suffix).unlink(missing_ok=True)
        log.error(
            "%s can't be used (%s): it is set aside as %s. Counts that only it had begin anew, what waited to be "
            "reported is not reported, and sources that were reported today may be reported once more. Blocking is not "
            "touched by it.",
            self._path,
            error,
            aside.name,
        )

    def _unusable(self, error: Exception) -> RecordError:
        if _is_damage(error):
            return RecordError(f"{self._path} is damaged ({error}); it is checked, and set aside, at the next try")
        return RecordError(f"{self._path} can't be used ({error}); make room, or fix its permissions")


def add(connection: sqlite3.Connection, name: str, value: int) -> None:
    """Add to a total, within a transaction."""
    if value:
        connection.execute(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, value),
        )


def read_total(connection: sqlite3.Connection, name: str) -> int:
    """A total; 0 where nothing was added to it."""
    found = connection.execute("SELECT value FROM totals WHERE name = ?", (name,)).fetchone()
    return 0 if found is None else int(found[0])


def read(connection: sqlite3.Connection, name: str) -> int | None:
    """A number of `meta`; None where there is none of this name."""
    found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if found is None else int(found[0])


def write(connection: sqlite3.Connection, name: str, value: int) -> None:
    """Put a number into `meta`, in place of the one before."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def total(connection: sqlite3.Connection, table: str, condition: str = "true", **values: int) -> int:
    """The packets of these rows of `blocked` or `outbox`."""
    query = f"SELECT coalesce(sum(packets), 0) FROM {table} WHERE {condition}"
    return int(connection.execute(query, values).fetchone()[0])


def purge(connection: sqlite3.Connection, table: str, condition: str = "true", **values: int) -> int:
    """Delete these rows, whose packets stay counted; gives how many went."""
    add(connection, PURGED, total(connection, table, condition, **values))
    return connection.execute(f"DELETE FROM {table} WHERE {condition}", values).rowcount


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has this name; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_damage(error: Exception) -> bool:
    # What SQLite itself reports has a code, whose lowest byte is the kind of the error.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in _DAMAGED


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Make the tables, or change those of an earlier version: all of it, or nothing."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    if version == 0:
        steps = _SCHEMA
    elif version in _MIGRATIONS:
        steps = "".join(_MIGRATIONS[each] for each in range(version, _VERSION))
    else:
        raise sqlite3.DatabaseError(f"it is of version {version} instead of {_VERSION}")
    connection.executescript(f"BEGIN;{steps}PRAGMA user_version={_VERSION};COMMIT")
