"""How log lines look: with a priority where journald reads them, with the time where a person does."""

from __future__ import annotations

import io
import logging
import os
import re
from typing import IO, TYPE_CHECKING

import pytest

from sikkerguard.edges.log_output import handlers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIBRARIES = ("httpx", "httpcore", "asyncio", "pyroute2")
log = logging.getLogger("sikkerguard.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """`begin` takes the root logger for itself and closes what it finds there."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, known in levels.items():
        logging.getLogger(name).setLevel(known)


@pytest.fixture(name="stream")
def _stream(tmp_path: Path) -> Iterator[IO[str]]:
    with (tmp_path / "log").open("w+") as stream:
        yield stream


def journal(stream: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Say, as systemd does, that this stream leads to the journal."""
    found = os.fstat(stream.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")


def written(stream: IO[str]) -> list[str]:
    stream.seek(0)
    return stream.read().splitlines()


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.DEBUG, "<7>"),
        (logging.INFO, "<6>"),
        (logging.WARNING, "<4>"),
        (logging.ERROR, "<3>"),
        (logging.CRITICAL, "<2>"),
        (25, "<6>"),
    ],
)
def test_the_journal_gets_a_priority_and_no_time(
    level: int, prefix: str, stream: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal(stream, monkeypatch)
    handlers.begin("debug", stream, lambda: None)
    log.log(level, "Blocking %d IPs", 8774)
    assert written(stream) == [f"{prefix}Blocking 8774 IPs"]


def test_every_line_of_a_traceback_has_the_priority(stream: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    journal(stream, monkeypatch)
    handlers.begin("info", stream, lambda: None)
    try:
        raise RuntimeError("one\ntwo")
    except RuntimeError:
        log.exception("It failed:\nhere is how")
    lines = written(stream)
    assert lines[:2] == ["<3>It failed: here is how", "<3>Traceback (most recent call last):"]
    assert lines[-1] == "<3>two"
    assert all(line.startswith("<3>") for line in lines)


# An escape sequence, a carriage return, C1 control characters, ends of lines of other kinds, a mark that turns the
# direction of writing round, half a surrogate pair, and DEL.
ACTING = "\x1b[2K\x1b[1A\r\x9b31m\x85\u2028\u202e\ud800\x00\x07\x7f"


@pytest.mark.parametrize("kind", ["terminal", "journal by standard error", "journal by its protocol"])
@pytest.mark.parametrize("queued", [False, True])
def test_nothing_that_acts_on_a_terminal_gets_into_the_log(
    kind: str, queued: bool, stream: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    handler = (
        handlers.JournalHandler(lambda message, **fields: sent.append(message)) if kind.endswith("protocol") else None
    )
    if kind.startswith("journal"):
        journal(stream, monkeypatch)
    if queued:
        monkeypatch.setattr("sys.stderr", stream)
    handlers.begin("info", None if queued else stream, lambda: handler)
    for name in ("sikkerguard.test", "httpx"):
        logging.getLogger(name).warning("A server says: %s\nERROR forged", f"a{ACTING}\u00e9z")
    try:
        raise RuntimeError(f"b{ACTING}z")
    except RuntimeError:
        log.exception("It failed", stack_info=True)
    handlers.end(10)
    text = "\n".join(sent) if sent else "\n".join(written(stream))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "A server says: a?[2K?[1A??31m???????\u00e9z ERROR forged\n" in text
    # A traceback has its lines.
    lines = [line.removeprefix("<3>") for line in text.split("\n")]
    assert "Traceback (most recent call last):" in lines
    assert "RuntimeError: b?[2K?[1A??31m???????z" in lines


def test_what_another_handler_has_made_of_a_traceback_is_cleaned_as_well(stream: IO[str]) -> None:
    handlers.begin("info", stream)
    record = log.makeRecord(log.name, logging.ERROR, "file", 1, "It failed", (), (RuntimeError, RuntimeError(), None))
    record.exc_text = f"Traceback{ACTING}\nhere"
    logging.getLogger().handle(record)
    first, second, third = written(stream)
    assert first.endswith("It failed")
    assert second == "Traceback?[2K?[1A??31m???????"
    assert third == "here"


def test_why_a_command_failed_acts_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    handlers.complain(f"one{ACTING}\ntwo")
    said = capsys.readouterr().err
    assert said.startswith("sikkerguard: one?[2K?[1A?")
    assert said.endswith("\ntwo\n")
    assert "".join(said.split("\n")).isprintable()


@pytest.mark.parametrize("named", [None, "", "0:0", "1", "x:y", "8:1:2"])
def test_a_person_gets_the_time_and_the_level(
    named: str | None, stream: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if named is not None:
        monkeypatch.setenv("JOURNAL_STREAM", named)
    handlers.begin("info", stream)
    log.info("Blocking %d IPs", 8774)
    log.warning("two")
    first, second = written(stream)
    assert re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d INFO Blocking 8774 IPs", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING two", second)


def test_a_stream_that_was_turned_elsewhere_is_not_the_journal(
    stream: IO[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `sikkerguard run 2>file` in a unit: the variable is still there.
    journal(stream, monkeypatch)
    with (tmp_path / "other").open("w+") as other:
        handlers.begin("info", other)
        log.info("hello")
        (line,) = written(other)
        assert line.endswith(" INFO hello")


def test_a_stream_without_a_file_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    stream = io.StringIO()
    handlers.begin("info", stream)
    log.info("hello")
    assert stream.getvalue().endswith(" INFO hello\n")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_below_the_level_is_not_written(level: str, shown: list[str], stream: IO[str]) -> None:
    handlers.begin(level, stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("%s", name)
    assert [line.rpartition(" ")[2] for line in written(stream)] == shown


@pytest.mark.parametrize("level", ["debug", "info"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_are_heard_when_something_is_wrong(library: str, level: str, stream: IO[str]) -> None:
    handlers.begin(level, stream)
    logging.getLogger(library).info("GET /v1/key/blacklist")
    logging.getLogger(library).warning("trouble")
    (line,) = written(stream)
    assert line.endswith(" WARNING trouble")


def test_standard_error_is_where_it_goes(capfd: pytest.CaptureFixture[str]) -> None:
    handlers.begin("info")
    log.info("hello")
    handlers.end(5)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" INFO hello\n")


def test_to_begin_again_takes_the_place_of_the_first_beginning(stream: IO[str], tmp_path: Path) -> None:
    handlers.begin("debug", stream)
    with (tmp_path / "other").open("w+") as other:
        handlers.begin("info", other)
        log.info("once")
        assert len(written(other)) == 1
    assert written(stream) == []


def test_the_journal_gets_one_record_with_fields(stream: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, object]]] = []
    journal(stream, monkeypatch)
    handlers.begin(
        "info", stream, lambda: handlers.JournalHandler(lambda message, **fields: sent.append((message, fields)))
    )
    log.info("BLOCKED %s", "192.0.2.7", extra={"fields": {"SIKKER_SRC": "192.0.2.7"}})
    try:
        raise RuntimeError("one\ntwo")
    except RuntimeError:
        log.exception("It failed")
    assert written(stream) == []
    (blocked, fields), (failed, others) = sent
    assert (blocked, fields["PRIORITY"], fields["SIKKER_SRC"]) == ("BLOCKED 192.0.2.7", "6", "192.0.2.7")
    assert (fields["SYSLOG_IDENTIFIER"], fields["CODE_FILE"]) == ("sikkerguard", __file__)
    assert failed.startswith("It failed\nTraceback")
    assert others["PRIORITY"] == "3"
    assert not [name for name in others if name.startswith("SIKKER")]


def test_why_a_command_failed_is_an_error_in_the_journal(
    monkeypatch: pytest.MonkeyPatch, stream: IO[str], capsys: pytest.CaptureFixture[str]
) -> None:
    handlers.complain("SIKKER_SCORE_MIN: 'nonsense' is not a number from 1 to 100.")
    assert capsys.readouterr().err == "sikkerguard: SIKKER_SCORE_MIN: 'nonsense' is not a number from 1 to 100.\n"
    monkeypatch.setattr("sys.stderr", stream)
    journal(stream, monkeypatch)
    handlers.complain("no list")
    assert written(stream) == ["<3>no list"]


def test_a_journal_that_fails_does_not_end_the_service(
    stream: IO[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def send(message: str, **fields: object) -> None:
        raise OSError("no room")

    journal(stream, monkeypatch)
    handlers.begin("info", stream, lambda: handlers.JournalHandler(send))
    log.info("hello")
    assert "OSError: no room" in capsys.readouterr().err
