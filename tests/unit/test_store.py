"""What survives on disk, on a real disk: whole or not at all, noticed when damaged, and owned by one service."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.model import (
    AllowEntry,
    Allowlist,
    Blocklist,
    Family,
    LeftOut,
    ListedSource,
    Prefix,
    VerifiedList,
    parse_prefix,
)
from sikkerguard.edges.store import Store
from sikkerguard.errors import ConfigError, ListError, SikkerGuardError
from tests.unit.test_ranges import families, gather, prefixes, some_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def verified(number: int) -> VerifiedList:
    """A small list with everything in it; different for each number."""
    v4 = gather(Family.V4, [bytes([198, 51, 100, number]), b"\xc6\x33\x64\xff"], [Prefix(0xCB007100, 24)])
    v6 = gather(Family.V6, [(0x20010DB8 << 96 | number).to_bytes(16, "big")], [Prefix(0x20010DB8_00000001 << 64, 64)])
    sources = (
        ListedSource("SikkerAPI", Blocklist(v4, v6), 1_800_000_000.25),
        ListedSource("SIKKER_CUSTOM_BLACKLIST", Blocklist(v4=v4), 1_800_000_001.5),
    )
    left_out = (
        LeftOut(Family.V4, 0xC6336400 + number, "DNS by 127.0.0.1"),
        LeftOut(Family.V6, (0x20010DB8 << 96) + number, "API"),
    )
    return VerifiedList(sources, 1_800_000_002.125, left_out)


OLD, NEW = verified(1), verified(2)


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    store.prepare()
    yield store
    store.close()


def files(store: Store) -> set[str]:
    return {path.name for path in store.directory.iterdir()}


def list_file(store: Store) -> Path:
    return store.directory / "list.bin"


# Round trips


times = st.floats(0, 1e11)
sources = st.builds(
    ListedSource,
    st.text(max_size=20),
    st.builds(Blocklist, some_networks(Family.V4), some_networks(Family.V6)),
    times,
)
verified_lists = st.builds(
    VerifiedList,
    st.lists(sources, max_size=4).map(tuple),
    times,
    st.lists(
        st.one_of(
            st.builds(LeftOut, st.just(Family.V4), st.integers(0, 2**32 - 1), st.text(max_size=20)),
            st.builds(LeftOut, st.just(Family.V6), st.integers(0, 2**128 - 1), st.text(max_size=20)),
        ),
        max_size=8,
    ).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(verified_lists)
def test_a_list_comes_back_as_it_was(known: VerifiedList) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Store(Path(directory)).save_list(known)
        again = Store(Path(directory))
        assert again.load_list() == known
        assert again.peek_list() == known


def test_the_last_list_is_the_one_that_is_kept(store: Store) -> None:
    assert store.load_list() is None
    assert store.peek_list() is None
    for known in (OLD, NEW, OLD):
        store.save_list(known)
        assert store.load_list() == known
    assert OLD != NEW


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        families.flatmap(lambda family: st.builds(AllowEntry, st.just(family), prefixes(family), st.text(max_size=20))),
        max_size=5,
    )
)
def test_an_allowlist_comes_back_as_it_was(entries: list[AllowEntry]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory))
        assert store.load_allowlist() == Allowlist()
        store.save_allowlist(Allowlist(tuple(entries)))
        assert store.load_allowlist() == Allowlist(tuple(entries))


def test_no_entry_costs_the_others_of_an_allowlist(store: Store) -> None:
    # inet_ntop writes this one with dots.
    texts = ("198.51.100.1", "::ffff:c633:6407", "2001:db8::53")
    known = Allowlist(tuple(AllowEntry(*parse_prefix(text), "SIKKER_WHITELIST") for text in texts))
    store.save_allowlist(known)
    assert store.load_allowlist() == known


def test_a_list_is_there_once_it_is_kept_sound_or_not(store: Store, tmp_path: Path) -> None:
    assert not store.has_list()
    (store.directory / "list.bin").write_bytes(b"nonsense")
    assert store.has_list()


def test_what_is_known_of_pulls_comes_back(store: Store) -> None:
    assert store.load_pulls() == {}
    store.save_pulls({"heldBack": ["shrunk"], "n": 3})
    assert Store(store.directory).load_pulls() == {"heldBack": ["shrunk"], "n": 3}


def test_what_is_known_of_the_way_to_sikkerapi_comes_back(store: Store) -> None:
    assert store.load_ways() == {}
    store.save_ways({"way": "https", "proofs": [["192.0.2.1", 1.5]]})
    assert Store(store.directory).load_ways() == {"way": "https", "proofs": [["192.0.2.1", 1.5]]}


def test_a_list_is_accepted_once(store: Store) -> None:
    assert not store.take_acceptance()
    Store(store.directory).request_acceptance()
    assert store.take_acceptance()
    assert not store.take_acceptance()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"null", b"7", b'"ab"', b"[1]", b"[[1, 2]]", b'[["198.51.100.300", "x"]]', b"[null]"],
)
def test_what_can_not_be_read_is_as_if_it_was_not_there(store: Store, content: bytes) -> None:
    for name in ("allowlist.json", "pulls.json", "ways.json"):
        (store.directory / name).write_bytes(content)
    assert store.load_allowlist() == Allowlist()
    assert store.load_pulls() == {}
    assert store.load_ways() == {}


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "state")
    before = os.umask(0)
    try:
        store.prepare()
        store.save_list(OLD)
        store.save_allowlist(Allowlist())
        store.save_pulls({})
        store.save_ways({})
        store.request_acceptance()
    finally:
        os.umask(before)
        store.close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()}
    names = ["list.bin", "allowlist.json", "pulls.json", "ways.json", "accept-once", "service.lock"]
    assert modes == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


# Damage


def damaged(store: Store, content: bytes) -> bool:
    list_file(store).write_bytes(content)
    try:
        store.peek_list()
    except ListError:
        return list_file(store).read_bytes() == content
    return False


def test_every_flipped_bit_is_noticed(store: Store) -> None:
    store.save_list(OLD)
    whole = list_file(store).read_bytes()
    for at, byte in enumerate(whole):
        for bit in range(8):
            assert damaged(store, whole[:at] + bytes([byte ^ 1 << bit]) + whole[at + 1 :]), (at, bit)


def test_every_cut_is_noticed(store: Store) -> None:
    store.save_list(OLD)
    whole = list_file(store).read_bytes()
    for length in range(len(whole)):
        assert damaged(store, whole[:length]), length
        # As a disk leaves it that wrote the length, but not the data.
        assert damaged(store, whole[:length] + bytes(len(whole) - length)), length
    for more in (b"\0", b"\n", whole):
        assert damaged(store, whole + more)


@pytest.mark.parametrize(
    "content", [b"", b"SIKKERGUARD LIST 1\n", b"SIKKERGUARD LIST 2\n{}\n" + bytes(32), b"198.51.100.7\n" * 100]
)
def test_a_damaged_list_is_set_aside_and_a_new_one_can_be_kept(store: Store, content: bytes) -> None:
    list_file(store).write_bytes(content)
    with pytest.raises(ListError, match="set aside") as refused:
        store.load_list()
    aside = store.directory / "list.bin.damaged"
    assert str(aside) in str(refused.value)
    assert aside.read_bytes() == content
    assert not list_file(store).exists()
    assert store.load_list() is None
    store.save_list(NEW)
    assert store.load_list() == NEW


def test_a_list_of_another_version_is_not_guessed_at(store: Store) -> None:
    store.save_list(OLD)
    body = list_file(store).read_bytes()[: -hashlib.sha256().digest_size].replace(b"LIST 1\n", b"LIST 2\n", 1)
    list_file(store).write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ListError, match="version"):
        store.load_list()


def test_a_list_that_can_not_be_read_stays_where_it_is(store: Store) -> None:
    list_file(store).mkdir()
    with pytest.raises(ListError, match="can't be read"):
        store.load_list()
    assert list_file(store).is_dir()


# Writing


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file can grow beyond this size: the kernel itself cuts the write off, for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def loaded(store: Store) -> tuple[object, ...]:
    return store.load_list(), store.load_allowlist(), store.load_pulls(), store.load_ways()


SAVERS: list[Callable[[Store], None]] = [
    lambda store: store.save_list(NEW),
    lambda store: store.save_allowlist(Allowlist((AllowEntry(Family.V4, Prefix(0xC6336401, 32), "default gateway"),))),
    lambda store: store.save_pulls({"heldBack": "cut off"}),
    lambda store: store.save_ways({"proofs": [["192.0.2.1", 1.5]]}),
]


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_write_without_room_leaves_what_was_there(store: Store, save: Callable[[Store], None], size: int) -> None:
    store.save_list(OLD)
    store.save_allowlist(Allowlist())
    store.save_pulls({})
    store.save_ways({})
    before = files(store)
    with pytest.raises(OSError, match="too large"), no_room(size):
        save(store)
    assert files(store) == before
    assert loaded(store) == (OLD, Allowlist(), {}, {})
    save(store)
    assert loaded(store) != (OLD, Allowlist(), {}, {})


def test_a_disk_that_refuses_to_sync_leaves_what_was_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save_list(OLD)
    before = files(store)

    def refuse(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            store.save_list(NEW)
    assert files(store) == before
    assert store.load_list() == OLD


def test_a_place_that_can_not_be_taken_leaves_no_litter(store: Store) -> None:
    (list_file(store) / "inside").mkdir(parents=True)
    before = files(store)
    with pytest.raises(OSError, match="directory"):
        store.save_list(NEW)
    assert files(store) == before


def test_a_file_is_synced_before_it_takes_its_place_and_the_place_after(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save_list(NEW)
    whole = list_file(store).read_bytes()
    store.save_list(OLD)
    seen: list[tuple[str, VerifiedList | None]] = []
    sync = os.fsync

    def watched(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            seen.append(("directory", store.peek_list()))
        else:
            assert os.fstat(handle).st_size == len(whole)
            seen.append(("file", store.peek_list()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    store.save_list(NEW)
    assert seen == [("file", OLD), ("directory", NEW)]


def test_what_a_crash_left_half_written_is_in_nobodys_way(store: Store) -> None:
    store.save_list(OLD)
    (store.directory / ".list.bin.new").write_bytes(b"half" * 10_000)
    assert store.load_list() == OLD
    store.save_list(NEW)
    assert store.load_list() == NEW
    assert files(store) == {"list.bin", "service.lock"}


WRITER = """
import sys
from pathlib import Path
from sikkerguard.edges.store import Store
from tests.unit.test_store import NEW, OLD
store = Store(Path(sys.argv[1]))
store.save_list(OLD)
print("began", flush=True)
while True:
    store.save_list(NEW)
    store.save_list(OLD)
"""

HOLDER = """
import sys
from pathlib import Path
from sikkerguard.edges.store import Store
from sikkerguard.errors import ConfigError
store = Store(Path(sys.argv[1]))
try:
    store.prepare()
except ConfigError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(program: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process that runs this, and what it prints; killed at the end, without a chance to tidy up."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            yield process, process.stdout
        finally:
            process.kill()


def test_a_reader_sees_the_old_list_or_the_new_one_even_if_the_writer_is_killed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seen = set[bool]()
    with child(WRITER, tmp_path) as (_, output):
        assert output.readline() == "began\n"
        reads, deadline = 0, time.monotonic() + 20
        while (reads < 1500 or len(seen) < 2) and time.monotonic() < deadline:
            found = store.peek_list()
            assert found in (OLD, NEW)
            seen.add(found == NEW)
            reads += 1
    assert seen == {False, True}
    assert store.load_list() in (OLD, NEW)


# The lock


def test_a_second_service_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="another sikkerguard runs") as refused:
        Store(store.directory).prepare()
    assert str(refused.value).startswith("SIKKER_STATE_DIR: ")
    with child(HOLDER, store.directory) as (_, output):
        assert "another sikkerguard runs" in output.readline()


def test_the_first_service_is_named_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.service_pid() is None
    with child(HOLDER, tmp_path) as (process, output):
        assert output.readline() == "held\n"
        assert store.service_pid() == process.pid
        with pytest.raises(ConfigError, match="another sikkerguard runs"):
            store.prepare()
        # To be refused takes nothing from the one that runs.
        assert store.service_pid() == process.pid
        assert store.load_list() is None
    assert store.service_pid() is None
    store.prepare()
    assert Store(tmp_path).service_pid() == os.getpid()
    store.close()


def test_a_lock_that_was_let_go_can_be_taken(store: Store) -> None:
    store.close()
    store.close()
    assert store.service_pid() is None
    other = Store(store.directory)
    other.prepare()
    assert store.service_pid() == os.getpid()
    other.close()


def test_a_lock_file_of_long_ago_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "service.lock").write_text(f"{'9' * 20}\n")
    store = Store(tmp_path)
    assert store.service_pid() is None
    store.prepare()
    assert Store(tmp_path).service_pid() == os.getpid()
    store.close()


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    # Like any helper that a library starts and forgets; it would keep the next start from its lock.
    program = "print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False
    ) as helper:
        assert helper.stdout
        assert helper.stdout.readline() == "up\n"
        store.close()
        assert Store(tmp_path).service_pid() is None
        helper.kill()


def test_nothing_is_left_open(store: Store) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    store.save_list(OLD)
    assert store.load_list() == OLD
    assert store.service_pid() == os.getpid()
    with pytest.raises(ConfigError):
        Store(store.directory).prepare()
    with pytest.raises(OSError, match="too large"), no_room(0):
        store.save_list(NEW)
    assert handles() == before
    store.close()
    assert handles() == before - 1
    with pytest.raises(ConfigError), no_room(0):
        store.prepare()
    assert handles() == before - 1


def test_a_place_that_can_not_be_a_directory_is_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"SIKKER_STATE_DIR: .* can't be used"):
            Store(place).prepare()
    with pytest.raises(SikkerGuardError, match="can't be read"):
        Store(tmp_path / "file").service_pid()


def test_a_full_disk_is_a_matter_of_configuration_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with no_room(0), pytest.raises(ConfigError, match=r"SIKKER_STATE_DIR: .* can't be used"):
        store.prepare()
    # And keeps no lock that the next try would stumble over.
    store.prepare()
    store.close()


def test_nothing_is_made_before_a_method_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert store.load_list() is None
    assert store.peek_list() is None
    assert store.load_allowlist() == Allowlist()
    assert store.load_pulls() == {}
    assert not store.take_acceptance()
    assert store.service_pid() is None
    assert list(tmp_path.iterdir()) == []
