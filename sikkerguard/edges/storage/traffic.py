"""What was counted, on disk: totals, the day's sources and ports, and blocked flows until reports are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import REPLY, TCP
from sikkerguard.core.traffic.records import SavedTraffic
from sikkerguard.core.traffic.sample import UNATTRIBUTED, PacketCount
from sikkerguard.core.traffic.totals import Totals
from sikkerguard.edges.storage.database import PURGED, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from sqlite3 import Connection

    from sikkerguard.core.traffic.records import PendingTraffic
    from sikkerguard.core.traffic.sample import FlowKey
    from sikkerguard.edges.storage.database import Database

# Rows of blocked flows that wait to be made into reports: of more, those sources go that sent least.
_MAX_BLOCKED_ROWS = 65536
# Rows that tell a source's ports apart: more than make it a scanner, and no scanner takes up the room of others.
_MAX_ROWS_PER_SOURCE = 64
_NO_PORT = (UNATTRIBUTED, UNATTRIBUTED)


class TrafficStore:
    """The `TrafficRecords` in a database: every method is one transaction, and raises `RecordError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Close the database; everything committed is in it."""
        self._database.close()

    def load(self) -> SavedTraffic:
        """What earlier runs have counted."""
        with self._database.transaction() as connection:
            totals = dict(connection.execute("SELECT name, value FROM totals"))
            sources = frozenset(address for (address,) in connection.execute("SELECT address FROM sources"))
            rows = connection.execute("SELECT protocol, port, packets FROM ports")
            ports = {(protocol, port): packets for protocol, port, packets in rows}
        return SavedTraffic(_totals(totals), sources, ports)

    def save(self, pending: PendingTraffic) -> None:
        """Add all of this, or nothing of it. Replies are in no report, so they have no place among the flows that wait
        for one: they are filed as done with at once."""
        flows = [(key, packets) for key, packets in pending.flows.items() if key[1] != REPLY]
        replies = sum(packets for (_, protocol, _), packets in pending.flows.items() if protocol == REPLY)
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO totals VALUES (?, ?)", _rows(pending.totals))
            _insert(connection, flows)
            for address in {address for (address, _, _), _ in flows}:
                _merge_least_ports(connection, address)
            _evict_least_sources(connection)
            add(connection, PURGED, pending.overflow + replies)
            if pending.new_day:
                connection.execute("DELETE FROM sources")
            connection.executemany("INSERT OR IGNORE INTO sources VALUES (?)", ((each,) for each in pending.sources))
            connection.execute("DELETE FROM ports")
            connection.executemany(
                "INSERT INTO ports VALUES (?, ?, ?)", ((*port, packets) for port, packets in pending.ports)
            )


def _merge_least_ports(connection: Connection, address: bytes) -> None:
    """Add the packets of a source's less busy ports, where there are too many, to the row that names no port.

    TCP goes before all else, whatever its packets: a report is made from it, and a flood of forged datagrams must not
    be a way to be rid of it.
    """
    rows = connection.execute(
        "SELECT protocol, port, packets FROM blocked WHERE address = ? AND (protocol, port) <> (?, ?)",
        (address, *_NO_PORT),
    ).fetchall()
    if len(rows) <= _MAX_ROWS_PER_SOURCE:
        return
    rows.sort(key=lambda row: (row[0] != TCP, -row[2], row[1], row[0]))
    least = rows[_MAX_ROWS_PER_SOURCE:]
    connection.executemany(
        "DELETE FROM blocked WHERE address = ? AND protocol = ? AND port = ?",
        ((address, protocol, port) for protocol, port, _ in least),
    )
    _insert(connection, [((address, *_NO_PORT), sum(packets for _, _, packets in least))])


def _evict_least_sources(connection: Connection) -> None:
    """Of too many rows keep half: whole sources go, those with the fewest packets first."""
    (rows,) = connection.execute("SELECT count(*) FROM blocked").fetchone()
    if rows <= _MAX_BLOCKED_ROWS:
        return
    gone, gone_packets = list[tuple[bytes]](), 0
    sources = connection.execute(
        "SELECT address, count(*), sum(packets) FROM blocked GROUP BY address ORDER BY sum(packets), count(*) DESC"
    )
    for address, ports, packets in sources:
        if rows <= _MAX_BLOCKED_ROWS // 2:
            break
        gone.append((address,))
        rows -= ports
        gone_packets += packets
    sources.close()
    connection.executemany("DELETE FROM blocked WHERE address = ?", gone)
    add(connection, PURGED, gone_packets)
    add(connection, "reports_dropped", len(gone))


def _insert(connection: Connection, flows: Iterable[tuple[FlowKey, int]]) -> None:
    connection.executemany(
        "INSERT INTO blocked VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET packets = packets + excluded.packets",
        ((*key, packets) for key, packets in flows),
    )


def _rows(totals: Totals) -> list[tuple[str, int]]:
    """The totals as (name, value)."""
    counts = {"dropped": totals.dropped, "today": totals.dropped_today}
    counts |= {f"counter_{family.label}": count for family, count in totals.counters.items()}
    rows = [("day", totals.day), ("attributed", totals.attributed), ("logged", totals.logged)]
    rows.append(("replies", totals.replies))
    for name, count in counts.items():
        rows += [(f"{name}_packets", count.packets), (f"{name}_bytes", count.bytes)]
    return rows


def _totals(values: Mapping[str, int]) -> Totals:
    """The totals from values by name."""

    def count(name: str) -> PacketCount:
        return PacketCount(values.get(f"{name}_packets", 0), values.get(f"{name}_bytes", 0))

    return Totals(
        dropped=count("dropped"),
        day=values.get("day", 0),
        dropped_today=count("today"),
        attributed=values.get("attributed", 0),
        logged=values.get("logged", 0),
        replies=values.get("replies", 0),
        counters={
            family: count(f"counter_{family.label}") for family in Family if f"counter_{family.label}_packets" in values
        },
    )
