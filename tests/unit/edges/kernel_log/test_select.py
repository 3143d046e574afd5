"""The sources of kernel log lines, against what /dev/kmsg and the journal would give; the real ones are elsewhere."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.edges.kernel_log.journal import Journal
from sikkerguard.edges.kernel_log.kmsg import BATCH, Kmsg, open_kmsg
from sikkerguard.edges.kernel_log.select import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sikkerguard.core.interfaces import KernelLog

PROJECT = Path(__file__).parents[4]
BOOT = bytes(16)


class Ring:
    """What read(2) of /dev/kmsg gives, one thing after the other; then there is nothing yet."""

    def __init__(self, *outcomes: bytes | OSError) -> None:
        self.outcomes = list(outcomes)
        self.asked = 0

    def read(self, descriptor: int, size: int) -> bytes:
        self.asked += 1
        assert (descriptor, size >= 8192) == (99, True)
        outcome = self.outcomes.pop(0) if self.outcomes else BlockingIOError(errno.EAGAIN, "not yet")
        if isinstance(outcome, OSError):
            raise outcome
        return outcome


def record(number: int, text: str, level: int = 4) -> bytes:
    return f"{level},{number},1615668572,-;{text}\n".encode()


def overrun() -> OSError:
    return BrokenPipeError(errno.EPIPE, "overwritten")


def kmsg(*outcomes: bytes | OSError) -> Kmsg:
    return Kmsg(99, Ring(*outcomes).read)


def test_kmsg_gives_the_messages_of_the_kernel() -> None:
    source = kmsg(record(7, "one"), record(8, "two "), record(9, ""))
    assert source.read() == ["one", "two ", ""]
    assert source.read() == []
    assert (source.name, source.lost, source.fileno()) == ("kmsg", 0, 99)


@pytest.mark.parametrize("level", [*range(8), 8, 9, 12, 15, 16, 24, 30, 80, 191, 1023, 2047])
def test_kmsg_gives_no_record_of_another_facility(level: int) -> None:
    source = kmsg(record(7, "SIKKERGUARD IN=eth0", level), record(8, "kernel"))
    assert source.read() == (["SIKKERGUARD IN=eth0", "kernel"] if level < 8 else ["kernel"])
    assert source.lost == 0


def test_kmsg_leaves_out_the_keys_and_values_of_a_record() -> None:
    assert kmsg(b"6,7,1,-;text; more\n SUBSYSTEM=net\n DEVICE=n2\n").read() == ["text; more"]
    assert kmsg(b"6,7,1,-,caller=T123,novel=1;text\n").read() == ["text"]


def test_kmsg_undoes_the_escapes() -> None:
    escaped = r"IN=\xe2\x98\x83 \x5cx41 \x0aSIKKERGUARD \xff"
    assert kmsg(record(7, escaped)).read() == ["IN=\N{SNOWMAN} \\x41 \nSIKKERGUARD \ufffd"]


@pytest.mark.parametrize("bad", [b"\n", b";", b"x,7,1,-;text", b"4;text", b"4,x,1,-;text", b"\xff\xff;\xff", b"-,-;"])
def test_kmsg_passes_over_what_has_no_form(bad: bytes) -> None:
    source = kmsg(record(7, "one"), bad, record(8, "two"))
    assert source.read() == ["one", "two"]
    assert source.lost == 0


def test_kmsg_counts_what_is_missing_between_two_records() -> None:
    source = kmsg(record(7, "one"), record(10, "two"), record(11, "other", 30), record(14, "three"))
    assert source.read() == ["one", "two", "three"]
    assert source.lost == 4


def test_kmsg_counts_an_overrun_once() -> None:
    source = kmsg(record(7, "one"), overrun(), overrun(), record(20, "two"), overrun(), record(31, "three"))
    assert source.read() == ["one", "two", "three"]
    assert source.lost == 12 + 10


def test_kmsg_counts_one_where_the_overrun_came_before_the_first_record() -> None:
    source = kmsg(overrun(), overrun(), record(500, "one"), record(501, "two"))
    assert source.read() == ["one", "two"]
    assert source.lost == 1


def test_kmsg_remembers_where_it_was_from_one_read_to_the_next() -> None:
    ring = Ring(record(7, "one"))
    source = Kmsg(99, ring.read)
    source.read()
    ring.outcomes += [overrun()]
    assert source.read() == []
    ring.outcomes += [record(9, "two")]
    assert (source.read(), source.lost) == (["two"], 1)


@pytest.mark.parametrize("other", [record(1, "", 12), overrun(), b"no form"])
def test_kmsg_stops_after_so_many_records_whatever_they_are(other: bytes | OSError) -> None:
    ring = Ring(*[other] * 3 * BATCH)
    assert Kmsg(99, ring.read).read() == []
    assert ring.asked == BATCH


@pytest.mark.parametrize("end", [b"", OSError(errno.ENODEV, "gone"), OSError(errno.EBADF, "closed")])
def test_kmsg_says_when_the_device_is_gone(end: bytes | OSError) -> None:
    with pytest.raises(OSError, match=r"end|gone|closed"):
        kmsg(end).read()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Kmsg]]:
    """A descriptor that gives a record a read, as the device does, and its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    source = Kmsg(theirs.detach())
    yield ours, source
    ours.close()
    source.close()


def test_kmsg_can_be_polled(pair: tuple[socket.socket, Kmsg]) -> None:
    ours, source = pair
    assert source.read() == []
    assert select.select([source], [], [], 0)[0] == []
    ours.send(record(7, "one"))
    ours.send(record(8, "two"))
    assert select.select([source], [], [], 10)[0] == [source]
    assert source.read() == ["one", "two"]
    assert select.select([source], [], [], 0)[0] == []


def test_kmsg_is_closed() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    Kmsg(reading).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_kmsg_is_opened_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(record(7, "before"))
    source = open_kmsg(str(path))
    try:
        assert not os.get_inheritable(source.fileno())
        assert not os.get_blocking(source.fileno())
        with path.open("ab") as file:
            file.write(record(8, "after"))
        # A file gives all at once, and then its end; the device never does either.
        with pytest.raises(OSError, match="end"):
            source.read()
        assert source._next == 9
    finally:
        source.close()


def test_kmsg_that_is_not_there_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_kmsg(str(tmp_path / "kmsg"))


# The journal


@dataclass
class Book:
    """A `systemd.journal.Reader` of these entries, as much of it as is used. After seeking the tail, what comes next
    is the last entry once more, as with the real one."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    position: int = 0
    at_tail: bool = False
    failure: OSError | None = None
    descriptor: int = 77

    def fileno(self) -> int:
        self.calls.append("fileno")
        return self.descriptor

    def seek_tail(self) -> None:
        self.at_tail = True

    def seek_head(self) -> None:
        self.position, self.at_tail = 0, False

    def seek_monotonic(self, seconds: float) -> None:
        self.calls.append("seek_monotonic")
        stamps = [entry["__MONOTONIC_TIMESTAMP"][0] for entry in self.entries]
        # As inexact as a number of seconds is.
        self.position = sum(stamp < round(seconds * 1e6) - 1 for stamp in stamps)
        self.at_tail = False

    def get_previous(self) -> dict[str, Any]:
        assert self.at_tail
        # With nothing there, it stays where it is.
        self.position, self.at_tail = len(self.entries), not self.entries
        return dict(self.entries[-1]) if self.entries else {}

    def get_next(self) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        if self.at_tail:
            self.position, self.at_tail = max(0, len(self.entries) - 1), False
        if self.position >= len(self.entries):
            return {}
        self.position += 1
        return dict(self.entries[self.position - 1])

    def has_runtime_files(self) -> bool:
        return False

    def has_persistent_files(self) -> bool:
        return bool(self.entries)

    def process(self) -> int:
        self.calls.append("process")
        return 0

    def close(self) -> None:
        self.calls.append("close")

    def write(self, message: object, stamp: int, age: float = 0.0, **fields: object) -> None:
        times = {"__REALTIME_TIMESTAMP": int((time.time() - age) * 1e6), "__MONOTONIC_TIMESTAMP": (stamp, BOOT)}
        self.entries.append({"MESSAGE": message, **times, **fields})


def following(*books: Book, roots: Sequence[Path] = ()) -> Journal:
    """The journal of which these are the readers, one after the other."""
    left = list(books)
    return Journal(lambda: left.pop(0), roots)


def test_the_journal_gives_what_is_new() -> None:
    book = Book()
    book.write("old", 1)
    book.write("older than we", 2)
    source = following(book)
    assert source.carries
    assert source.read() == []
    book.write("one", 3)
    book.write("two ", 3)
    assert source.read() == ["one", "two "]
    assert source.read() == []
    assert (source.name, source.lost) == ("journald", 0)


def test_an_empty_journal_gives_what_is_written_later() -> None:
    book = Book()
    source = following(book)
    assert not source.carries
    assert source.read() == []
    book.write("one", 1)
    assert source.read() == ["one"]


def test_the_journal_is_watched_before_it_is_read_and_told_so_at_each_read() -> None:
    book = Book()
    source = following(book)
    assert source.fileno() == 77
    source.read()
    source.read()
    source.close()
    # The descriptor is asked for once: later, another thread may want it.
    assert book.calls == ["fileno", "process", "process", "close"]


def test_the_journal_gives_nothing_twice_even_if_it_leads_back() -> None:
    book = Book()
    book.write("old", 5)
    source = following(book)
    book.write("one", 6)
    assert source.read() == ["one"]
    book.entries.insert(2, book.entries[0])
    book.write("two", 7)
    assert source.read() == ["two"]
    book.seek_head()
    book.entries[1:] = []
    book.write("three", 8)
    assert source.read() == ["three"]


def test_the_journal_goes_to_its_end_when_it_is_far_behind() -> None:
    book = Book()
    source = following(book)
    for number in range(1000):
        book.write(f"late {number}", number, age=11)
    book.write("now", 1000)
    assert source.read() == []
    book.write("new", 1001)
    assert source.read() == ["new"]


def test_the_journal_gives_so_many_messages_at_a_time() -> None:
    book = Book()
    source = following(book)
    for number in range(BATCH + 3):
        book.write(str(number), number)
    assert len(source.read()) == BATCH
    assert source.read() == [str(BATCH), str(BATCH + 1), str(BATCH + 2)]


def test_the_journal_has_messages_that_are_no_text() -> None:
    book = Book()
    source = following(book)
    book.write(b"IN=\xff OUT=", 1)
    book.write(["two", "messages"], 2)
    book.write(None, 3)
    book.entries.append({name: value for name, value in book.entries[0].items() if name != "MESSAGE"})
    book.entries[-1]["__MONOTONIC_TIMESTAMP"] = (4, BOOT)
    book.write("text", 5)
    assert source.read() == ["IN=\ufffd OUT=", "text"]


def test_the_journal_says_when_it_can_not_be_read() -> None:
    book = Book(failure=OSError(errno.EBADMSG, "corrupted"))
    with pytest.raises(OSError, match="corrupted"):
        following(book).read()


def now() -> int:
    """The stamp of what is written now."""
    return int(time.monotonic() * 1e6)


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Of a volatile journal: one root is there."""
    volatile, persistent = tmp_path / "run", tmp_path / "var"
    volatile.mkdir()
    return volatile, persistent


def made_persistent(volatile: Path, persistent: Path) -> None:
    persistent.mkdir()


def made_volatile(volatile: Path, persistent: Path) -> None:
    volatile.rmdir()


def made_anew(volatile: Path, persistent: Path) -> None:
    other = volatile.with_name("other")
    other.mkdir()
    volatile.rmdir()
    other.rename(volatile)


def made_readable(volatile: Path, persistent: Path) -> None:
    volatile.chmod(0o711)


@pytest.mark.parametrize("change", [made_persistent, made_volatile, made_anew, made_readable])
def test_the_journal_is_opened_anew_when_a_root_has_changed(
    roots: tuple[Path, Path], change: Callable[[Path, Path], None]
) -> None:
    first, second = Book(), Book(descriptor=78)
    first.write("old", now())
    source = following(first, second, roots=roots)
    first.write("one", now())
    assert source.read() == ["one"]
    # The new place has all of the old one, in part or whole, and more.
    second.entries += first.entries
    second.write("two", now())
    change(*roots)
    assert source.read() == ["two"]
    assert source.fileno() == 78
    assert first.calls == ["fileno", "process", "close"]
    # In this order, lest a change go by unseen; and that is done once.
    assert second.calls[:3] == ["fileno", "seek_monotonic", "process"]
    second.write("three", now())
    assert source.read() == ["three"]
    assert second.calls.count("fileno") == 1
    source.close()
    assert second.calls[-1] == "close"


def test_a_root_that_changes_while_the_journal_is_being_opened_is_noticed(roots: tuple[Path, Path]) -> None:
    first, second = Book(), Book(descriptor=78)
    left = [first, second]

    def open_reader() -> Book:
        if len(left) == 2:
            roots[1].mkdir()
        return left.pop(0)

    source = Journal(open_reader, roots)
    source.read()
    assert source.fileno() == 78


def test_the_journal_that_is_opened_anew_may_be_empty_yet(roots: tuple[Path, Path]) -> None:
    first, second, third = Book(), Book(), Book()
    first.write("one", now())
    source = following(first, second, third, roots=roots)
    roots[0].rmdir()
    assert source.read() == []
    roots[1].mkdir()
    third.write("two", now())
    assert source.read() == ["two"]


def test_the_journal_that_is_opened_anew_goes_on_where_it_was_and_reads_no_old_story(roots: tuple[Path, Path]) -> None:
    first, second = Book(), Book()
    first.write("one", now() - 3_600_000_000, age=3600)
    source = following(first, second, roots=roots)
    # An hour of lines that this boot had, and that the last one was not among.
    second.write("one", now() - 3_600_000_000, age=3600)
    for age in range(3599, 11, -1):
        second.write("late", now() - age * 1_000_000, age=age)
    second.write("two", now() - 5_000_000, age=5)
    second.write("three", now())
    roots[1].mkdir()
    assert source.read() == ["two", "three"]


def test_a_journal_that_stays_away_has_come_to_an_end(roots: tuple[Path, Path]) -> None:
    books = [Book(), Book(), Book()]
    books[0].write("one", now())
    source = Journal(lambda: books.pop(0), roots, patience_seconds=0.0)
    roots[1].mkdir()
    books[0].write("two", now())
    assert source.read() == ["two"]
    roots[1].rmdir()
    with pytest.raises(OSError, match="there is no journal that this user may read"):
        source.read()
    source.close()


def test_the_journal_that_can_not_be_opened_anew_says_so_and_can_be_closed(roots: tuple[Path, Path]) -> None:
    first, denied = Book(), PermissionError(errno.EACCES, "Permission denied")
    left = [first]

    def open_reader() -> Book:
        if not left:
            raise denied
        return left.pop()

    source = Journal(open_reader, roots)
    roots[1].mkdir()
    with pytest.raises(PermissionError):
        source.read()
    source.close()
    assert first.calls.count("close") == 1


def test_a_journal_that_can_not_be_watched_is_closed() -> None:
    class Deaf(Book):
        def fileno(self) -> int:
            raise OSError(errno.EMFILE, "too many watches")

    book = Deaf()
    with pytest.raises(OSError, match="too many watches"):
        following(book)
    assert book.calls == ["close"]


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("journal = None", "'NoneType' object has no attribute 'DEFAULT_CONVERTERS'"),
        ("class journal: DEFAULT_CONVERTERS = {}", "type object 'journal' has no attribute 'Reader'"),
        (
            "class journal:\n    DEFAULT_CONVERTERS, LOCAL_ONLY, SYSTEM = {}, 1, 4\n    Reader = lambda: None",
            "got an unexpected keyword argument 'flags'",
        ),
        ("", "cannot import name 'journal' from 'systemd'"),
        ("raise ImportError('libsystemd.so.0: no such file')", "libsystemd.so.0: no such file"),
    ],
)
def test_another_package_of_that_name_is_told_of_in_words(package: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "systemd.py").write_text(package)
    error = refusal(str(tmp_path))
    assert error.startswith("OSError: the Python package systemd is of no use (")
    assert said in error


def test_without_the_library_the_journal_can_not_be_opened() -> None:
    assert refusal() == "OSError: the Python package systemd is not installed"


def refusal(*places: str) -> str:
    """Why a Python that has no packages but its own, and those in these places, can't open the journal."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; "
        "from sikkerguard.edges.kernel_log.journal import open_journal; open_journal()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(PROJECT), *places],
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr.splitlines()[-1]


# Which of them


def gives(source: KernelLog) -> Callable[[], KernelLog]:
    return lambda: source


def refuses(error: OSError) -> Callable[[], KernelLog]:
    def opened() -> KernelLog:
        raise error

    return opened


DENIED = PermissionError(errno.EACCES, "Permission denied")
NOTHING = OSError("nothing of the kernel is in it")
STAYS = "blocked connections are still counted exactly, and shown within a second, from the kernel's counters"


@pytest.mark.parametrize(
    ("choice", "journal", "device", "name"),
    [
        ("auto", True, True, "journald"),
        ("auto", True, False, "journald"),
        ("auto", False, True, "kmsg"),
        ("journald", True, True, "journald"),
        ("kmsg", True, True, "kmsg"),
    ],
)
def test_the_source_is_the_one_that_can_be_had(
    choice: str, journal: bool, device: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    source = open_source(
        choice,
        open_journal=gives(following(Book())) if journal else refuses(NOTHING),
        open_kmsg=gives(kmsg()) if device else refuses(DENIED),
    )
    assert source is not None
    assert source.name == name
    assert caplog.records == []


@pytest.mark.parametrize(
    ("choice", "level", "sentence"),
    [
        (
            "auto",
            logging.INFO,
            "The kernel's log can be read neither from journald (nothing of the kernel is in it) "
            f"nor from /dev/kmsg (Permission denied); {STAYS}; to have single events too, add this user to the group "
            "systemd-journal or make /dev/kmsg readable (CAP_SYSLOG).",
        ),
        (
            "journald",
            logging.WARNING,
            "SIKKER_LOG_SOURCE=journald can't be had: journald (nothing of the kernel is in it); "
            f"{STAYS}; add this user to the group systemd-journal, or set it to auto.",
        ),
        (
            "kmsg",
            logging.WARNING,
            f"SIKKER_LOG_SOURCE=kmsg can't be had: /dev/kmsg (Permission denied); {STAYS}; make /dev/kmsg readable "
            "(CAP_SYSLOG), or set it to auto.",
        ),
    ],
)
def test_without_a_source_one_sentence_says_why_what_stays_and_what_to_do(
    choice: str, level: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: set[str] = set()
    denied, nothing = refuses(DENIED), refuses(NOTHING)
    for _ in range(3):
        assert open_source(choice, said, open_journal=nothing, open_kmsg=denied) is None
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [(level, sentence)]
    # Once there was a source, it is news again.
    assert open_source(choice, said, open_journal=gives(following(Book())), open_kmsg=gives(kmsg())) is not None
    assert open_source(choice, said, open_journal=nothing, open_kmsg=denied) is None
    assert len(caplog.records) == 2
    # Who keeps nothing is told each time.
    assert open_source(choice, open_journal=nothing, open_kmsg=denied) is None
    assert len(caplog.records) == 3
