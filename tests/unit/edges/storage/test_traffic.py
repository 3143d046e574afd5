"""The counts on a real file: what is kept comes back, and what can't be kept is said and changes nothing."""

from __future__ import annotations

import logging
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.reports.rows import row_of
from sikkerguard.core.traffic.records import PendingTraffic, SavedTraffic
from sikkerguard.core.traffic.sample import NOTHING, UNATTRIBUTED, PacketCount
from sikkerguard.core.traffic.totals import Totals
from sikkerguard.edges.storage.database import FILE, Database
from sikkerguard.edges.storage.traffic import TrafficStore
from sikkerguard.errors import RecordError
from tests.records import records_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sikkerguard.core.traffic.sample import FlowKey

V4, V6 = bytes([198, 51, 100, 7]), bytes.fromhex("20010db8000000000000000000000007")
TOTALS = Totals(
    dropped=PacketCount(12_345, 678_900),
    day=20_000,
    dropped_today=PacketCount(345, 18_900),
    attributed=12_300,
    logged=12_340,
    counters={Family.V4: PacketCount(10_000, 600_000), Family.V6: PacketCount(2_345, 78_900)},
    replies=1_234,
)
# Rows of `blocked` that are kept.
MAX_BLOCKED = 65_536


@contextmanager
def opened(directory: Path) -> Iterator[TrafficStore]:
    database = Database(directory)
    try:
        yield TrafficStore(database)
    finally:
        database.close()


def save(
    store: TrafficStore,
    totals: Totals = TOTALS,
    flows: Mapping[FlowKey, int] | None = None,
    sources: Sequence[bytes] = (),
    ports: Mapping[tuple[int, int], int] | None = None,
    *,
    new_day: bool = False,
    overflow: int = 0,
) -> None:
    store.save(PendingTraffic(flows or {}, overflow, tuple(sources), new_day, totals, tuple((ports or {}).items())))


def rows(directory: Path, query: str) -> list[tuple[object, ...]]:
    with records_of(directory) as connection:
        return connection.execute(query).fetchall()


def blocked_in(directory: Path) -> dict[FlowKey, int]:
    query = "SELECT address, protocol, port, packets FROM blocked"
    with records_of(directory) as connection:
        return {(address, protocol, port): packets for address, protocol, port, packets in connection.execute(query)}


def total(directory: Path, name: str) -> int:
    with records_of(directory) as connection:
        found = connection.execute("SELECT value FROM totals WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else 0


def purged(directory: Path) -> int:
    return total(directory, "filed_packets_purged")


def dropped(directory: Path) -> int:
    return total(directory, "reports_dropped")


def test_a_new_file_has_counted_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        # Nor is it known what the counter of a rule read that is there already.
        assert store.load() == SavedTraffic()


def test_what_was_saved_is_there_in_the_next_run(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(
            store,
            TOTALS,
            {(V4, 6, 23): 5, (V6, UNATTRIBUTED, UNATTRIBUTED): 7},
            [V4, V6],
            {(6, 23): 5, (UNATTRIBUTED, UNATTRIBUTED): 7},
        )
    with opened(tmp_path) as store:
        saved = SavedTraffic(TOTALS, frozenset({V4, V6}), {(6, 23): 5, (UNATTRIBUTED, UNATTRIBUTED): 7})
        assert store.load() == saved
    assert blocked_in(tmp_path) == {(V4, 6, 23): 5, (V6, UNATTRIBUTED, UNATTRIBUTED): 7}


def test_records_of_a_version_that_knew_no_replies_go_on(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("DELETE FROM totals WHERE name = 'replies'")
    with opened(tmp_path) as store:
        assert store.load().totals == replace(TOTALS, replies=0)


def test_replies_are_kept_and_take_no_place_among_what_is_to_be_reported(tmp_path: Path) -> None:
    replies = {(V4, REPLY, port): 1000 for port in range(100)} | {(V6, REPLY, UNATTRIBUTED): 7}
    with opened(tmp_path) as store:
        save(store, TOTALS, replies | {(V4, 6, port): 1 for port in range(64)}, [V4], {(REPLY, 443): 9})
    assert blocked_in(tmp_path) == {(V4, 6, port): 1 for port in range(64)}
    assert (purged(tmp_path), dropped(tmp_path)) == (100_007, 0)
    with opened(tmp_path) as store:
        assert store.load().ports == {(REPLY, 443): 9}


def test_a_later_save_replaces_the_totals_and_the_ports_and_adds_the_rest(tmp_path: Path) -> None:
    later = Totals(
        PacketCount(20_000, 0),
        20_000,
        PacketCount(9, 0),
        19_999,
        3,
        {Family.V4: PacketCount(1, 60), Family.V6: NOTHING},
    )
    with opened(tmp_path) as store:
        save(store, TOTALS, {(V4, 6, 23): 5, (V4, 17, 23): 1}, [V4], {(6, 23): 5})
        # A source may be given once more, as where an answer to the first time was lost.
        save(store, later, {(V4, 6, 23): 2, (V6, 6, 23): 7}, [V6, V4], {(6, 22): 4})
        assert store.load().totals == later
        assert store.load().sources == {V4, V6}
        assert store.load().ports == {(6, 22): 4}
    assert blocked_in(tmp_path) == {(V4, 6, 23): 7, (V4, 17, 23): 1, (V6, 6, 23): 7}


def test_a_new_day_has_its_own_sources_and_ports(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store, TOTALS, {(V4, 6, 23): 5}, [V4], {(6, 23): 5})
        save(store, TOTALS, {(V6, 6, 22): 1}, [V6], {(6, 22): 1}, new_day=True)
        assert store.load() == SavedTraffic(TOTALS, frozenset({V6}), {(6, 22): 1})
    # What waits to be reported does not end with the day.
    assert blocked_in(tmp_path) == {(V4, 6, 23): 5, (V6, 6, 22): 1}


def test_of_too_many_sources_the_largest_are_kept_and_no_packet_is_lost_from_the_totals(tmp_path: Path) -> None:
    def places(start: int, number: int, packets: int) -> dict[FlowKey, int]:
        return {(each.to_bytes(4, "big"), 6, 23): packets for each in range(start, start + number)}

    with opened(tmp_path) as store:
        save(store, flows=places(0, MAX_BLOCKED - 1, 2) | {(V4, 6, 23): 10**6})
        assert (len(blocked_in(tmp_path)), purged(tmp_path)) == (MAX_BLOCKED, 0)
        sent = 2 * (MAX_BLOCKED - 1) + 10**6
        for round_ in range(1, 4):
            save(store, flows=places(round_ << 20, 40_000, 1))
            sent += 40_000
            held = blocked_in(tmp_path)
            assert len(held) <= MAX_BLOCKED
            assert held[V4, 6, 23] == 10**6
            assert purged(tmp_path) > 0
            assert dropped(tmp_path) + len(held) == MAX_BLOCKED + round_ * 40_000
            assert sum(held.values()) + purged(tmp_path) == sent
        # It is none of the totals that counting keeps, and no later save takes it away.
        assert store.load().totals == TOTALS


def ports_of(address: bytes, ports: range, packets: int = 1, protocol: int = 6) -> dict[FlowKey, int]:
    return {(address, protocol, port): packets for port in ports}


def test_a_source_that_scans_takes_no_room_from_others(tmp_path: Path) -> None:
    others = {(each.to_bytes(4, "big"), 6, 22): 2 for each in range(1000)}
    with opened(tmp_path) as store:
        save(store, flows=others)
        for first in range(1, 65_536, 4096):
            save(store, flows=ports_of(V4, range(first, min(first + 4096, 65_536))))
    held = blocked_in(tmp_path)
    scanned = {key: packets for key, packets in held.items() if key[0] == V4}
    assert {key: packets for key, packets in held.items() if key[0] != V4} == others
    assert len(scanned) == 65
    assert sum(scanned.values()) == 65_535
    assert purged(tmp_path) == dropped(tmp_path) == 0
    # It is still seen to be a scanner.
    row = row_of(V4, {key[1:]: packets for key, packets in scanned.items()}, {}, spoofable=False)
    assert row
    assert (row.category, row.packets) == ("port_scan", 65_535)


def test_a_scanner_s_busiest_ports_are_told_apart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store, flows=ports_of(V4, range(1000, 1064), 3) | {(V4, UNATTRIBUTED, UNATTRIBUTED): 100})
        assert len(blocked_in(tmp_path)) == 65
        save(store, flows={(V4, 6, 22): 1000, (V4, 6, 23): 2, (V4, 6, 1000): 1, (V6, 6, 22): 1})
    assert blocked_in(tmp_path) == {
        **ports_of(V4, range(1000, 1063), 3),
        (V4, 6, 1000): 4,
        (V4, 6, 22): 1000,
        (V4, UNATTRIBUTED, UNATTRIBUTED): 100 + 2 + 3,
        (V6, 6, 22): 1,
    }


def test_forged_datagrams_don_t_hide_what_came_over_tcp(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store, flows={(V4, 6, 22): 1} | ports_of(V4, range(1, 200), 10**6, 17) | {(V4, 1, 2048): 10**6})
        save(store, flows=ports_of(V4, range(200, 400), 10**6, 17))
    held = blocked_in(tmp_path)
    assert len(held) == 65
    assert held[V4, 6, 22] == 1
    assert sum(held.values()) == 1 + 400 * 10**6


def test_of_too_many_sources_those_go_that_sent_least_in_all(tmp_path: Path) -> None:
    def one(number: int) -> bytes:
        return number.to_bytes(4, "big")

    # 900 that scan, with one packet a port; and those who come one port at a time, with more in each of theirs.
    scanners = {key: 1 for each in range(900) for key in ports_of(one(each), range(1, 65))}
    loud = {(one(each), 6, 22): 65 for each in range(10_000, 14_000)}
    quiet = {(one(each), 6, 22): 63 for each in range(20_000, 24_000)}
    with opened(tmp_path) as store:
        save(store, flows=loud)
        save(store, flows=scanners)
        assert (purged(tmp_path), dropped(tmp_path)) == (0, 0)
        save(store, flows=quiet)
    held = blocked_in(tmp_path)
    assert MAX_BLOCKED // 2 - 64 <= len(held) <= MAX_BLOCKED // 2
    assert not held.keys() & quiet.keys()
    assert loud.items() <= held.items()
    left = Counter(key[0] for key in held if key in scanners)
    # A source is there with all that it sent, or not at all.
    assert set(left.values()) == {64}
    assert dropped(tmp_path) == 4000 + 900 - len(left)
    assert purged(tmp_path) == 4000 * 63 + (900 - len(left)) * 64
    assert sum(held.values()) + purged(tmp_path) == sum((scanners | loud | quiet).values())


def test_packets_that_there_was_no_room_to_name_stay_in_the_totals(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for packets in (5, 7):
            save(store, flows={(V4, 6, 23): 2}, overflow=packets)
        save(store, flows={(V4, 6, 23): 1})
    assert blocked_in(tmp_path) == {(V4, 6, 23): 5}
    assert purged(tmp_path) == 12
    assert dropped(tmp_path) == 0


def test_a_save_into_a_full_table_takes_little_time(tmp_path: Path) -> None:
    full = {key: 1 for each in range(1000) for key in ports_of(each.to_bytes(4, "big"), range(1, 65))}
    with opened(tmp_path) as store:
        save(store, flows=full)
        took = []
        for round_ in range(1, 6):
            more = {(each.to_bytes(4, "big"), 6, 1000 * round_ + port): 1 for each in range(1000) for port in range(4)}
            began = time.process_time()
            save(store, flows=more)
            took.append(time.process_time() - began)
    # One comes each second. Measured: 0.05 s.
    assert min(took) < 0.25


places = st.tuples(st.sampled_from([V4, V6]), st.sampled_from([UNATTRIBUTED, 1, 6, 17]), st.integers(0, 3))
number = st.integers(0, (1 << 62) - 1)
count = st.builds(PacketCount, number, number)
totals = st.builds(
    Totals, count, st.integers(0, 40_000), count, number, number, st.fixed_dictionaries(dict.fromkeys(Family, count))
)
saves = st.tuples(
    totals,
    st.dictionaries(places, st.integers(1, 10**9)),
    st.lists(st.binary(min_size=4, max_size=4)),
    st.dictionaries(st.tuples(st.integers(-1, 255), st.integers(-1, 65_535)), number, max_size=5),
    st.booleans(),
)


@settings(max_examples=30)
@given(st.lists(saves, min_size=1, max_size=5), st.booleans())
def test_whatever_is_counted_comes_back(
    drawn: list[tuple[Totals, dict[FlowKey, int], list[bytes], dict[tuple[int, int], int], bool]], reopened: bool
) -> None:
    blocked: Counter[FlowKey] = Counter()
    sources: set[bytes] = set()
    with tempfile.TemporaryDirectory() as directory:
        database = Database(Path(directory))
        with closing(database):
            for summed, more, fresh, ports, new_day in drawn:
                save(TrafficStore(database), summed, more, fresh, ports, new_day=new_day)
                blocked.update(more)
                sources = set(fresh) | (set() if new_day else sources)
                if reopened:
                    database.close()
                assert TrafficStore(database).load() == SavedTraffic(summed, frozenset(sources), ports)
        assert blocked_in(Path(directory)) == dict(blocked)


def is_a_sentence(error: RecordError, directory: Path) -> bool:
    return str(error).startswith(f"{directory / FILE} can't be used (") and "fix its permissions" in str(error)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with opened(missing) as store:
        with pytest.raises(RecordError) as error:
            store.load()
        assert is_a_sentence(error.value, missing)
        with pytest.raises(RecordError):
            save(store)
        # Once it can be used it is.
        missing.mkdir()
        save(store)
        assert store.load().totals == TOTALS


def test_a_file_that_another_hand_changed_is_said(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store)
        store.close()
        with closing(sqlite3.connect(tmp_path / FILE)) as connection:
            connection.execute("DROP TABLE sources")
        for action in (store.load, lambda: save(store, flows={(V4, 6, 23): 5}, sources=[V4])):
            with pytest.raises(RecordError, match="no such table: sources") as error:
                action()
            assert is_a_sentence(error.value, tmp_path)
    assert blocked_in(tmp_path) == {}


def test_where_there_is_no_room_nothing_is_kept_and_it_is_said(tmp_path: Path) -> None:
    more = Totals(PacketCount(99_999, 0), logged=99_999)
    many = {(each.to_bytes(4, "big"), 6, 23): 1 for each in range(10_000)}
    database = Database(tmp_path)
    store = TrafficStore(database)
    with closing(database):
        save(store, TOTALS, {(V4, 6, 23): 5}, [V4])
        with database.transaction() as connection:
            # The file may not grow any further, as on a full disk.
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(RecordError, match="full") as error:
            save(store, more, many, [V6], new_day=True)
        assert is_a_sentence(error.value, tmp_path)
        assert store.load() == SavedTraffic(TOTALS, frozenset({V4}))
        assert blocked_in(tmp_path) == {(V4, 6, 23): 5}
        with database.transaction() as connection:
            connection.execute("PRAGMA max_page_count=1000000")
        save(store, more, many, [V6], new_day=True)
        assert store.load().sources == {V6}
        assert len(blocked_in(tmp_path)) == 10_001


def test_a_damaged_file_is_set_aside_and_counting_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as store:
        save(store)
    (tmp_path / FILE).write_bytes(b"\0garbage" * 4096)
    with caplog.at_level(logging.ERROR), opened(tmp_path) as store:
        assert store.load().totals.dropped == NOTHING
        save(store)
        assert store.load().totals == TOTALS
    (record,) = caplog.records
    assert "set aside" in record.getMessage()
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]
