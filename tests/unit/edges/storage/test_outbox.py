"""The outbox on a real file: each row goes out once, no packet is lost from the account, and nothing grows."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.lists.lookup import Listing
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.reports.outcomes import LeftUnanswered, QuotaNoted, Recovered, Released, ReportStats, Settled
from sikkerguard.core.reports.rows import MAX_ROWS, Row, row_of
from sikkerguard.core.reports.screen import Screen
from sikkerguard.core.traffic.records import PendingTraffic
from sikkerguard.edges.storage.database import PURGED, Database, read_total, total
from sikkerguard.edges.storage.outbox import Outbox
from sikkerguard.edges.storage.traffic import TrafficStore
from sikkerguard.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sikkerguard.core.reports.rows import ReportBatch

DAY = 20_000
NOW = DAY * 86_400 + 43_200.5
KEY = "sk_free_demo"
SSH, HTTP, DNS, UNTOLD = (6, 22), (6, 80), (17, 53), (-1, -1)
BLOCK = "INSERT INTO blocked VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET packets = packets + excluded.packets"

make_row = partial(row_of, port_map={}, spoofable=False)


def source(number: int, host: int = 0) -> bytes:
    """An address of the /64 that has this number."""
    return (0x20010DB8 << 96 | number << 64 | host).to_bytes(16, "big")


def listed_alone(address: bytes) -> Listing:
    """Each /64 has an entry of its own."""
    return Listing(f"{address[:8].hex()}/64", frozenset({"SikkerAPI"}))


def screen_of(
    *allowed: bytes, listing: Callable[[bytes], Listing | None] = listed_alone, custom: bool = False
) -> Screen:
    """Allows these addresses."""
    entries = (
        AllowEntry(Family.V6, Prefix(int.from_bytes(address, "big"), 128), "SIKKER_WHITELIST") for address in allowed
    )
    return Screen(entries, listing, custom=custom)


ANYONE = screen_of()


def accounted(outbox: Outbox) -> int:
    """All packets that were ever put into `blocked`, wherever they are counted now."""
    with outbox._database.transaction() as connection:
        return total(connection, "blocked") + total(connection, "outbox") + read_total(connection, PURGED)


def open_now(database: Database) -> None:
    """As the first need does it."""
    with database.transaction():
        pass


@contextmanager
def opened(directory: Path) -> Iterator[Database]:
    database = Database(directory)
    open_now(database)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture(name="database")
def _database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


@pytest.fixture(name="outbox")
def _outbox(database: Database) -> Outbox:
    return Outbox(database)


def block(database: Database, blocked: Mapping[int, Mapping[tuple[int, int], int]]) -> None:
    """{number of a source: {(protocol, port): packets}}, as counting puts it there."""
    with database.transaction() as connection:
        for number, packets in blocked.items():
            connection.executemany(BLOCK, [(source(number), *key, count) for key, count in packets.items()])


def states(database: Database) -> dict[tuple[int, str], tuple[str, int, int]]:
    """{(source, category): (state, packets, day)}"""
    with database.transaction() as connection:
        found = connection.execute("SELECT address, category, state, packets, day FROM outbox")
        return {(int.from_bytes(row[0][4:8], "big"), row[1]): row[2:] for row in found}


def ledger(database: Database) -> dict[str, int]:
    with database.transaction() as connection:
        return dict(connection.execute("SELECT * FROM totals UNION ALL SELECT * FROM meta"))


def taken(outbox: Outbox, most: int = MAX_ROWS) -> ReportBatch:
    batch = outbox.take(most, ANYONE)
    assert batch is not None
    return batch


def settled(request: int, rejected: Iterable[bytes] = (), postponed: Iterable[bytes] = ()) -> Settled:
    return Settled(request, (), dict.fromkeys(rejected, "invalid"), frozenset(postponed), NOW)


def numbers(batch: ReportBatch) -> list[int]:
    return [int.from_bytes(row.address[4:8], "big") for row in batch.rows]


# What comes in


def test_what_was_blocked_becomes_rows_and_is_no_longer_there(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5, DNS: 7}, 2: {DNS: 3}, 3: {HTTP: 1, UNTOLD: 9}})
    outbox.gather(DAY, make_row, ANYONE)
    assert states(database) == {
        (1, "brute_force"): ("waiting", 5, DAY),
        (2, ""): ("withheld", 3, DAY),
        (3, "web_exploit"): ("waiting", 10, DAY),
    }
    assert accounted(outbox) == 25
    assert outbox.stats(DAY, KEY) == ReportStats(withheld=1, waiting=2)
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM blocked").fetchone() == (0,)


def test_a_source_has_one_row_a_day_for_a_category(database: Database, outbox: Outbox) -> None:
    for number in range(3):
        block(database, {1: {SSH: 5}, 2: {DNS: 1}, 3: {HTTP if number else SSH: 1}})
        outbox.gather(DAY, make_row, ANYONE)
    assert states(database) == {
        (1, "brute_force"): ("waiting", 15, DAY),
        (2, ""): ("withheld", 3, DAY),
        (3, "brute_force"): ("waiting", 1, DAY),
        (3, "web_exploit"): ("waiting", 2, DAY),
    }
    assert outbox.stats(DAY, KEY).withheld == 1


@pytest.mark.parametrize("fate", ["sent", "rejected", "unanswered"])
def test_what_a_source_sends_after_its_report_is_added_to_the_row_and_not_reported(
    database: Database, outbox: Outbox, fate: str
) -> None:
    block(database, {1: {SSH: 5}})
    outbox.gather(DAY, make_row, ANYONE)
    batch = taken(outbox)
    if fate == "unanswered":
        outbox.apply(LeftUnanswered(batch.request))
    else:
        outbox.apply(settled(batch.request, {source(1)} if fate == "rejected" else set()))
    block(database, {1: {SSH: 100}})
    outbox.gather(DAY, make_row, ANYONE)
    assert states(database) == {(1, "brute_force"): (fate, 105, DAY)}
    assert outbox.take(10, ANYONE) is None


def test_a_new_day_carries_what_waits_and_forgets_what_is_done_with(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 50}, 2: {SSH: 40}, 3: {SSH: 30}, 4: {SSH: 20}, 5: {SSH: 10}, 6: {DNS: 5}, 7: {SSH: 1}})
    outbox.gather(DAY, make_row, ANYONE)
    batch = taken(outbox, 3)
    outbox.apply(settled(batch.request, {source(2)}, {source(3)}))
    outbox.apply(LeftUnanswered(taken(outbox, 1).request))
    block(database, {1: {SSH: 3}, 5: {SSH: 3}})
    outbox.gather(DAY + 1, make_row, ANYONE)
    assert states(database) == {
        (1, "brute_force"): ("waiting", 3, DAY + 1),
        (4, "brute_force"): ("waiting", 20, DAY + 1),
        (5, "brute_force"): ("waiting", 13, DAY + 1),
        (7, "brute_force"): ("waiting", 1, DAY + 1),
    }
    assert ledger(database)["filed_packets_purged"] == 50 + 40 + 30 + 5
    assert accounted(outbox) == 162
    assert outbox.stats(DAY + 1, KEY) == ReportStats(
        sent=1, withheld=1, rejected=1, unanswered=1, waiting=4, last_report_at=float(int(NOW))
    )


def test_a_row_that_comes_back_over_midnight_joins_the_one_of_today(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5}})
    outbox.gather(DAY, make_row, ANYONE)
    batch = taken(outbox)
    block(database, {1: {SSH: 3}})
    outbox.gather(DAY + 1, make_row, ANYONE)
    assert len(states(database)) == 1  # the request's own is still on its way, and is seen below
    outbox.apply(Released(batch.request))
    outbox.gather(DAY + 1, make_row, ANYONE)
    assert states(database) == {(1, "brute_force"): ("waiting", 8, DAY + 1)}
    assert len(taken(outbox).rows) == 1


def test_what_came_in_long_ago_is_not_reported_as_if_it_were_new(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5}, 2: {SSH: 4}, 3: {SSH: 3, HTTP: 1}})
    outbox.gather(DAY, make_row, ANYONE)
    # The service asks each day, and each day there is no quota, or no network.
    outbox.gather(DAY + 1, make_row, ANYONE)
    block(database, {2: {SSH: 1}, 3: {HTTP: 9}})
    outbox.gather(DAY + 2, make_row, ANYONE)
    assert states(database) == {
        (2, "brute_force"): ("waiting", 5, DAY + 2),
        (3, "web_exploit"): ("waiting", 9, DAY + 2),
    }
    assert outbox.stats(DAY + 2, KEY) == ReportStats(waiting=2, dropped=2)
    outbox.gather(DAY + 3, make_row, ANYONE)
    assert numbers(taken(outbox)) == [3, 2]
    assert accounted(outbox) == 23


@pytest.mark.parametrize("away", [2, 30, 3650])
def test_a_host_that_was_off_for_days_reports_what_comes_now(database: Database, outbox: Outbox, away: int) -> None:
    block(database, {1: {SSH: 50}, 2: {SSH: 4}})
    outbox.gather(DAY, make_row, ANYONE)
    # One that was on its way when it went off is as old as the others.
    outbox.apply(Released(taken(outbox, 1).request))
    block(database, {3: {SSH: 1}})
    outbox.gather(DAY + away, make_row, ANYONE)
    assert states(database) == {(3, "brute_force"): ("waiting", 1, DAY + away)}
    assert ledger(database)["reports_dropped"] == 2


@pytest.mark.parametrize("fate", ["sent", "rejected", "unanswered", "sending"])
def test_a_clock_put_back_over_midnight_reports_nobody_twice(database: Database, outbox: Outbox, fate: str) -> None:
    block(database, {1: {SSH: 5}, 2: {DNS: 1}})
    outbox.gather(DAY + 1, make_row, ANYONE)
    request = taken(outbox).request
    if fate == "unanswered":
        outbox.apply(LeftUnanswered(request))
    elif fate != "sending":
        outbox.apply(settled(request, {source(1)} if fate == "rejected" else set()))
    for round_, day in enumerate((DAY, DAY, DAY + 1), 1):
        block(database, {1: {SSH: 1}, 2: {DNS: 1}, round_ + 10: {SSH: 1}})
        outbox.gather(day, make_row, ANYONE)
        assert numbers(taken(outbox)) == [round_ + 10]
        assert outbox.take(10, ANYONE) is None
    assert states(database)[1, "brute_force"] == (fate, 8, DAY + 1)
    assert outbox.stats(DAY + 1, KEY).withheld == 1
    assert accounted(outbox) == 5 + 1 + 3 * 3


def test_what_waits_when_the_clock_is_put_back_over_midnight_goes_once(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5}, 2: {SSH: 5}})
    outbox.gather(DAY, make_row, ANYONE)
    first = taken(outbox, 1)
    block(database, {1: {SSH: 1}})
    outbox.gather(DAY + 1, make_row, ANYONE)
    outbox.apply(settled(taken(outbox).request))
    # Of the same source, one row came back and the other is sent already.
    outbox.apply(Released(first.request))
    block(database, {2: {SSH: 1}})
    outbox.gather(DAY, make_row, ANYONE)
    assert outbox.take(10, ANYONE) is None
    assert accounted(outbox) == 12


def test_rows_of_a_clock_that_was_years_ahead_don_t_stay_for_years(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5}, 2: {SSH: 4}})
    outbox.gather(DAY + 3650, make_row, ANYONE)
    outbox.apply(settled(taken(outbox, 1).request))
    outbox.gather(DAY, make_row, ANYONE)
    assert states(database) == {(2, "brute_force"): ("waiting", 4, DAY)}
    outbox.gather(DAY + 2, make_row, ANYONE)
    assert states(database) == {}


def test_the_smallest_rows_go_where_too_many_wait(database: Database) -> None:
    outbox = Outbox(database, max_waiting=10)
    block(database, {number: {SSH: number} for number in range(1, 26)})
    block(database, {number: {DNS: number} for number in range(101, 126)})
    outbox.gather(DAY, make_row, ANYONE)
    left = states(database)
    assert {number for number, category in left if category} == set(range(16, 26))
    assert {number for number, category in left if not category} == set(range(116, 126))
    assert ledger(database)["reports_dropped"] == 15
    assert outbox.stats(DAY, KEY).withheld == 25
    assert accounted(outbox) == sum(range(1, 26)) + sum(range(101, 126))


def test_where_nobody_wants_reports_nothing_is_kept_but_the_count(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5, DNS: 7}})
    outbox.discard()
    assert states(database) == {}
    assert accounted(outbox) == ledger(database)["filed_packets_purged"] == 12
    outbox.gather(DAY, make_row, ANYONE)
    assert outbox.take(10, ANYONE) is None


def test_what_waits_is_not_sent_once_somebody_wants_reports_again(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 5}, 2: {SSH: 4}, 3: {SSH: 3}, 4: {DNS: 2}})
    outbox.gather(DAY, make_row, ANYONE)
    outbox.apply(settled(taken(outbox, 1).request))
    flying = taken(outbox, 1)
    outbox.discard()
    assert {key: state for key, (state, _, _) in states(database).items()} == {
        (1, "brute_force"): "sent",
        (2, "brute_force"): "sending",
        (4, ""): "withheld",
    }
    outbox.apply(LeftUnanswered(flying.request))
    block(database, {1: {SSH: 5}, 2: {SSH: 4}})
    outbox.gather(DAY, make_row, ANYONE)
    assert outbox.take(10, ANYONE) is None
    assert accounted(outbox) == 23


def test_who_is_allowed_now_is_not_reported(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 50}, 2: {SSH: 40}, 3: {SSH: 3}, 4: {SSH: 2}})
    outbox.gather(DAY, make_row, ANYONE)
    outbox.apply(settled(taken(outbox, 1).request))
    flying = taken(outbox, 1)
    block(database, {1: {SSH: 1}, 3: {HTTP: 30}, 5: {SSH: 7}, 6: {SSH: 8}})
    screen = screen_of(*(source(number) for number in (1, 2, 3, 5)))
    outbox.gather(DAY, make_row, screen)
    assert states(database) == {
        (1, "brute_force"): ("sent", 50, DAY),
        (2, "brute_force"): ("sending", 40, DAY),
        (4, "brute_force"): ("waiting", 2, DAY),
        (6, "brute_force"): ("waiting", 8, DAY),
    }
    # The row that waited of one source, and what came of three.
    assert outbox.stats(DAY, KEY).withheld == 4
    outbox.apply(Released(flying.request))
    outbox.gather(DAY, make_row, screen)
    assert numbers(taken(outbox)) == [6, 4]
    assert outbox.stats(DAY, KEY).withheld == 5
    assert accounted(outbox) == 141


def test_what_the_decision_raises_leaves_everything_as_it_was(database: Database, outbox: Outbox) -> None:
    def refuse(address: bytes, packets: Mapping[tuple[int, int], int]) -> Row | None:
        if address == source(2):
            raise ArithmeticError
        return make_row(address, packets)

    block(database, {1: {SSH: 5}, 2: {SSH: 5}})
    with pytest.raises(ArithmeticError):
        outbox.gather(DAY, refuse, ANYONE)
    assert states(database) == {}
    outbox.gather(DAY, make_row, ANYONE)
    assert len(states(database)) == 2


# An IPv6 network is one source


def block_hosts(database: Database, blocked: Mapping[tuple[int, int], Mapping[tuple[int, int], int]]) -> None:
    """{(number of a source, host in it): {(protocol, port): packets}}"""
    with database.transaction() as connection:
        for (number, host), packets in blocked.items():
            connection.executemany(BLOCK, [(source(number, host), *key, count) for key, count in packets.items()])


def named(batch: ReportBatch) -> list[tuple[bytes, int]]:
    return [(row.address, row.packets) for row in batch.rows]


def test_a_network_of_ipv6_has_one_row(database: Database, outbox: Outbox) -> None:
    block_hosts(database, {(1, host): {SSH: 1} for host in range(500)} | {(1, 7): {SSH: 3}, (1, 9): {SSH: 3}})
    block_hosts(database, {(1, 1000): {DNS: 1000}, (2, 1): {SSH: 4}})
    outbox.gather(DAY, make_row, ANYONE)
    assert named(taken(outbox)) == [(source(1, 7), 504), (source(2, 1), 4)]
    assert accounted(outbox) == 1508
    assert outbox.stats(DAY, KEY) == ReportStats(waiting=2)


def test_of_ipv4_each_address_has_a_row(database: Database, outbox: Outbox) -> None:
    for packets in (9, 1, 5):
        with database.transaction() as connection:
            rows = [(bytes([203, 0, 113, last]), *SSH, packets + last) for last in (1, 2)]
            connection.executemany(BLOCK, rows)
        outbox.gather(DAY, make_row, ANYONE)
    assert named(taken(outbox)) == [(bytes([203, 0, 113, 2]), 21), (bytes([203, 0, 113, 1]), 18)]


@pytest.mark.parametrize("fate", ["sent", "rejected", "unanswered"])
def test_a_network_whose_row_is_done_with_is_not_reported_in_another_name(
    database: Database, outbox: Outbox, fate: str
) -> None:
    block_hosts(database, {(1, 1): {SSH: 5}})
    outbox.gather(DAY, make_row, ANYONE)
    batch = taken(outbox)
    if fate == "unanswered":
        outbox.apply(LeftUnanswered(batch.request))
    else:
        outbox.apply(settled(batch.request, {source(1, 1)} if fate == "rejected" else set()))
    block_hosts(database, {(1, 2): {SSH: 100}, (1, 3): {HTTP: 7}})
    outbox.gather(DAY, make_row, ANYONE)
    assert outbox.take(10, ANYONE) is None
    # For another category it is, and on the next day.
    block_hosts(database, {(1, 4): {HTTP: 7}, (1, 1): {HTTP: 1}})
    outbox.gather(DAY, make_row, ANYONE)
    assert named(taken(outbox)) == [(source(1, 4), 8)]
    block_hosts(database, {(1, 5): {SSH: 1}})
    outbox.gather(DAY + 1, make_row, ANYONE)
    assert named(taken(outbox)) == [(source(1, 5), 1)]
    assert accounted(outbox) == 121


def test_a_row_that_waits_is_in_the_name_of_who_sent_most_of_it(database: Database, outbox: Outbox) -> None:
    for hosts in ({1: 5}, {2: 4, 3: 2}, {1: 1, 2: 3}, {4: 6}):
        block_hosts(database, {(1, host): {SSH: packets} for host, packets in hosts.items()})
        outbox.gather(DAY, make_row, ANYONE)
    # Of host 2, which sent 7 in all, nobody kept count while it was not the first: 1 and 4 sent 6.
    assert named(taken(outbox)) == [(source(1, 1), 21)]
    # On its way, it keeps its name: the answer is matched by it.
    request = taken_again(database, outbox)
    block_hosts(database, {(1, 2): {SSH: 100}})
    outbox.gather(DAY, make_row, ANYONE)
    outbox.apply(settled(request, {source(1, 1)}))
    assert states(database) == {(1, "brute_force"): ("rejected", 121, DAY)}


def taken_again(database: Database, outbox: Outbox) -> int:
    """As after a kill before the request went out; gives its number."""
    assert outbox.recover().waiting == 1
    return taken(outbox).request


def test_a_row_that_is_carried_into_the_next_day_keeps_its_name(database: Database, outbox: Outbox) -> None:
    block_hosts(database, {(1, 9): {SSH: 5}, (1, 1): {SSH: 4}})
    outbox.gather(DAY, make_row, ANYONE)
    block_hosts(database, {(1, 2): {SSH: 4}})
    outbox.gather(DAY + 1, make_row, ANYONE)
    assert named(taken(outbox)) == [(source(1, 9), 13)]


# Whoever one entry covers takes turns with all others


def one_entry_for(numbers: range) -> Callable[[bytes], Listing | None]:
    """These sources are in one range, all others by themselves."""

    def listing(address: bytes) -> Listing | None:
        inside = int.from_bytes(address[4:8], "big") in numbers
        return Listing("2001:db8::/48", frozenset({"SikkerAPI"})) if inside else listed_alone(address)

    return listing


CROWD = range(1000, 1300)
CROWDED = screen_of(listing=one_entry_for(CROWD))


def test_a_listed_range_can_not_push_out_what_other_entries_cover(database: Database, outbox: Outbox) -> None:
    block(database, {number: {SSH: number} for number in CROWD} | {number: {SSH: number} for number in range(1, 6)})
    outbox.gather(DAY, make_row, CROWDED)
    assert numbers(taken(outbox, 8)) == [1299, 5, 4, 3, 2, 1, 1298, 1297]


def test_a_range_has_its_turn_once_over_requests_and_restarts(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        block(database, {number: {SSH: number} for number in CROWD})
        outbox.gather(DAY, make_row, CROWDED)
        outbox.apply(settled(taken(outbox, 1).request))
        outbox.apply(LeftUnanswered(taken(outbox, 1).request))
        outbox.apply(settled(taken(outbox, 1).request, {source(1297)}))
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        block(database, {1: {SSH: 1}, 2: {SSH: 2}, 3: {SSH: 1, HTTP: 1}})
        outbox.gather(DAY, make_row, CROWDED)
        first = taken(outbox, 2)
        assert numbers(first) == [2, 3]
        # What is released has not had its turn.
        outbox.apply(Released(first.request))
        assert numbers(taken(outbox, 4)) == [2, 3, 1, 1296]
        block(database, {3: {HTTP: 5}, 4: {SSH: 1}})
        outbox.gather(DAY, make_row, CROWDED)
        # A second row of a single address comes after others' first.
        assert numbers(taken(outbox, 3)) == [4, 3, 1295]
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        outbox.recover()
        block(database, {5: {SSH: 1}, 1: {SSH: 1}, 2: {SSH: 1}})
        outbox.gather(DAY + 1, make_row, CROWDED)
        # On a new day everybody's turn comes anew.
        assert numbers(taken(outbox, 5)) == [1296, 3, 2, 1, 4]


def test_what_would_go_last_is_dropped_where_too_many_wait(database: Database) -> None:
    outbox = Outbox(database, max_waiting=10)
    block(database, {number: {SSH: number} for number in CROWD} | {number: {SSH: number} for number in range(1, 7)})
    outbox.gather(DAY, make_row, CROWDED)
    assert {number for number, _ in states(database)} == {1, 2, 3, 4, 5, 6, 1299, 1298, 1297, 1296}
    assert ledger(database)["reports_dropped"] == 296
    outbox.apply(settled(taken(outbox, 9).request))
    # Of the range three have gone today, so that all that is left of it is behind everybody else's.
    block(database, {number: {SSH: 1} for number in range(10, 20)} | {1000: {SSH: 50}})
    outbox.gather(DAY, make_row, CROWDED)
    left = {number for number, _ in states(database) if number not in (1, 2, 3, 4, 5, 6, 1299, 1298, 1297)}
    assert left == set(range(10, 20))
    assert accounted(outbox) == sum(CROWD) + sum(range(1, 7)) + 60


def test_rows_are_grouped_by_the_lists_that_are_in_force_now(database: Database, outbox: Outbox) -> None:
    block(database, {number: {SSH: number} for number in CROWD} | {1: {SSH: 1}, 2: {SSH: 2}})
    outbox.gather(DAY, make_row, ANYONE)
    outbox.apply(settled(taken(outbox, 1).request))
    outbox.gather(DAY, make_row, CROWDED)
    assert numbers(taken(outbox, 3)) == [2, 1, 1298]
    outbox.recover()

    # What no list covers any more keeps its entry.
    outbox.gather(DAY, make_row, screen_of(listing=lambda address: None))
    assert numbers(taken(outbox, 3)) == [2, 1, 1298]


# Who stays at home


def custom_for(*numbers: int) -> Callable[[bytes], Listing | None]:
    """These sources are in the local file alone."""

    def listing(address: bytes) -> Listing | None:
        own = int.from_bytes(address[4:8], "big") in numbers
        return Listing(listed_alone(address).entry, frozenset({LOCAL_FILE})) if own else listed_alone(address)

    return listing


def test_who_is_on_the_custom_list_alone_is_withheld_once_a_day(database: Database, outbox: Outbox) -> None:
    for _ in range(2):
        block(database, {1: {SSH: 5}, 2: {SSH: 4}})
        outbox.gather(DAY, make_row, screen_of(listing=custom_for(1)))
    assert states(database) == {
        (1, ""): ("withheld", 10, DAY),
        (2, "brute_force"): ("waiting", 8, DAY),
    }
    assert outbox.stats(DAY, KEY) == ReportStats(withheld=1, waiting=1)
    # From the moment at which that is wanted, what comes is reported.
    block(database, {1: {SSH: 3}})
    wanted = screen_of(listing=custom_for(1), custom=True)
    outbox.gather(DAY, make_row, wanted)
    batch = outbox.take(10, wanted)
    assert batch is not None
    assert named(batch) == [(source(2), 8), (source(1), 3)]
    assert accounted(outbox) == 21


def test_who_no_list_covers_any_more_is_reported_only_where_another_than_the_custom_one_was_known_to(
    database: Database, outbox: Outbox
) -> None:
    block(database, {1: {SSH: 5}, 2: {SSH: 4}})
    outbox.gather(DAY, make_row, screen_of(listing=custom_for(2), custom=True))
    gone = screen_of(listing=lambda address: None)
    block(database, {1: {SSH: 1}, 2: {SSH: 1}, 3: {SSH: 1}})
    outbox.gather(DAY, make_row, gone)
    batch = outbox.take(10, gone)
    assert batch is not None
    assert named(batch) == [(source(1), 6)]
    # The row that waited, once what came with it, and who was not known.
    assert outbox.stats(DAY, KEY).withheld == 3
    assert accounted(outbox) == 12


# What goes out


def test_the_largest_go_first_and_no_more_than_asked_for(database: Database, outbox: Outbox) -> None:
    block(database, {number: {SSH: 100 - number} for number in range(10)} | {50: {SSH: 1000}})
    outbox.gather(DAY, make_row, ANYONE)
    first, second = taken(outbox, 4), taken(outbox, 100)
    assert numbers(first) == [50, 0, 1, 2]
    assert numbers(second) == [3, 4, 5, 6, 7, 8, 9]
    assert first.request != second.request
    assert outbox.take(10, ANYONE) is None
    assert outbox.stats(DAY, KEY).waiting == 11


def test_no_request_has_an_address_twice(database: Database, outbox: Outbox) -> None:
    for key in (SSH, HTTP):
        block(database, {1: {key: 5}, 2: {key: 4}})
        outbox.gather(DAY, make_row, ANYONE)
    first, second = taken(outbox), taken(outbox)
    assert numbers(first) == numbers(second) == [1, 2]
    assert {row.category for row in first.rows + second.rows} == {"brute_force", "web_exploit"}


def test_a_request_is_never_larger_than_the_service_takes(database: Database, outbox: Outbox) -> None:
    block(database, {number: {SSH: 1} for number in range(MAX_ROWS + 5)})
    outbox.gather(DAY, make_row, ANYONE)
    assert len(taken(outbox, 1 << 30).rows) == MAX_ROWS
    assert len(taken(outbox, 1 << 30).rows) == 5


def test_who_must_not_be_reported_any_more_is_left_out_of_the_request(database: Database, outbox: Outbox) -> None:
    block(database, {number: {SSH: 100 - number} for number in range(1, 8)})
    outbox.gather(DAY, make_row, ANYONE)
    batch = outbox.take(3, screen_of(source(1), listing=custom_for(3, 5)))
    assert batch is not None
    # Others take their places, and what stands behind the request is not looked at yet.
    assert numbers(batch) == [2, 4, 6]
    assert json.loads(batch.body)["reports"][0]["ip"] == "2001:db8:0:2::"
    assert len(json.loads(batch.body)["reports"]) == 3
    assert {number: state for (number, _), (state, _, _) in states(database).items()} == {
        2: "sending",
        4: "sending",
        6: "sending",
        7: "waiting",
    }
    assert outbox.stats(DAY, KEY) == ReportStats(withheld=3, waiting=4)
    assert accounted(outbox) == sum(100 - number for number in range(1, 8))
    # Where nobody is left there is no request.
    assert outbox.take(3, screen_of(source(7))) is None
    assert outbox.stats(DAY, KEY) == ReportStats(withheld=4, waiting=3)


def test_what_is_left_out_and_what_is_marked_is_one_transaction(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 9}, 2: {SSH: 8}, 3: {SSH: 7}})
    outbox.gather(DAY, make_row, ANYONE)
    before = states(database), ledger(database)

    def listing(address: bytes) -> Listing | None:
        if address == source(3):
            raise ArithmeticError
        return custom_for(1)(address)

    with pytest.raises(ArithmeticError):
        outbox.take(3, screen_of(listing=listing))
    assert (states(database), ledger(database)) == before


def test_of_nothing_nothing_is_taken(outbox: Outbox) -> None:
    assert outbox.take(10, ANYONE) is None
    assert outbox.take(0, ANYONE) is None


def test_each_row_ends_as_the_answer_says(database: Database, outbox: Outbox) -> None:
    block(database, {number: {SSH: 10 - number} for number in range(5)})
    outbox.gather(DAY, make_row, ANYONE)
    batch = taken(outbox)
    outbox.on_wire(batch.request)
    outbox.apply(settled(batch.request, {source(1)}, {source(3)}))
    assert [state for state, _, _ in states(database).values()] == ["sent", "rejected", "sent", "waiting", "sent"]
    assert outbox.stats(DAY, KEY) == ReportStats(sent=3, rejected=1, waiting=1, last_report_at=float(int(NOW)))
    assert numbers(taken(outbox)) == [3]


def test_a_request_that_brought_nothing_home_is_no_report(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 1}})
    outbox.gather(DAY, make_row, ANYONE)
    outbox.apply(settled(taken(outbox).request, {source(1)}))
    assert outbox.stats(DAY, KEY).last_report_at is None


def test_what_was_released_is_taken_again_under_another_number(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 1}})
    outbox.gather(DAY, make_row, ANYONE)
    first = taken(outbox)
    outbox.on_wire(first.request)
    outbox.apply(Released(first.request))
    second = taken(outbox)
    assert second.rows == first.rows
    assert second.request != first.request
    # The mark of the first says nothing of the second.
    assert outbox.recover() == Recovered(1, 0)


# Cut off


@pytest.mark.parametrize(
    ("wire", "reboot", "expected"),
    [
        (False, False, Recovered(2, 0)),
        (True, False, Recovered(0, 2)),
        # After a power failure the mark may be lost though the byte was sent.
        (False, True, Recovered(0, 2)),
        (True, True, Recovered(0, 2)),
    ],
)
def test_a_start_make_rows_by_the_marks(tmp_path: Path, wire: bool, reboot: bool, expected: Recovered) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("3f5bb9a0-6d5b-4f0e-8d35-0f2b2f0c9f11\n")
    with opened(tmp_path) as database:
        outbox = Outbox(database, boot_id=boot)
        block(database, {1: {SSH: 9}, 2: {SSH: 8}, 3: {SSH: 7}})
        outbox.gather(DAY, make_row, ANYONE)
        batch = taken(outbox, 2)
        if wire:
            outbox.on_wire(batch.request)
    if reboot:
        boot.write_text("a2f0c6d4-58d8-4b9b-a4f7-6c5c7f8e9d01\n")
    with opened(tmp_path) as database:
        outbox = Outbox(database, boot_id=boot)
        assert outbox.recover() == expected
        assert outbox.recover() == Recovered(0, 0)
        assert numbers(taken(outbox)) == ([1, 2, 3] if expected.waiting else [3])
        assert outbox.stats(DAY, KEY).unanswered == expected.unanswered
        assert accounted(outbox) == 24


@pytest.mark.parametrize("content", [None, "", "no number"])
def test_where_the_kernel_does_not_name_its_boot_nothing_is_risked(tmp_path: Path, content: str | None) -> None:
    boot = tmp_path / "boot_id"
    if content is not None:
        boot.write_text(content)
    with opened(tmp_path) as database:
        outbox = Outbox(database, boot_id=boot)
        block(database, {1: {SSH: 9}})
        outbox.gather(DAY, make_row, ANYONE)
        taken(outbox)
        assert outbox.recover() == Recovered(0, 1)


def test_the_kernel_s_own_boot_id_is_read(database: Database, outbox: Outbox) -> None:
    block(database, {1: {SSH: 9}})
    outbox.gather(DAY, make_row, ANYONE)
    taken(outbox)
    assert ledger(database)["requests_boot"] > 0
    assert outbox.recover() == Recovered(1, 0)


def test_the_rows_taken_are_on_the_disk_before_they_are_seen(tmp_path: Path) -> None:
    synced: list[bool] = []

    class Watched(Database):
        def transaction(self, *, durable: bool = False):  # type: ignore[no-untyped-def]
            synced.append(durable)
            return super().transaction(durable=durable)

    database = Watched(tmp_path)
    open_now(database)
    with closing(database):
        outbox = Outbox(database)
        block(database, {1: {SSH: 9}})
        outbox.gather(DAY, make_row, ANYONE)
        synced.clear()
        request = taken(outbox).request
        assert synced == [True]
        outbox.on_wire(request)
        assert synced == [True, False]


def test_the_mark_before_the_last_byte_moves_no_pages_and_what_follows_does_again(
    database: Database, outbox: Outbox
) -> None:
    def pages() -> int:
        with database.transaction() as connection:
            return int(connection.execute("PRAGMA wal_autocheckpoint").fetchone()[0])

    usual = pages()
    for end in (Released, LeftUnanswered, settled):
        block(database, {1: {SSH: 9}, 2: {SSH: 1}, 3: {SSH: 1}})
        outbox.gather(DAY, make_row, ANYONE)
        request = taken(outbox, 1).request
        outbox.on_wire(request)
        assert pages() == 0
        outbox.apply(end(request))
        assert pages() == usual > 0


# What is known


def test_the_quota_belongs_to_a_day_and_a_key(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        assert outbox.quota(DAY, KEY)[0] is None
        outbox.apply(QuotaNoted(DAY, KEY, 17))
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        assert outbox.quota(DAY, KEY)[0] == 17
        assert outbox.stats(DAY, KEY).quota_remaining == 17
        assert outbox.quota(DAY + 1, KEY)[0] is None
        assert outbox.quota(DAY, "sk_free_other")[0] is None
        outbox.apply(QuotaNoted(DAY, KEY, 0))
        assert outbox.quota(DAY, KEY)[0] == 0
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_the_limit_of_a_day_belongs_to_a_key_and_outlives_the_day(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        assert outbox.quota(DAY, KEY)[1] is None
        outbox.apply(QuotaNoted(DAY, KEY, 17))
        assert outbox.quota(DAY, KEY)[1] is None
        outbox.apply(QuotaNoted(DAY, KEY, 16, 1000))
        outbox.apply(QuotaNoted(DAY, KEY, 15))
    with opened(tmp_path) as database:
        outbox = Outbox(database)
        outbox.apply(QuotaNoted(DAY + 40, KEY, 3))
        assert outbox.quota(DAY, KEY)[1] == 1000
        assert outbox.quota(DAY + 40, KEY)[0] == 3
        assert outbox.quota(DAY, "sk_free_other")[1] is None
        outbox.apply(QuotaNoted(DAY + 40, "sk_free_other", 9))
        assert outbox.quota(DAY, "sk_free_other")[1] is None
        assert outbox.quota(DAY, KEY)[1] == 1000
        outbox.apply(QuotaNoted(DAY + 40, "sk_free_other", 9, 0))
        assert outbox.quota(DAY, "sk_free_other")[1] == 0
        assert outbox.quota(DAY, KEY)[1] is None


def test_without_a_file_everything_is_an_error(tmp_path: Path) -> None:
    outbox = Outbox(Database(tmp_path / "missing"))
    for action in (
        lambda: outbox.gather(DAY, make_row, ANYONE),
        outbox.discard,
        lambda: outbox.take(1, ANYONE),
        lambda: outbox.on_wire(1),
        lambda: outbox.apply(settled(1)),
        lambda: outbox.apply(Released(1)),
        lambda: outbox.apply(LeftUnanswered(1)),
        outbox.recover,
        lambda: outbox.quota(DAY, KEY),
        lambda: outbox.apply(QuotaNoted(DAY, KEY, 1)),
        lambda: outbox.stats(DAY, KEY),
    ):
        with pytest.raises(RecordError, match="can't be used"):
            action()


# Whatever happens, in whatever order

Step = tuple[object, ...]
keys = st.sampled_from([SSH, HTTP, DNS, UNTOLD, (1, 2048), (6, 4711)])
steps = st.one_of(
    st.tuples(st.just("block"), st.integers(0, 8), st.integers(0, 2), keys, st.integers(1, 100)),
    st.tuples(st.just("scan"), st.integers(0, 8), st.integers(1, 5000), st.integers(1, 100)),
    st.tuples(st.just("unfiled"), st.integers(1, 1000)),
    st.tuples(st.just("gather"), st.integers(-1, 2), st.frozensets(st.integers(0, 8), max_size=3)),
    st.tuples(st.just("take"), st.integers(0, 5), st.frozensets(st.integers(0, 8), max_size=3)),
    st.tuples(st.sampled_from(["settle", "release", "unanswered", "on_wire", "recover", "discard"])),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=40), st.integers(1, 6))
def test_the_account_is_kept_and_no_row_goes_out_twice_a_day(steps: list[Step], most: int) -> None:
    with tempfile.TemporaryDirectory() as directory, opened(Path(directory)) as database:
        walk(database, Outbox(database, max_waiting=most), steps)


def walk(database: Database, outbox: Outbox, steps: list[Step]) -> None:
    day, taken_on, put, flying, wired = DAY, DAY, 0, None, False
    gone: set[tuple[int, bytes, str]] = set()
    for step in steps:
        match step:
            case ("block", int(number), int(host), (int(protocol), int(port)), int(count)):
                block_hosts(database, {(number, host): {(protocol, port): count}})
                put += count
            case ("scan", int(number), int(first), int(ports)):
                scan(database, [((source(number), 6, port), 1) for port in range(first, first + ports)])
                put += ports
            case ("unfiled", int(count)):
                scan(database, [], count)
                put += count
            case ("gather", int(days), frozenset() as allowed):
                # A round ends before the next one begins, so no clock goes back while a request is on its way.
                day += max(days, 0) if flying else days
                gone = {done for done in gone if done[0] in (day, day + 1)}
                screen, spared = mixed(allowed)
                outbox.gather(day, make_row, screen)
                assert not waiting(database, day) & spared
            case ("take", int(rows), frozenset() as allowed) if flying is None:
                screen, spared = mixed(allowed)
                flying, wired, taken_on = outbox.take(rows, screen), False, day
                found = {(row.address[:8], row.category) for row in (flying.rows if flying else ())}
                assert len(found) == len(flying.rows if flying else ())
                assert not found & {done[1:] for done in gone if done[0] in (day, day + 1)}
                assert not {row.address for row in (flying.rows if flying else ())} & spared
            case ("on_wire",) if flying is not None:
                outbox.on_wire(flying.request)
                wired = True
            case (("settle" | "unanswered" | "release" | "recover") as end,) if flying is not None:
                finish(outbox, end, flying.request)
                if end in ("settle", "unanswered") or (end == "recover" and wired):
                    gone |= {(taken_on, row.address[:8], row.category) for row in flying.rows}
                flying = None
            case ("discard",):
                outbox.discard()
        assert accounted(outbox) == put


def mixed(numbers: frozenset[int]) -> tuple[Screen, set[bytes]]:
    """A screen that stops the first two hosts of these sources, allowed or in the local file alone, and has half of
    all others in one range; and whom it stops."""
    stopped = {source(number, host) for number in numbers for host in (0, 1)}
    allowed = {address for address in stopped if address[7] % 2}
    inside = one_entry_for(range(5))

    def listing(address: bytes) -> Listing | None:
        return Listing("custom", frozenset({LOCAL_FILE})) if address in stopped - allowed else inside(address)

    return screen_of(*allowed, listing=listing), stopped


def scan(database: Database, blocked: list[tuple[tuple[bytes, int, int], int]], unfiled: int = 0) -> None:
    TrafficStore(database).save(PendingTraffic().add(blocked, unfiled, ()))


def waiting(database: Database, day: int) -> set[bytes]:
    """Whose rows wait, none of which is older than yesterday."""
    with database.transaction() as connection:
        found = connection.execute("SELECT address, seen FROM outbox WHERE state = 'waiting'").fetchall()
    assert all(day - 1 <= seen <= day + 1 for _, seen in found)
    return {address for address, _ in found}


def finish(outbox: Outbox, end: str, request: int) -> None:
    match end:
        case "settle":
            outbox.apply(settled(request))
        case "unanswered":
            outbox.apply(LeftUnanswered(request))
        case "release":
            outbox.apply(Released(request))
        case "recover":
            outbox.recover()
