"""What survives on disk, on a real disk: whole or not at all, noticed when damaged, and owned by one service."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.lists.coverage import Extent
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.size_guard import SourceHistory, Version
from sikkerguard.core.lists.sources import LeftOut, ListedSource, VerifiedList
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.sikkerapi.endpoint import EndpointMemory, Proof
from sikkerguard.edges.storage import store as module
from sikkerguard.edges.storage.processes import is_dying
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import ConfigError, ListError, SikkerGuardError
from tests.unit.core.net.test_intervals import families, gather, prefixes, some_networks

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
PULLS = PullMemory({"SikkerAPI": SourceHistory((Version(1.5, Extent(3, 5, 7)),), "q", True, frozenset({"shrunk"}))}, 2)
ENDPOINT = EndpointMemory("SikkerAPI https://api.example.net:443", (Proof("192.0.2.1", 1.5),))


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    store.prepare()
    store.claim()
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


@settings(max_examples=60)
@given(verified_lists)
def test_a_list_comes_back_as_it_was(known: VerifiedList) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Store(Path(directory)).save(known)
        again = Store(Path(directory))
        assert again.load_list() == known
        assert again.peek_list() == known


def test_the_last_list_is_the_one_that_is_kept(store: Store) -> None:
    assert store.load_list() is None
    assert store.peek_list() is None
    for known in (OLD, NEW, OLD):
        store.save(known)
        assert store.load_list() == known
    assert OLD != NEW


@settings(max_examples=60)
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
        store.save(Allowlist(tuple(entries)))
        assert store.load_allowlist() == Allowlist(tuple(entries))


def test_no_entry_costs_the_others_of_an_allowlist(store: Store) -> None:
    # inet_ntop writes this one with dots.
    texts = ("198.51.100.1", "::ffff:c633:6407", "2001:db8::53")
    known = Allowlist(tuple(AllowEntry(*parse_prefix(text), "SIKKER_WHITELIST") for text in texts))
    store.save(known)
    assert store.load_allowlist() == known


def test_a_list_is_there_once_it_is_kept_sound_or_not(store: Store, tmp_path: Path) -> None:
    assert not store.has_list()
    (store.directory / "list.bin").write_bytes(b"nonsense")
    assert store.has_list()


def test_what_is_known_of_pulls_comes_back(store: Store) -> None:
    assert store.load_pull_memory() == PullMemory()
    store.save(PULLS)
    assert Store(store.directory).load_pull_memory() == PULLS


def test_what_is_known_of_sikkerapis_addresses_comes_back(store: Store) -> None:
    assert store.load_endpoint() == EndpointMemory()
    store.save(ENDPOINT)
    assert Store(store.directory).load_endpoint() == ENDPOINT


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"null", b"7", b'"ab"', b"[1]", b"[[1, 2]]", b'[["198.51.100.300", "x"]]', b"[null]"],
)
def test_what_can_not_be_read_is_as_if_it_was_not_there(store: Store, content: bytes) -> None:
    for name in ("allowlist.json", "pulls.json", "ways.json"):
        (store.directory / name).write_bytes(content)
    assert store.load_allowlist() == Allowlist()
    assert store.load_pull_memory() == PullMemory()
    assert store.load_endpoint() == EndpointMemory()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "state")
    before = os.umask(0)
    try:
        store.prepare()
        store.save(OLD)
        store.save(Allowlist())
        store.save(PullMemory())
        store.save(EndpointMemory())
    finally:
        os.umask(before)
        store.close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()}
    names = ["list.bin", "allowlist.json", "pulls.json", "ways.json", "service.lock"]
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
    store.save(OLD)
    whole = list_file(store).read_bytes()
    for at, byte in enumerate(whole):
        for bit in range(8):
            assert damaged(store, whole[:at] + bytes([byte ^ 1 << bit]) + whole[at + 1 :]), (at, bit)


def test_every_cut_is_noticed(store: Store) -> None:
    store.save(OLD)
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
    with pytest.raises(ListError, match=r"is damaged .* not used"):
        store.load_list()
    # Reading writes nothing: a disk that hangs must not keep a start from its end.
    assert files(store) == {"list.bin", "service.lock"}
    store.save(NEW)
    assert (store.directory / "list.bin.damaged").read_bytes() == content
    assert store.load_list() == NEW


@pytest.mark.parametrize("cut", [0, 1, -1, 60])
def test_the_list_before_a_damaged_one_is_used(store: Store, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    store.save(OLD)
    store.save(NEW)
    content = list_file(store).read_bytes()[:cut]
    list_file(store).write_bytes(content)
    assert store.peek_list() == OLD
    assert not caplog.records
    assert store.load_list() == OLD
    assert "the one before it is used, and a new one is pulled" in caplog.text
    # It is not the damaged one that is kept as the one before.
    third = verified(3)
    store.save(third)
    assert store.load_list() == third
    assert (store.directory / "list.bin.damaged").read_bytes() == content
    list_file(store).write_bytes(b"")
    assert Store(store.directory).load_list() == OLD


def test_two_damaged_lists_are_none(store: Store) -> None:
    for known in (OLD, NEW):
        store.save(known)
    for name in ("list.bin", "list.bin.1"):
        (store.directory / name).write_bytes(b"?")
    for read in (store.load_list, store.peek_list):
        with pytest.raises(ListError, match=r"list\.bin is damaged"):
            read()


def test_the_list_before_is_found_where_the_newest_was_about_to_take_its_place(store: Store) -> None:
    store.save(OLD)
    list_file(store).rename(store.directory / "list.bin.1")
    assert store.has_list()
    assert store.load_list() == store.peek_list() == OLD


def test_a_file_system_without_links_keeps_two_lists_as_well(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for number in (1, 2, 3):
        store.save(verified(number))
    assert store.load_list() == verified(3)
    list_file(store).write_bytes(b"")
    assert store.load_list() == verified(2)
    assert files(store) == {"list.bin", "list.bin.1", "service.lock"}


def test_a_list_of_another_version_is_not_guessed_at(store: Store) -> None:
    store.save(OLD)
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
    return store.load_list(), store.load_allowlist(), store.load_pull_memory(), store.load_endpoint()


SAVERS: list[Callable[[Store], None]] = [
    lambda store: store.save(NEW),
    lambda store: store.save(Allowlist((AllowEntry(Family.V4, Prefix(0xC6336401, 32), "default gateway"),))),
    lambda store: store.save(PULLS),
    lambda store: store.save(ENDPOINT),
]


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_write_without_room_leaves_what_was_there(store: Store, save: Callable[[Store], None], size: int) -> None:
    store.save(OLD)
    store.save(Allowlist())
    store.save(PullMemory())
    store.save(EndpointMemory())
    before = files(store)
    with pytest.raises(OSError, match="too large"), no_room(size):
        save(store)
    assert files(store) == before
    nothing_else = (OLD, Allowlist(), PullMemory(), EndpointMemory())
    assert loaded(store) == nothing_else
    save(store)
    assert loaded(store) != nothing_else


def test_a_disk_that_refuses_to_sync_leaves_what_was_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(OLD)
    before = files(store)

    def refuse(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            store.save(NEW)
    assert files(store) == before
    assert store.load_list() == OLD


def test_a_place_that_can_not_be_taken_leaves_no_litter(store: Store) -> None:
    (list_file(store) / "inside").mkdir(parents=True)
    before = files(store)
    with pytest.raises(OSError, match="directory"):
        store.save(NEW)
    assert files(store) == before


def test_a_file_is_synced_before_it_takes_its_place_and_the_place_after(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(NEW)
    whole = list_file(store).read_bytes()
    store.save(OLD)
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
    store.save(NEW)
    assert seen == [("file", OLD), ("directory", NEW)]


def test_what_a_crash_left_half_written_is_in_nobodys_way(store: Store) -> None:
    store.save(OLD)
    (store.directory / ".list.bin.new").write_bytes(b"half" * 10_000)
    assert store.load_list() == OLD
    store.save(NEW)
    assert store.load_list() == NEW
    assert files(store) == {"list.bin", "list.bin.1", "service.lock"}


WRITER = """
import sys
from pathlib import Path
from sikkerguard.edges.storage.store import Store
from tests.unit.edges.storage.test_store import NEW, OLD
store = Store(Path(sys.argv[1]))
store.save(OLD)
print("began", flush=True)
while True:
    store.save(NEW)
    store.save(OLD)
"""

HOLDER = """
import sys
from pathlib import Path
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import ConfigError
store = Store(Path(sys.argv[1]))
try:
    store.prepare()
    store.claim()
except ConfigError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(program: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process that runs this, and what it prints; killed at the end, without a chance to tidy up."""
    root = Path(__file__).parents[4]
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
    assert str(refused.value).endswith(f"runs on {store.directory} (process {os.getpid()}); stop it first.")
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
    store.claim()
    assert Store(tmp_path).service_pid() == os.getpid()
    store.close()


def test_a_lock_that_was_let_go_can_be_taken(store: Store) -> None:
    store.close()
    store.close()
    assert store.service_pid() is None
    other = Store(store.directory)
    other.prepare()
    other.claim()
    assert store.service_pid() == os.getpid()
    other.close()


def test_a_lock_file_of_long_ago_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "service.lock").write_text(f"{'9' * 20}\n")
    store = Store(tmp_path)
    assert store.service_pid() is None
    store.prepare()
    store.claim()
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
    store.save(OLD)
    assert store.load_list() == OLD
    assert store.service_pid() == os.getpid()
    with pytest.raises(ConfigError):
        Store(store.directory).prepare()
    with pytest.raises(OSError, match="too large"), no_room(0):
        store.save(NEW)
    assert handles() == before
    store.close()
    assert handles() == before - 1
    with no_room(0), pytest.raises(OSError, match="too large"):
        store.claim()
    assert handles() == before
    store.close()
    assert handles() == before - 1


# No disk, no reason not to protect


def test_a_place_that_can_not_be_a_directory_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Store(place)
        store.prepare()
        assert not store.has_list()
        assert store.load_pull_memory() == PullMemory()
        with pytest.raises(NotADirectoryError):
            store.claim()
        store.close()
    with pytest.raises(SikkerGuardError, match="can't be read"):
        Store(tmp_path / "file").service_pid()


def test_the_lock_is_taken_without_a_write(store: Store) -> None:
    """A disk without room: the lock was there, and is one; who holds it was in it, and is replaced in place."""
    store.close()
    lock = store.directory / "service.lock"
    lock.write_text("9" * 20 + "\n")
    before = lock.stat()
    with no_room(0):
        store.prepare()
        with pytest.raises(ConfigError, match="another sikkerguard runs"):
            Store(store.directory).prepare()
    assert (lock.stat().st_ino, lock.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    store.claim()
    assert Store(store.directory).service_pid() == os.getpid()


def test_a_directory_that_was_deleted_is_made_again(store: Store) -> None:
    assert not store.claim()
    shutil.rmtree(store.directory)
    assert store.claim()
    assert not store.claim()
    assert Store(store.directory).service_pid() == os.getpid()
    with pytest.raises(ConfigError, match="another sikkerguard runs"):
        Store(store.directory).prepare()
    shutil.rmtree(store.directory)
    store.save(NEW)
    assert store.load_list() == NEW
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


def test_what_ended_but_for_its_last_thread_holds_nobody_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGKILL, with a thread that waits for a frozen disk: the lock stays until that thaws."""
    monkeypatch.setattr(module, "is_dying", lambda number: number == os.getpid())
    other = Store(store.directory)
    other.prepare()
    other.save(NEW)


@pytest.mark.parametrize("state", ["Z (zombie)", "X (dead)", "S (sleeping)"])
def test_who_is_dying_is_told_by_the_kernel(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: f"Name:\tpython3\nState:\t{state}\nUid:\t0\t0\t0\t0\n")
    assert is_dying(1) == (state[0] != "S")


# Whose directory this is, who must not have root do what he can't


@pytest.fixture(name="trap")
def _trap(tmp_path: Path) -> Iterator[Trap]:
    """A directory of another user, and a file of root's that he would like to have."""
    if os.geteuid():
        pytest.skip("to give a directory away takes root")
    directory = tmp_path / "theirs"
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    precious = tmp_path / "precious"
    precious.write_text("of root\n")
    yield Trap(Store(directory), precious)
    assert precious.read_text() == "of root\n"
    assert precious.stat().st_uid == 0


@dataclass
class Trap:
    store: Store
    precious: Path

    def lay(self, kind: str, name: str) -> None:
        place = self.store.directory / name
        place.unlink(missing_ok=True)
        if kind == "link":
            place.symlink_to(self.precious)
        elif kind == "second name":
            os.link(self.precious, place)
        else:
            os.mkfifo(place)
            os.chown(place, 65534, 65534)


@pytest.mark.parametrize("kind", ["link", "second name", "fifo"])
def test_nothing_that_another_user_laid_is_followed(trap: Trap, kind: str) -> None:
    for name in ("list.bin", "list.bin.1", "allowlist.json", "pulls.json", "ways.json", "service.lock"):
        trap.lay(kind, name)
    trap.precious.write_text("[]\n")
    for read in (trap.store.peek_list, trap.store.load_list):
        with pytest.raises(ListError, match="can't be read"):
            read()
    with pytest.raises(SikkerGuardError, match="can't be read"):
        trap.store.service_pid()
    trap.store.prepare()
    with pytest.raises(OSError, match=r"symbolic|owner|regular"):
        trap.store.claim()
    trap.store.load_allowlist()
    trap.precious.write_text("of root\n")


@pytest.mark.parametrize("kind", ["link", "second name", "fifo"])
def test_what_root_writes_there_goes_nowhere_else_and_is_the_others(trap: Trap, kind: str) -> None:
    for name in (".pulls.json.new", "pulls.json", ".list.bin.new", ".list.bin.1.new", "list.bin"):
        trap.lay(kind, name)
    trap.store.save(PullMemory())
    assert (trap.store.directory / "pulls.json").lstat().st_uid == 65534
    trap.store.save(NEW)
    assert trap.store.load_list() == NEW
    assert list_file(trap.store).lstat().st_uid == 65534


@pytest.mark.parametrize("number", ["0", "1 ", "-1", "", "x", "9" * 30])
def test_root_signals_no_process_that_the_lock_names_at_will(trap: Trap, number: str) -> None:
    lock = trap.store.directory / "service.lock"
    # Process 1 is root's, and there wherever this runs.
    other = 65534
    with child("import os, sys; os.setuid(65534); print('up', flush=True); sys.stdin.read()", Path()) as (mine, output):
        assert output.readline() == "up\n"
        lock.write_text(f"{number}\n")
        os.chown(lock, other, other)
        with lock.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            found = trap.store.service_pid()
            assert found in ((None, 1) if number == "1 " else (None,))
            lock.write_text(f"{mine.pid}\n")
            assert trap.store.service_pid() == mine.pid


def test_nothing_is_made_before_a_method_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert store.load_list() is None
    assert store.peek_list() is None
    assert store.load_allowlist() == Allowlist()
    assert store.load_pull_memory() == PullMemory()
    assert store.service_pid() is None
    assert list(tmp_path.iterdir()) == []
