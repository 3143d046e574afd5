"""The ledger and today's sources and ports on disk, and what was blocked until it is made into reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.ledger import Ledger
from sikkerguard.core.model import Count, Family
from sikkerguard.edges.database import PURGED, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from sqlite3 import Connection

    from sikkerguard.core.model import Key
    from sikkerguard.edges.database import Database

# Rows of what was blocked that wait to be made into reports: of more, the half with the fewest packets goes.
_MOST_BLOCKED = 65536


class Counts:
    """All that is counted, kept from one run to the next. Every method raises `RecordError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> tuple[Ledger, list[bytes], dict[tuple[int, int], int]]:
        """The ledger, and of its day the sources and packets by (protocol, port)."""
        with self._database.transaction() as connection:
            held = dict(connection.execute("SELECT name, value FROM ledger"))
            sources = [address for (address,) in connection.execute("SELECT address FROM sources")]
            rows = connection.execute("SELECT protocol, port, packets FROM ports")
            ports = {(protocol, port): packets for protocol, port, packets in rows}
        return _ledger(held), sources, ports

    def save(
        self,
        ledger: Ledger,
        blocked: Iterable[tuple[Key, int]],
        fresh_sources: Sequence[bytes],
        ports: Sequence[tuple[tuple[int, int], int]],
        *,
        new_day: bool,
    ) -> None:
        """Keep all of this, or nothing of it; with `new_day`, sources and ports begin anew."""
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO ledger VALUES (?, ?)", _entries(ledger))
            connection.executemany(
                "INSERT INTO blocked VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET packets = packets + excluded.packets",
                ((*key, packets) for key, packets in blocked),
            )
            _limit(connection)
            if new_day:
                connection.execute("DELETE FROM sources")
            connection.executemany("INSERT OR IGNORE INTO sources VALUES (?)", ((each,) for each in fresh_sources))
            connection.execute("DELETE FROM ports")
            connection.executemany("INSERT INTO ports VALUES (?, ?, ?)", ((*port, packets) for port, packets in ports))


def _limit(connection: Connection) -> None:
    (rows,) = connection.execute("SELECT COUNT(*) FROM blocked").fetchone()
    if rows <= _MOST_BLOCKED:
        return
    smallest = "SELECT address, protocol, port FROM blocked ORDER BY packets LIMIT ?"
    gone = connection.execute(
        f"DELETE FROM blocked WHERE (address, protocol, port) IN ({smallest}) RETURNING packets", (rows // 2,)
    )
    add(connection, PURGED, sum(packets for (packets,) in gone))


def _entries(ledger: Ledger) -> list[tuple[str, int]]:
    counts = {"dropped": ledger.dropped, "today": ledger.dropped_today}
    counts |= {f"counter_{family.label}": count for family, count in ledger.counters.items()}
    entries = [("day", ledger.day), ("named", ledger.named), ("told", ledger.told)]
    for name, count in counts.items():
        entries += [(f"{name}_packets", count.packets), (f"{name}_octets", count.octets)]
    return entries


def _ledger(held: dict[str, int]) -> Ledger:
    def count(name: str) -> Count:
        return Count(held.get(f"{name}_packets", 0), held.get(f"{name}_octets", 0))

    return Ledger(
        dropped=count("dropped"),
        day=held.get("day", 0),
        dropped_today=count("today"),
        named=held.get("named", 0),
        told=held.get("told", 0),
        counters={family: count(f"counter_{family.label}") for family in Family},
    )
