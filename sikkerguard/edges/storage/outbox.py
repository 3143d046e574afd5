"""Report rows that wait, are on their way, or are done with, in the database of records.

SikkerAPI counts a row that is sent twice as two, so a row leaves here once. It is marked as sending, on the disk,
before its request begins, and the request is marked as on the wire before its last byte leaves. By these two marks a
new process knows what the one before it, killed at any point, may have completed. Rows are waiting, sending, sent,
rejected, unanswered (they may have been accepted), or withheld (a source that anyone can forge, or that only the local
file has; without a category).

The entries of the lists take turns, however many sources each of them covers: every entry's largest row goes before any
second one, and rows that went today were the first turns of theirs. Where too many rows wait, the last ones in this
order are dropped.
"""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.net.family import Family
from sikkerguard.core.reports.outcomes import LeftUnanswered, QuotaNoted, Recovered, Released, ReportStats, Settled
from sikkerguard.core.reports.rows import MAX_ROWS, ReportBatch, Row, first_request
from sikkerguard.core.reports.screen import Cover, Leader, fate_of, source_of
from sikkerguard.edges.storage.database import PURGED, add, purge, read, read_total, write

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

    from sikkerguard.core.reports.outcomes import Outcome
    from sikkerguard.core.reports.screen import Fate, MakeRow, Packets, Screen
    from sikkerguard.edges.storage.database import Database

# Rows that may wait, and sources withheld that are kept to be counted once a day: about five megabytes of each.
MAX_WAITING = 50_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Pages in the log from which a commit moves them into the file, SQLite's own figure. That syncs the disk, so the
# commit that stands between a mark and the last byte does not do it.
_CHECKPOINT_PAGES = 1000
# Rows of a day that is over. Rows dated tomorrow are kept (the clock was set back across midnight); rows dated later
# are stale (the clock was wrong).
_STALE = "(day < :day OR day > :day + 1)"
# Where a clock was set back across midnight, tomorrow's row of a source and category stands for today's too.
_ROW_DAY = """:day + EXISTS (
    SELECT 1 FROM outbox AS later WHERE later.day = :day + 1 AND later.source = {0}source
    AND later.category = {0}category
)"""
_COLUMNS = "day, source, category, address, leading, entry, own, protocol, packets, state, seen"
# The address that a row names changes no more once the row is sent.
_LEADS = """state = 'waiting'
    AND (excluded.leading > leading OR (excluded.leading = leading AND excluded.address <= address))"""
_JOIN = f"""ON CONFLICT (day, source, category) DO UPDATE SET
    packets = packets + excluded.packets, seen = max(seen, excluded.seen),
    address = CASE WHEN {_LEADS} THEN excluded.address ELSE address END,
    entry = CASE WHEN {_LEADS} THEN excluded.entry ELSE entry END,
    own = CASE WHEN {_LEADS} THEN excluded.own ELSE own END,
    leading = CASE WHEN {_LEADS} THEN excluded.leading ELSE leading END
"""
_ADD = f"""
INSERT INTO outbox ({_COLUMNS}) VALUES (
    {_ROW_DAY.format(":")}, :source, :category, :address, :leading, :entry, :own, :protocol, :packets, :state, :day
) {_JOIN}
"""
_MOVES = f"state = 'waiting' AND day <> {_ROW_DAY.format('outbox.')} AND day <> :day + 1"
_CARRY = f"""
INSERT INTO outbox ({_COLUMNS})
SELECT {_ROW_DAY.format("outbox.")}, source, category, address, leading, entry, own, protocol, packets, state,
    min(seen, :day) FROM outbox WHERE {_MOVES} ORDER BY day, id {_JOIN}
"""
# Which turn of its entry a row has; rows that are no longer waiting had the first ones.
_TURNS = """(
    SELECT *, row_number() OVER (PARTITION BY entry ORDER BY state = 'waiting', packets DESC, id) AS turn
    FROM outbox WHERE state <> 'withheld'
)"""


class Outbox:
    """The `ReportOutbox` of a real service. Every method is one transaction, all or nothing, and raises `RecordError`.
    Days count from 1970-01-01, UTC."""

    def __init__(self, database: Database, *, boot_id: Path = _BOOT_ID, max_waiting: int = MAX_WAITING) -> None:
        self._database = database
        self._boot_id = boot_id
        self._max_waiting = max_waiting

    # What comes in

    def gather(self, day: int, make_row: MakeRow, screen: Screen) -> None:
        """Make rows of all that was blocked. `make_row` gets a source (packed) and its packets by (IP protocol, port),
        and returns None where nothing is to be reported; `screen` says who may be reported now. Rows that wait and may
        not be sent any more are dropped, and counted as withheld."""
        with self._database.transaction() as connection:
            self._carry_to_day(connection, day)
            known = _count(connection, "withheld")
            stopped, beside = self._screen_rows(connection, screen), 0
            for source, members in _sources(connection):
                covers = partial(_cover_known, connection, day)
                fate = fate_of(members, make_row, screen, covers, _waiting(connection, day, source))
                stopped, beside = stopped + fate.allowed, beside + fate.beside
                _file(connection, day, source, fate)
            connection.execute("DELETE FROM blocked")
            add(connection, PURGED, beside)
            add(connection, "reports_withheld", stopped + _count(connection, "withheld") - known)
            # After what came in, since that makes a row fresh again.
            old = purge(connection, "outbox", "state = 'waiting' AND seen < :day - 1", day=day)
            add(connection, "reports_dropped", old + self._drop_last(connection))
            self._drop_smallest_withheld(connection)

    def discard(self) -> None:
        """Forget what was blocked and what waits, since nothing is to be reported; its packets stay counted. Rows that
        are being sent or were sent stay, so that nothing is sent twice where reporting is enabled again."""
        with self._database.transaction() as connection:
            purge(connection, "blocked")
            purge(connection, "outbox", "state = 'waiting'")

    # What goes out

    def take(self, most: int, screen: Screen) -> ReportBatch | None:
        """The next request: of the rows that wait, those whose turn it is, the largest first, at most so many and no
        more than fit, each with an address of its own. They are marked as sending on the disk before this returns;
        rows that must not be sent now by this screen are dropped in the same transaction, and counted as withheld.
        None where nothing waits."""
        with self._database.transaction(durable=True) as connection:
            rows: dict[bytes, tuple[int, Row]] = {}
            stopped = list[int]()
            found = connection.execute(
                f"SELECT id, address, category, protocol, packets, entry, own FROM {_TURNS} WHERE state = 'waiting' "
                "ORDER BY turn, packets DESC, id"
            )
            for number, address, category, protocol, packets, entry, own in found:
                if len(rows) >= min(most, MAX_ROWS):
                    break
                # The answer tells rejected rows apart by their address.
                if address in rows:
                    continue
                if screen.stops(address, Cover(entry, bool(own))):
                    stopped.append(number)
                else:
                    rows[address] = number, Row(address, category, protocol, packets)
            found.close()
            add(connection, "reports_withheld", _drop(connection, stopped))
            if not rows:
                return None
            fitting, body = first_request([row for _, row in rows.values()])
            chosen = list(rows.values())[:fitting]
            request = (read(connection, "requests") or 0) + 1
            write(connection, "requests", request)
            connection.executemany(
                "UPDATE outbox SET state = 'sending', request = ? WHERE id = ?",
                [(request, number) for number, _ in chosen],
            )
            write(connection, "requests_boot", self._boot())
            return ReportBatch(request, tuple(row for _, row in chosen), body)

    def on_wire(self, request: int) -> None:
        """Mark a request whose last byte is about to leave. One small write, without a sync: it has to survive the
        death of the process only, and the last byte waits for it."""
        with self._database.transaction() as connection:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            write(connection, "request_on_wire", request)

    def apply(self, outcome: Outcome) -> None:
        """Record what became of a request, or what an answer said of the quota. Once more changes nothing."""
        if isinstance(outcome, QuotaNoted):
            with self._database.transaction() as connection:
                _note_quota(connection, outcome)
            return
        # What ends a request ends the time in which no commit may take long.
        with self._ending() as connection:
            match outcome:
                case Settled():
                    _settle(connection, outcome)
                case Released():
                    _move(connection, outcome.request, "waiting")
                case LeftUnanswered():
                    moved = _move(connection, outcome.request, "unanswered")
                    add(connection, "reports_unanswered", moved)

    def recover(self) -> Recovered:
        """Resolve the rows that a dead process left as sending; to be called before anything is taken.

        No server can have accepted a request whose last byte never left, so without the mark that precedes it a row
        waits again. Only where the machine was started anew since then may that mark have been lost.
        """
        with self._ending() as connection:
            unanswered = 0
            boot = self._boot()
            if boot and read(connection, "requests_boot") == boot:
                on_wire = read(connection, "request_on_wire")
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

    def quota(self, day: int, key: str) -> tuple[int | None, int | None]:
        """Rows that may still be sent on this day with this key, and on a whole day by the last answer; None where
        nobody said."""
        with self._database.transaction() as connection:
            is_known = read(connection, "quota_limit_key") == _key_fingerprint(key)
            return _quota(connection, day, key), read(connection, "quota_limit") if is_known else None

    def stats(self, day: int, key: str) -> ReportStats:
        """How reporting stands."""
        with self._database.transaction() as connection:
            last = read(connection, "last_report_at")
            return ReportStats(
                sent=read_total(connection, "reports_sent"),
                withheld=read_total(connection, "reports_withheld"),
                rejected=read_total(connection, "reports_rejected"),
                unanswered=read_total(connection, "reports_unanswered"),
                waiting=_count(connection, "waiting") + _count(connection, "sending"),
                quota_remaining=_quota(connection, day, key),
                last_report_at=None if last is None else float(last),
                dropped=read_total(connection, "reports_dropped"),
            )

    def _carry_to_day(self, connection: sqlite3.Connection, day: int) -> None:
        """Move rows of another day that still wait to this one; forget all others of it but for their totals."""
        days = {"day": day}
        connection.execute(_CARRY, days)
        connection.execute(f"DELETE FROM outbox WHERE {_MOVES}", days)
        purge(connection, "outbox", f"{_STALE} AND state <> 'sending'", day=day)

    def _screen_rows(self, connection: sqlite3.Connection, screen: Screen) -> int:
        """Drop the rows that wait and must not be sent now, and note which entry covers the others now. Returns how
        many were dropped."""
        gone, changed = list[int](), list[tuple[str, bool, int]]()
        found = connection.execute("SELECT id, address, state, entry, own FROM outbox WHERE state <> 'withheld'")
        for number, address, state, entry, own in found:
            before = Cover(entry, bool(own))
            if state == "waiting" and screen.stops(address, before):
                gone.append(number)
            elif (cover := screen.cover(address)) is not None and cover != before:
                changed.append((cover.entry, cover.own, number))
        connection.executemany("UPDATE outbox SET entry = ?, own = ? WHERE id = ?", changed)
        return _drop(connection, gone)

    def _drop_last(self, connection: sqlite3.Connection) -> int:
        """Where too many rows wait, drop those that would be sent last. Returns how many."""
        excess = max(0, _count(connection, "waiting") - self._max_waiting)
        last = f"SELECT id FROM {_TURNS} WHERE state = 'waiting' ORDER BY turn DESC, packets, id DESC LIMIT :excess"
        return purge(connection, "outbox", f"id IN ({last})", excess=excess) if excess else 0

    def _drop_smallest_withheld(self, connection: sqlite3.Connection) -> None:
        excess = max(0, _count(connection, "withheld") - self._max_waiting)
        smallest = "SELECT id FROM outbox WHERE state = 'withheld' ORDER BY packets, id DESC LIMIT :excess"
        purge(connection, "outbox", f"id IN ({smallest})", excess=excess)

    @contextmanager
    def _ending(self) -> Iterator[sqlite3.Connection]:
        """A transaction that ends a request; from then on a commit may take long again."""
        with self._database.transaction() as connection:
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            yield connection

    def _boot(self) -> int:
        """A number that identifies the machine's present boot; 0 where the kernel does not say."""
        try:
            return int(self._boot_id.read_text("ascii").replace("-", "")[:15], 16)
        except (OSError, ValueError):
            return 0


def _sources(connection: sqlite3.Connection) -> Iterator[tuple[bytes, dict[bytes, Packets]]]:
    """Each source with the packets of its addresses, one source at a time, so that they are never all in memory."""
    found = connection.execute("SELECT address, protocol, port, packets FROM blocked ORDER BY address")
    for source, rows in groupby(found, lambda row: source_of(row[0])):
        members = groupby(rows, itemgetter(0))
        yield (
            source,
            {
                address: {(protocol, port): packets for _, protocol, port, packets in group}
                for address, group in members
            },
        )


def _waiting(connection: sqlite3.Connection, day: int, source: bytes) -> dict[str, Leader]:
    """The leaders of the rows of this source that wait, by category. A source of IPv4 has one address only."""
    if len(source) == Family.V4.size:
        return {}
    found = connection.execute(
        "SELECT category, address, leading, entry, own FROM outbox "
        "WHERE day IN (:day, :day + 1) AND source = :source AND +state = 'waiting'",
        {"day": day, "source": source},
    )
    return {
        category: Leader(address, leading, Cover(entry, bool(own))) for category, address, leading, entry, own in found
    }


def _cover_known(connection: sqlite3.Connection, day: int, address: bytes) -> Cover | None:
    """The last entry that covered this address, by its rows."""
    found = connection.execute(
        "SELECT entry, own FROM outbox "
        "WHERE day IN (:day, :day + 1) AND source = :source AND address = :address AND state <> 'withheld' "
        "ORDER BY seen DESC, id DESC LIMIT 1",
        {"day": day, "source": source_of(address), "address": address},
    ).fetchone()
    return None if found is None else Cover(found[0], bool(found[1]))


def _file(connection: sqlite3.Connection, day: int, source: bytes, fate: Fate) -> None:
    """Add what is to be reported, and what is withheld, to the rows of this source."""
    values = {"day": day, "source": source}
    if fate.row is not None and fate.leader is not None:
        row, cover = fate.row, fate.leader.cover
        values |= {"category": row.category, "address": row.address, "leading": fate.leader.packets}
        values |= {"entry": cover.entry, "own": cover.own, "protocol": row.protocol, "packets": row.packets}
        connection.execute(_ADD, {**values, "state": "waiting"})
    if fate.withheld:
        values |= {"category": "", "address": source, "leading": 0, "entry": "", "own": 0, "protocol": ""}
        connection.execute(_ADD, {**values, "packets": fate.withheld, "state": "withheld"})


def _drop(connection: sqlite3.Connection, numbers: Iterable[int]) -> int:
    """Delete rows by their numbers. Returns how many there were."""
    return sum(purge(connection, "outbox", "id = :id", id=number) for number in numbers)


def _settle(connection: sqlite3.Connection, outcome: Settled) -> None:
    found = connection.execute(
        "SELECT id, address FROM outbox WHERE state = 'sending' AND request = ?", (outcome.request,)
    ).fetchall()
    for state, addresses in (("rejected", outcome.rejected), ("waiting", outcome.postponed)):
        connection.executemany(
            "UPDATE outbox SET state = ? WHERE id = ?",
            [(state, number) for number, address in found if address in addresses],
        )
    sent = _move(connection, outcome.request, "sent")
    add(connection, "reports_sent", sent)
    add(connection, "reports_rejected", sum(address in outcome.rejected for _, address in found))
    if sent:
        write(connection, "last_report_at", int(outcome.at))


def _note_quota(connection: sqlite3.Connection, outcome: QuotaNoted) -> None:
    fingerprint = _key_fingerprint(outcome.key)
    write(connection, "quota_day", outcome.day)
    write(connection, "quota_key", fingerprint)
    write(connection, "quota_remaining", outcome.remaining)
    if outcome.limit is not None:
        write(connection, "quota_limit_key", fingerprint)
        write(connection, "quota_limit", outcome.limit)


def _move(connection: sqlite3.Connection, request: int, state: str) -> int:
    """Give all rows of this request that are being sent another state. Returns how many there were."""
    return connection.execute(
        "UPDATE outbox SET state = ? WHERE state = 'sending' AND request = ?", (state, request)
    ).rowcount


def _count(connection: sqlite3.Connection, state: str) -> int:
    return int(connection.execute("SELECT count(*) FROM outbox WHERE state = ?", (state,)).fetchone()[0])


def _quota(connection: sqlite3.Connection, day: int, key: str) -> int | None:
    if read(connection, "quota_day") != day or read(connection, "quota_key") != _key_fingerprint(key):
        return None
    return read(connection, "quota_remaining")


def _key_fingerprint(key: str) -> int:
    """A checksum that tells keys apart and from which no key can be found out."""
    return zlib.crc32(key.encode())
