"""The ledger and today's sources and ports on disk, and what was blocked until it is made into reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.net.family import Family
from sikkerguard.core.services.protocols import REPLY, TCP
from sikkerguard.core.traffic.sample import UNATTRIBUTED, PacketCount
from sikkerguard.core.traffic.totals import Totals
from sikkerguard.edges.storage.database import PURGED, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from sqlite3 import Connection

    from sikkerguard.core.traffic.sample import FlowKey
    from sikkerguard.edges.storage.database import Database

# Rows of what was blocked that wait to be made into reports: of more, those sources go that sent least.
_MOST_BLOCKED = 65536
# Rows that tell a source's ports apart: more than make it a scanner, and no scanner takes up the room of others.
_MOST_PORTS = 64
_UNTOLD = (UNATTRIBUTED, UNATTRIBUTED)


class TrafficStore:
    """All that is counted, kept from one run to the next. Every method raises `RecordError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Close the database; everything committed is in it."""
        self._database.close()

    def load(self) -> tuple[Totals, list[bytes], dict[tuple[int, int], int]]:
        """The ledger, and of its day the sources and packets by (protocol, port)."""
        with self._database.transaction() as connection:
            held = dict(connection.execute("SELECT name, value FROM ledger"))
            sources = [address for (address,) in connection.execute("SELECT address FROM sources")]
            rows = connection.execute("SELECT protocol, port, packets FROM ports")
            ports = {(protocol, port): packets for protocol, port, packets in rows}
        return _ledger(held), sources, ports

    def save(
        self,
        ledger: Totals,
        blocked: Iterable[tuple[FlowKey, int]],
        fresh_sources: Sequence[bytes],
        ports: Sequence[tuple[tuple[int, int], int]],
        *,
        new_day: bool,
        unfiled: int = 0,
    ) -> None:
        """Keep all of this, or nothing of it; with `new_day`, sources and ports begin anew. `unfiled` are packets of
        sources that are known, and that `blocked` had no room for. Replies are in no report, so that they have no place
        among what awaits one: they are filed as done with at once."""
        blocked = list(blocked)
        unfiled += sum(packets for (_, protocol, _), packets in blocked if protocol == REPLY)
        blocked = [each for each in blocked if each[0][1] != REPLY]
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO ledger VALUES (?, ?)", _entries(ledger))
            _put(connection, blocked)
            for address in {address for (address, _, _), _ in blocked}:
                _fold(connection, address)
            _evict(connection)
            add(connection, PURGED, unfiled)
            if new_day:
                connection.execute("DELETE FROM sources")
            connection.executemany("INSERT OR IGNORE INTO sources VALUES (?)", ((each,) for each in fresh_sources))
            connection.execute("DELETE FROM ports")
            connection.executemany("INSERT INTO ports VALUES (?, ?, ?)", ((*port, packets) for port, packets in ports))


def _fold(connection: Connection, address: bytes) -> None:
    """Put the packets to a source's less busy ports, where there are too many, into the row that names no port.

    TCP goes before all else, whatever its packets: a report is made from it, and a flood of forged datagrams must not
    be a way to be rid of it.
    """
    rows = connection.execute(
        "SELECT protocol, port, packets FROM blocked WHERE address = ? AND (protocol, port) <> (?, ?)",
        (address, *_UNTOLD),
    ).fetchall()
    if len(rows) <= _MOST_PORTS:
        return
    rows.sort(key=lambda row: (row[0] != TCP, -row[2], row[1], row[0]))
    less = rows[_MOST_PORTS:]
    connection.executemany(
        "DELETE FROM blocked WHERE address = ? AND protocol = ? AND port = ?",
        ((address, protocol, port) for protocol, port, _ in less),
    )
    _put(connection, [((address, *_UNTOLD), sum(packets for _, _, packets in less))])


def _evict(connection: Connection) -> None:
    """Of too many rows keep half: whole sources go, those with the fewest packets first."""
    (rows,) = connection.execute("SELECT count(*) FROM blocked").fetchone()
    if rows <= _MOST_BLOCKED:
        return
    gone, gone_packets = list[tuple[bytes]](), 0
    sources = connection.execute(
        "SELECT address, count(*), sum(packets) FROM blocked GROUP BY address ORDER BY sum(packets), count(*) DESC"
    )
    for address, ports, packets in sources:
        if rows <= _MOST_BLOCKED // 2:
            break
        gone.append((address,))
        rows -= ports
        gone_packets += packets
    sources.close()
    connection.executemany("DELETE FROM blocked WHERE address = ?", gone)
    add(connection, PURGED, gone_packets)
    add(connection, "reports_dropped", len(gone))


def _put(connection: Connection, blocked: Iterable[tuple[FlowKey, int]]) -> None:
    connection.executemany(
        "INSERT INTO blocked VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET packets = packets + excluded.packets",
        ((*key, packets) for key, packets in blocked),
    )


def _entries(ledger: Totals) -> list[tuple[str, int]]:
    counts = {"dropped": ledger.dropped, "today": ledger.dropped_today}
    counts |= {f"counter_{family.label}": count for family, count in ledger.counters.items()}
    entries = [("day", ledger.day), ("named", ledger.named), ("told", ledger.told), ("replies", ledger.replies)]
    for name, count in counts.items():
        entries += [(f"{name}_packets", count.packets), (f"{name}_octets", count.octets)]
    return entries


def _ledger(held: dict[str, int]) -> Totals:
    def count(name: str) -> PacketCount:
        return PacketCount(held.get(f"{name}_packets", 0), held.get(f"{name}_octets", 0))

    return Totals(
        dropped=count("dropped"),
        day=held.get("day", 0),
        dropped_today=count("today"),
        named=held.get("named", 0),
        told=held.get("told", 0),
        replies=held.get("replies", 0),
        counters={
            family: count(f"counter_{family.label}") for family in Family if f"counter_{family.label}_packets" in held
        },
    )
