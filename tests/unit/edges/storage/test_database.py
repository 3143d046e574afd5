"""The file of counts and reports on a real disk: whole transactions only, noticed when damaged, nobody's in the way."""

from __future__ import annotations

import gc
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.records import SavedTraffic
from sikkerguard.core.traffic.sample import NOTHING, UNATTRIBUTED, PacketCount
from sikkerguard.core.traffic.totals import Totals
from sikkerguard.edges.storage.database import FILE, Database, read_total
from sikkerguard.edges.storage.traffic import TrafficStore
from sikkerguard.errors import RecordError
from tests.records import records_of
from tests.unit.edges.storage.test_outbox import open_now

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="database")
def _database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    open_now(database)
    yield database
    database.close()


def write(database: Database, name: str, value: int, *, durable: bool = False) -> None:
    with database.transaction(durable=durable) as connection:
        connection.execute("INSERT OR REPLACE INTO totals VALUES (?, ?)", (name, value))


def read(database: Database) -> dict[str, int]:
    with database.transaction() as connection:
        return dict(connection.execute("SELECT name, value FROM totals"))


def test_what_is_written_is_there_after_the_next_start(tmp_path: Path) -> None:
    for number, durable in enumerate((False, True)):
        database = Database(tmp_path)
        open_now(database)
        write(database, f"name{number}", number, durable=durable)
        database.close()
    with closing(Database(tmp_path)) as database:
        assert read(database) == {"name0": 0, "name1": 1}


def test_it_opens_at_the_first_need_and_again_after_a_close(tmp_path: Path) -> None:
    database = Database(tmp_path)
    assert list(tmp_path.iterdir()) == []
    write(database, "a", 1)
    database.close()
    database.close()
    assert read(database) == {"a": 1}
    open_now(database)
    database.close()


def test_nobody_else_may_read_it(database: Database, tmp_path: Path) -> None:
    write(database, "a", 1)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_written_ahead_and_maps_no_file(database: Database, tmp_path: Path) -> None:
    """Of a file that is mapped, a page for which a full disk has no room ends the process by SIGBUS."""
    write(database, "a", 1)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, f"{FILE}-wal"}
    assert FILE not in Path("/proc/self/maps").read_text()
    with records_of(tmp_path) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert reader.execute("SELECT * FROM totals").fetchall() == [("a", 1)]


def test_nobody_else_can_write_it_meanwhile(database: Database, tmp_path: Path) -> None:
    write(database, "a", 1)
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None, timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("DELETE FROM totals")
        database.close()
        other.execute("DELETE FROM totals")


def test_a_file_that_was_deleted_is_there_again_with_all_that_was_in_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "state")
    (tmp_path / "state").mkdir()
    write(database, "a", 1)
    for number in range(2):
        if number:
            shutil.rmtree(tmp_path / "state")
        else:
            (tmp_path / "state" / FILE).unlink()
        write(database, f"b{number}", 2)
        write(database, "c", 3)
    database.close()
    with closing(Database(tmp_path / "state")) as again:
        assert read(again) == {"a": 1, "b0": 2, "b1": 2, "c": 3}


def test_a_file_that_somebody_put_in_its_place_is_the_one_from_then_on(database: Database, tmp_path: Path) -> None:
    write(database, "a", 1)
    with closing(Database(tmp_path / "other")) as other:
        (tmp_path / "other").mkdir()
        write(other, "theirs", 1)
    (tmp_path / "other" / FILE).replace(tmp_path / FILE)
    (tmp_path / f"{FILE}-wal").unlink()
    write(database, "b", 2)
    assert read(database) == {"theirs": 1, "b": 2}


def test_all_or_nothing(database: Database) -> None:
    def begin_and_raise() -> None:
        with database.transaction() as connection:
            connection.execute("DELETE FROM totals")
            raise ArithmeticError

    def begin_and_fail() -> None:
        with database.transaction() as connection:
            connection.execute("DELETE FROM totals")
            connection.execute("DELETE FROM missing")

    write(database, "a", 1)
    with pytest.raises(ArithmeticError):
        begin_and_raise()
    with pytest.raises(RecordError, match="no such table"):
        begin_and_fail()
    assert read(database) == {"a": 1}


def test_several_threads_take_turns(database: Database) -> None:
    def count() -> None:
        for _ in range(100):
            with database.transaction() as connection:
                (found,) = connection.execute("SELECT coalesce(max(value), 0) FROM totals").fetchone()
                connection.execute("INSERT OR REPLACE INTO totals VALUES ('n', ?)", (found + 1,))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(database) == {"n": 400}


# What goes wrong


@pytest.mark.parametrize("damage", ["text", "header", "pages", "version"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / FILE
    with closing(Database(tmp_path)) as database:
        for number in range(2000):
            write(database, f"a rather long name {number}", number)
    match damage:
        case "text":
            file.write_text("not a database at all, but long enough to be looked at\n" * 100)
        case "header":
            file.write_bytes(b"SQLite format 4\0" + file.read_bytes()[16:])
        case "pages":
            content = bytearray(file.read_bytes())
            content[8192:] = bytes(0xA5 for _ in content[8192:])
            file.write_bytes(content)
        case "version":
            with closing(sqlite3.connect(file)) as other:
                other.execute("PRAGMA user_version = 99")
    before = file.read_bytes()
    with closing(Database(tmp_path)) as database:
        open_now(database)
        assert read(database) == {}
        write(database, "a", 1)
    (message,) = [record.message for record in caplog.records]
    assert "set aside as records.sqlite3.damaged" in message
    assert "Blocking is not touched" in message
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == before
    with closing(Database(tmp_path)) as database:
        assert read(database) == {"a": 1}


@pytest.mark.parametrize("damage", ["pages", "all", "index"])
def test_a_file_that_is_damaged_while_it_is_in_use_is_set_aside_at_the_next_try(
    database: Database, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / FILE
    spoil(database, file, damage)
    with pytest.raises(RecordError) as error:
        touch_all(database)
    message = str(error.value)
    assert message.startswith(f"{file} is damaged (")
    assert "set aside" in message
    assert "make room" not in message
    assert "once more" not in caplog.text
    write(database, "a", 1)
    (record,) = caplog.records
    assert "set aside as records.sqlite3.damaged" in record.message
    assert "sources that were reported today may be reported once more" in record.message
    # What was left of the old one takes nothing away from the new one.
    del error
    gc.collect()
    write(database, "b", 2)
    assert read(database) == {"a": 1, "b": 2}
    database.close()
    with closing(Database(tmp_path)) as again:
        assert read(again) == {"a": 1, "b": 2}


def spoil(database: Database, file: Path, damage: str) -> None:
    """More rows than are kept in memory, and then damage under them."""
    with database.transaction() as connection:
        addresses = [number.to_bytes(4, "big") for number in range(20_000)]
        rows = [(20_000, each, "a" * 40, each, 1, "c", 0, "b" * 200, 1, "waiting", 20_000) for each in addresses]
        columns = "day, source, category, address, leading, entry, own, protocol, packets, state, seen"
        connection.executemany(f"INSERT INTO outbox ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    database._ready().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if damage == "index":
        database.close()
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            # Two indexes with each other's pages: only a thorough look finds what they lack.
            other.execute("PRAGMA writable_schema = ON")
            (root,) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'outbox_by_state'").fetchone()
            other.execute("CREATE INDEX empty ON outbox (state) WHERE packets > 5")
            (empty,) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'empty'").fetchone()
            other.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = 'empty'", (root,))
            other.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = 'outbox_by_state'", (empty,))
            return
    size = file.stat().st_size
    start = 8192 if damage == "pages" else 0
    with file.open("r+b") as content:
        content.seek(start)
        content.write(b"\xa5" * (size - start))


def touch_all(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("DELETE FROM outbox WHERE protocol > ''")


def test_what_an_error_still_holds_of_a_damaged_file_does_no_harm(database: Database, tmp_path: Path) -> None:
    spoil(database, tmp_path / FILE, "pages")
    with database_error() as held, database.transaction() as connection:
        held.append(connection.execute("SELECT * FROM totals"))
        held.append(connection.execute("SELECT * FROM outbox"))
        list(held[1])
    write(database, "a", 1)
    held.clear()
    gc.collect()
    # The file that is written ahead bears the same name for both.
    assert (tmp_path / f"{FILE}-wal").stat().st_size > 0
    with records_of(tmp_path) as other:
        assert other.execute("SELECT * FROM totals").fetchall() == [("a", 1)]


@contextmanager
def database_error() -> Iterator[list[sqlite3.Cursor]]:
    held: list[sqlite3.Cursor] = []
    with pytest.raises(RecordError, match="is damaged"):
        yield held


# The tables as the first version made them.
VERSION_1 = """
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
INSERT INTO ledger VALUES ('reports_sent', 7);
INSERT INTO blocked VALUES (x'c6336407', 6, 22, 5);
INSERT INTO outbox VALUES (1, 20000, x'c6336407', 'brute_force', 'ssh', 9, 'waiting', NULL);
INSERT INTO outbox VALUES (2, 20000, x'c6336408', 'brute_force', 'ssh', 8, 'sent', 1);
PRAGMA journal_mode = WAL;
PRAGMA user_version = 1;
"""


# As the second version changed them.
VERSION_2 = f"""
{VERSION_1}
ALTER TABLE outbox ADD COLUMN seen INTEGER NOT NULL DEFAULT 0;
UPDATE outbox SET seen = day;
PRAGMA user_version = 2;
"""
# As the third version made them, with every name that it kept numbers by.
VERSION_3 = """
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
    id INTEGER PRIMARY KEY, day INTEGER NOT NULL, source BLOB NOT NULL, category TEXT NOT NULL, address BLOB NOT NULL,
    leading INTEGER NOT NULL, entry TEXT NOT NULL, own INTEGER NOT NULL, protocol TEXT NOT NULL,
    packets INTEGER NOT NULL, state TEXT NOT NULL, request INTEGER, seen INTEGER NOT NULL,
    UNIQUE (day, source, category)
);
CREATE INDEX outbox_by_state ON outbox (state, packets DESC);
INSERT INTO ledger VALUES
    ('day', 20000), ('named', 12300), ('told', 12340), ('replies', 1234), ('filed_packets_purged', 17),
    ('dropped_packets', 12345), ('dropped_octets', 678900), ('today_packets', 345), ('today_octets', 18900),
    ('counter_v4_packets', 10000), ('counter_v4_octets', 600000), ('counter_v6_packets', 0), ('counter_v6_octets', 0),
    ('reports_sent', 7), ('reports_rejected', 1), ('reports_unanswered', 2), ('reports_withheld', 3),
    ('reports_dropped', 4), ('requests', 9), ('requests_boot', 77), ('request_on_wire', 8), ('quota_day', 20000),
    ('quota_key', 4000000000), ('quota_remaining', 993), ('quota_limit_key', 4000000000), ('quota_limit', 1000),
    ('last_report_at', 1728000000);
INSERT INTO blocked VALUES (x'c6336407', 6, 22, 5), (x'c6336408', -1, -1, 6);
INSERT INTO sources VALUES (x'c6336407'), (x'20010db8000000000000000000000007');
INSERT INTO ports VALUES (6, 22, 5), (-1, -1, 6);
INSERT INTO outbox VALUES (1, 20000, x'c6336407', 'ssh', x'c6336407', 9, 'C6336407', 1, 'ssh', 9, 'sent', 8, 20000);
PRAGMA journal_mode = WAL;
PRAGMA user_version = 3;
"""
OTHER_TABLES = ("blocked", "sources", "ports", "outbox")
COLUMNS = "id, day, source, category, address, leading, entry, own, protocol, packets, state, request, seen"


def content(file: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(file)) as connection:
        found = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("totals", "blocked")}
        return found | {"outbox": connection.execute(f"SELECT {COLUMNS} FROM outbox ORDER BY id").fetchall()}


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2], ids=["1", "2"])
def test_a_file_of_an_earlier_version_is_brought_up_to_date_where_it_is(
    tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = bytes([198, 51, 100, 7]), bytes([198, 51, 100, 8])
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript(version)
    for _ in range(2):
        with closing(Database(tmp_path)) as database:
            open_now(database)
        assert content(tmp_path / FILE) == {
            "totals": [("reports_sent", 7)],
            "blocked": [(one, 6, 22, 5)],
            "outbox": [
                (1, 20_000, one, "brute_force", one, 9, "C6336407", 1, "ssh", 9, "waiting", None, 20_000),
                (2, 20_000, other, "brute_force", other, 8, "C6336408", 1, "ssh", 8, "sent", 1, 20_000),
            ],
        }
    assert {path.name for path in tmp_path.iterdir()} == {FILE}
    assert not caplog.records


def test_totals_and_other_numbers_are_told_apart_and_none_is_lost(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript(VERSION_3)
        before = dict(connection.execute("SELECT name, value FROM ledger"))
        others = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in OTHER_TABLES}
    with closing(Database(tmp_path)) as database:
        assert TrafficStore(database).load() == SavedTraffic(
            Totals(
                PacketCount(12_345, 678_900),
                20_000,
                PacketCount(345, 18_900),
                12_300,
                12_340,
                {Family.V4: PacketCount(10_000, 600_000), Family.V6: NOTHING},
                1_234,
            ),
            frozenset({bytes([198, 51, 100, 7]), bytes.fromhex("20010db8000000000000000000000007")}),
            {(6, 22): 5, (UNATTRIBUTED, UNATTRIBUTED): 6},
        )
        with database.transaction() as connection:
            totals, meta = (dict(connection.execute(f"SELECT name, value FROM {each}")) for each in ("totals", "meta"))
            assert {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in OTHER_TABLES} == others
            assert not connection.execute("SELECT * FROM sqlite_schema WHERE name = 'ledger'").fetchall()
            for name in before:
                if name.startswith(("reports_", "filed_")):
                    assert read_total(connection, name) == before[name]
            assert read_total(connection, "never") == 0
    kept_apart = ("requests", "requests_boot", "request_on_wire", "last_report_at")
    assert meta == {name: before[name] for name in before if name.startswith("quota_") or name in kept_apart}
    assert sorted([*totals.values(), *meta.values()]) == sorted(before.values())


def test_rows_of_one_ipv6_network_become_the_one_that_got_farthest(tmp_path: Path) -> None:
    def address(network: int, host: int) -> bytes:
        return (0x20010DB8 << 96 | network << 64 | host).to_bytes(16, "big")

    states = ("waiting", "rejected", "sending", "unanswered", "sent")
    rows = [
        # Network n has rows in the first n + 1 of these states, the later ones with fewer packets.
        (20_000, address(network, host), "brute_force", 10 - host, states[host], 20_000 + host % 2)
        for network in range(len(states))
        for host in range(network + 1)
    ]
    rows += [
        # Of equals, the largest gives its name.
        (20_000, address(9, 1), "brute_force", 3, "waiting", 20_000),
        (20_000, address(9, 2), "brute_force", 4, "waiting", 20_000),
        # Neither another category nor another day is the same row, nor what is withheld.
        (20_000, address(9, 3), "web_exploit", 5, "sent", 20_000),
        (20_001, address(9, 4), "brute_force", 6, "sent", 20_001),
        (20_000, address(9, 5), "", 7, "withheld", 20_000),
        (20_000, address(9, 6), "", 8, "withheld", 20_000),
    ]
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript(VERSION_2)
        connection.execute("DELETE FROM outbox")
        connection.executemany(
            "INSERT INTO outbox (day, address, category, protocol, packets, state, request, seen) "
            "VALUES (?, ?, ?, 'ssh', ?, ?, 5, ?)",
            rows,
        )
        connection.commit()
    with closing(Database(tmp_path)) as database:
        open_now(database)
    found = {
        (day, source, category): (found_address, leading, packets, state, request, seen)
        for _, day, source, category, found_address, leading, _, _, _, packets, state, request, seen in content(
            tmp_path / FILE
        )["outbox"]
    }
    expected: dict[tuple[int, bytes, str], tuple[object, ...]] = {
        (20_000, address(network, 0)[:8], "brute_force"): (
            address(network, network),
            10 - network,
            sum(10 - host for host in range(network + 1)),
            states[network],
            5,
            20_000 + min(network, 1),
        )
        for network in range(len(states))
    }
    network = address(9, 0)[:8]
    assert found == expected | {
        (20_000, network, "brute_force"): (address(9, 2), 4, 7, "waiting", 5, 20_000),
        (20_000, network, "web_exploit"): (address(9, 3), 5, 5, "sent", 5, 20_000),
        (20_001, network, "brute_force"): (address(9, 4), 6, 6, "sent", 5, 20_001),
        (20_000, network, ""): (address(9, 6), 8, 15, "withheld", 5, 20_000),
    }


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2, VERSION_3], ids=["1", "2", "3"])
def test_a_file_of_an_earlier_version_has_the_columns_of_a_new_one(tmp_path: Path, version: str) -> None:
    (tmp_path / "new").mkdir()
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript(version)
    found = []
    for directory in (tmp_path, tmp_path / "new"):
        with closing(Database(directory)) as database, database.transaction() as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
            found.append({name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in tables})
    assert found[0] == found[1]


def test_without_room_a_file_of_an_earlier_version_stays_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript(VERSION_1)
    database = Database(tmp_path)
    with no_room(1), pytest.raises(RecordError, match="make room"):
        open_now(database)
    assert not (tmp_path / f"{FILE}.damaged").exists()
    assert read(database) == {"reports_sent": 7}
    database.close()


def test_a_place_that_is_none_is_an_error_and_opens_when_it_is_there(tmp_path: Path) -> None:
    database = Database(tmp_path / "later")
    for action in (partial(open_now, database), partial(write, database, "a", 1)):
        with pytest.raises(RecordError, match=r"can't be used .*make room, or fix its permissions"):
            action()
    (tmp_path / "later").mkdir()
    write(database, "a", 1)
    assert read(database) == {"a": 1}
    database.close()


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file can grow beyond this size: the kernel itself cuts the write off, for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_nothing_changes_and_it_goes_on_when_there_is_some(database: Database, tmp_path: Path) -> None:
    write(database, "a", 1)
    size = (tmp_path / f"{FILE}-wal").stat().st_size
    with no_room(size), pytest.raises(RecordError, match="can't be used"):
        write(database, "b", 2)
    assert read(database) == {"a": 1}
    write(database, "b", 2)
    assert read(database) == {"a": 1, "b": 2}


def test_without_room_for_the_file_itself_it_is_an_error_and_nothing_is_set_aside(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with no_room(0), pytest.raises(RecordError, match="can't be used"):
        open_now(database)
    open_now(database)
    write(database, "a", 1)
    database.close()
    assert {path.name for path in tmp_path.iterdir()} == {FILE}


def test_another_process_that_has_it_is_hardly_waited_for(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database:
        open_now(database)
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(RecordError, match="locked"):
            write(database, "a", 1)
        assert time.monotonic() - began < 1
        other.execute("COMMIT")
    with closing(database):
        write(database, "a", 1)
        assert read(database) == {"a": 1}


WRITER = """
import sys
from pathlib import Path
from sikkerguard.edges.storage.database import Database
database = Database(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    with database.transaction(durable=number % 10 == 0) as connection:
        for name in ("a", "b"):
            connection.execute("INSERT OR REPLACE INTO totals VALUES (?, ?)", (name, number))
    print(number, flush=True)
"""


def test_a_killed_process_leaves_what_it_committed_and_no_half_of_anything(tmp_path: Path) -> None:
    committed = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            cwd=Path(__file__).parents[4],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            lines = iter(process.stdout)
            for line in lines:
                if int(line) >= 100:
                    break
            process.kill()
            committed = max(100, *(int(line) for line in lines if line.endswith("\n")), 0)
        with closing(Database(tmp_path)) as database:
            held = read(database)
        assert held["a"] == held["b"] >= committed
