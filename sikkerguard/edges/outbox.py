"""Report rows that wait, are on their way, or are done with, in the database of records.

SikkerAPI counts what is sent twice as two, so a row leaves here once. It is marked as sending, on the disk, before its
request begins, and the request is marked as on the wire before its last byte leaves; by these two marks a process that
finds them knows what the one before it, killed at any point, may have brought to its end. Rows are waiting, sending,
sent, rejected, unanswered (they may have been accepted), or withheld (a source that anyone can forge; no category).
"""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.model import ReportNumbers
from sikkerguard.core.reports import MOST_ROWS, Parcel, Row, first_request
from sikkerguard.edges.database import PURGED, add

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Container, Iterator, Mapping

    from sikkerguard.edges.database import Database

    Decide = Callable[[bytes, Mapping[tuple[int, int], int]], Row | None]

# Rows that may wait, and sources withheld that are kept to be counted once a day: about five megabytes of each.
MOST_WAITING = 50_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Pages in the log from which a commit moves them into the file, SQLite's own figure. That syncs the disk, so the
# commit that stands between a mark and the last byte does not do it.
_CHECKPOINT_PAGES = 1000
# Rows of a day that is over. A clock that was put back over midnight has not made tomorrow yesterday, but what lies
# further ahead is of a clock that was wrong.
_STALE = "(day < :day OR day > :day + 1)"
_ADD = """
INSERT INTO outbox (day, address, category, protocol, packets, state)
VALUES (:day, :address, :category, :protocol, :packets, :state)
ON CONFLICT (day, address, category) DO UPDATE SET packets = packets + excluded.packets
"""
_CARRY = f"""
INSERT INTO outbox (day, address, category, protocol, packets, state)
SELECT :day, address, category, protocol, sum(packets), state FROM outbox
WHERE {_STALE} AND state = 'waiting' GROUP BY address, category
ON CONFLICT (day, address, category) DO UPDATE SET packets = packets + excluded.packets
"""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found of requests that were cut off: rows that wait again, and rows that are not sent again."""

    waiting: int
    unanswered: int


class Outbox:
    """Every method is one transaction, all or nothing, and raises `RecordError`. Days count from 1970-01-01, UTC."""

    def __init__(self, database: Database, *, boot_id: Path = _BOOT_ID, most_waiting: int = MOST_WAITING) -> None:
        self._database = database
        self._boot_id = boot_id
        self._most_waiting = most_waiting

    # What comes in

    def gather(self, day: int, decide: Decide) -> None:
        """Make rows of all that was blocked. `decide` gets a source, packed, and its packets by IP protocol and port,
        and gives its row, or None where it is withheld."""
        with self._database.transaction() as connection:
            self._turn_over(connection, day)
            known = _count(connection, "withheld")
            beside = 0
            for address, packets in _sources(connection):
                row = decide(address, packets)
                total = sum(packets.values())
                values = {"day": day, "address": address, "category": "", "protocol": "", "packets": total}
                if row is not None:
                    beside += total - row.packets
                    values |= {"category": row.category, "protocol": row.protocol, "packets": row.packets}
                connection.execute(_ADD, {**values, "state": "withheld" if row is None else "waiting"})
            connection.execute("DELETE FROM blocked")
            add(connection, PURGED, beside)
            add(connection, "reports_withheld", _count(connection, "withheld") - known)
            add(connection, "reports_dropped", self._drop_smallest(connection, "waiting"))
            self._drop_smallest(connection, "withheld")

    def discard(self) -> None:
        """Forget what was blocked since the last time, for nobody wants it reported; its packets stay counted."""
        with self._database.transaction() as connection:
            add(connection, PURGED, _sum(connection, "blocked"))
            connection.execute("DELETE FROM blocked")

    # What goes out

    def take(self, most: int) -> Parcel | None:
        """The next request: of the rows that wait, those with the most packets, at most so many and no more than fit,
        each with an address of its own. They are marked as sending on the disk before this returns."""
        with self._database.transaction(durable=True) as connection:
            rows: dict[bytes, tuple[int, Row]] = {}
            found = connection.execute(
                "SELECT id, address, category, protocol, packets FROM outbox WHERE state = 'waiting' "
                "ORDER BY packets DESC, id"
            )
            for number, address, category, protocol, packets in found:
                if len(rows) >= min(most, MOST_ROWS):
                    break
                # The answer tells rejected rows apart by their address.
                rows.setdefault(address, (number, Row(address, category, protocol, packets)))
            found.close()
            if not rows:
                return None
            fitting, body = first_request([row for _, row in rows.values()])
            chosen = list(rows.values())[:fitting]
            add(connection, "requests", 1)
            request = _read(connection, "requests") or 0
            connection.executemany(
                "UPDATE outbox SET state = 'sending', request = ? WHERE id = ?",
                [(request, number) for number, _ in chosen],
            )
            _write(connection, "requests_boot", self._boot())
            return Parcel(request, tuple(row for _, row in chosen), body)

    def on_wire(self, request: int) -> None:
        """Mark a request as about to be whole on the wire. One small write, without a sync: it outlives the process,
        which is all that it is for, and the last byte waits for it."""
        with self._database.transaction() as connection:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            _write(connection, "request_on_wire", request)

    def settle(self, request: int, rejected: Container[bytes], postponed: Container[bytes], now: float) -> None:
        """The request was answered, at `now` (Unix seconds): these rows were rejected, these wait again, and all
        others were accepted."""
        with self._closing() as connection:
            rows = connection.execute(
                "SELECT id, address FROM outbox WHERE state = 'sending' AND request = ?", (request,)
            ).fetchall()
            for state, addresses in (("rejected", rejected), ("waiting", postponed)):
                connection.executemany(
                    "UPDATE outbox SET state = ? WHERE id = ?",
                    [(state, number) for number, address in rows if address in addresses],
                )
            sent = _move(connection, request, "sent")
            add(connection, "reports_sent", sent)
            add(connection, "reports_rejected", sum(address in rejected for _, address in rows))
            if sent:
                _write(connection, "last_report_at", int(now))

    def release(self, request: int) -> None:
        """The request was certainly not accepted: its rows wait again."""
        with self._closing() as connection:
            _move(connection, request, "waiting")

    def unanswered(self, request: int) -> None:
        """The request may have been accepted: its rows are not sent again."""
        with self._closing() as connection:
            add(connection, "reports_unanswered", _move(connection, request, "unanswered"))

    def recover(self) -> Recovered:
        """Decide on rows that a process which is no more left as sending, before anything is taken.

        No server can have accepted a request whose last byte never left, so without the mark that precedes it a row
        waits again. Only where the machine itself came to an end since may that mark have been lost.
        """
        with self._closing() as connection:
            unanswered = 0
            boot = self._boot()
            if boot and _read(connection, "requests_boot") == boot:
                on_wire = _read(connection, "request_on_wire")
                if on_wire is not None:
                    unanswered = _move(connection, on_wire, "unanswered")
                changed = connection.execute(
                    "UPDATE outbox SET state = 'waiting', request = NULL WHERE state = 'sending'"
                )
                waiting = changed.rowcount
            else:
                changed = connection.execute("UPDATE outbox SET state = 'unanswered' WHERE state = 'sending'")
                unanswered, waiting = changed.rowcount, 0
            add(connection, "reports_unanswered", unanswered)
            return Recovered(waiting, unanswered)

    # What is known

    def quota(self, day: int, key: str) -> int | None:
        """Rows that this key may still send on this day; None where nobody said."""
        with self._database.transaction() as connection:
            return _quota(connection, day, key)

    def note_quota(self, day: int, key: str, remaining: int) -> None:
        """Remember what this key may still send on this day."""
        with self._database.transaction() as connection:
            _write(connection, "quota_day", day)
            _write(connection, "quota_key", _trace(key))
            _write(connection, "quota_remaining", remaining)

    def numbers(self, day: int, key: str) -> ReportNumbers:
        """How reporting stands."""
        with self._database.transaction() as connection:
            last = _read(connection, "last_report_at")
            return ReportNumbers(
                sent=_read(connection, "reports_sent") or 0,
                withheld=_read(connection, "reports_withheld") or 0,
                rejected=_read(connection, "reports_rejected") or 0,
                unanswered=_read(connection, "reports_unanswered") or 0,
                waiting=_count(connection, "waiting") + _count(connection, "sending"),
                quota_remaining=_quota(connection, day, key),
                last_report_at=None if last is None else float(last),
            )

    def accounted(self) -> int:
        """Every packet that was ever put into `blocked`, wherever it is now."""
        with self._database.transaction() as connection:
            purged = _read(connection, PURGED) or 0
            return _sum(connection, "blocked") + _sum(connection, "outbox") + purged

    def _turn_over(self, connection: sqlite3.Connection, day: int) -> None:
        """Rows of another day that still wait are of this one; what is done with is forgotten but for its totals."""
        days = {"day": day}
        connection.execute(_CARRY, days)
        connection.execute(f"DELETE FROM outbox WHERE {_STALE} AND state = 'waiting'", days)
        done = f"{_STALE} AND state <> 'sending'"
        add(connection, PURGED, _sum(connection, "outbox", done, days))
        connection.execute(f"DELETE FROM outbox WHERE {done}", days)

    def _drop_smallest(self, connection: sqlite3.Connection, state: str) -> int:
        """Keep the rows in this state bounded; gives how many went."""
        excess = max(0, _count(connection, state) - self._most_waiting)
        if excess:
            smallest = "id IN (SELECT id FROM outbox WHERE state = :state ORDER BY packets, id DESC LIMIT :excess)"
            which = {"state": state, "excess": excess}
            add(connection, PURGED, _sum(connection, "outbox", smallest, which))
            connection.execute(f"DELETE FROM outbox WHERE {smallest}", which)
        return excess

    @contextmanager
    def _closing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that ends a request, and with it the time in which no commit may take long."""
        with self._database.transaction() as connection:
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            yield connection

    def _boot(self) -> int:
        """The machine's present life as a number; 0 where the kernel does not tell."""
        try:
            return int(self._boot_id.read_text("ascii").replace("-", "")[:15], 16)
        except (OSError, ValueError):
            return 0


def _sources(connection: sqlite3.Connection) -> Iterator[tuple[bytes, dict[tuple[int, int], int]]]:
    """Each source with its packets, one after the other as the table has them: never all of them in memory."""
    found = connection.execute("SELECT address, protocol, port, packets FROM blocked ORDER BY address")
    for address, group in groupby(found, itemgetter(0)):
        yield address, {(protocol, port): packets for _, protocol, port, packets in group}


def _move(connection: sqlite3.Connection, request: int, state: str) -> int:
    return connection.execute(
        "UPDATE outbox SET state = ? WHERE state = 'sending' AND request = ?", (state, request)
    ).rowcount


def _count(connection: sqlite3.Connection, state: str) -> int:
    return int(connection.execute("SELECT count(*) FROM outbox WHERE state = ?", (state,)).fetchone()[0])


def _sum(
    connection: sqlite3.Connection, table: str, condition: str = "true", values: Mapping[str, object] | None = None
) -> int:
    query = f"SELECT coalesce(sum(packets), 0) FROM {table} WHERE {condition}"
    return int(connection.execute(query, dict(values or {})).fetchone()[0])


def _read(connection: sqlite3.Connection, name: str) -> int | None:
    found = connection.execute("SELECT value FROM ledger WHERE name = ?", (name,)).fetchone()
    return None if found is None else int(found[0])


def _write(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (name, value))


def _quota(connection: sqlite3.Connection, day: int, key: str) -> int | None:
    if _read(connection, "quota_day") != day or _read(connection, "quota_key") != _trace(key):
        return None
    return _read(connection, "quota_remaining")


def _trace(key: str) -> int:
    """Enough of a key to see that it is another one, and too little to know it by."""
    return zlib.crc32(key.encode())
