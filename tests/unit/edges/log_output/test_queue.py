"""A log that nobody reads: nothing waits for it, and what it misses is counted."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sikkerguard.edges.log_output.queue import DescriptorHandler, LogQueue

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reader:
    """Somebody who reads only once he is let."""

    def __init__(self) -> None:
        self.reads = threading.Event()
        self.lines: list[str] = []

    def write(self, record: logging.LogRecord) -> None:
        assert self.reads.wait(10)
        self.lines.append(record.getMessage())


@pytest.fixture(name="reader")
def _reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.reads.set()


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("sikkerguard", level, __file__, 0, "%s", (text,), None)


def test_what_has_no_room_is_counted_and_told_when_there_is_room_again(reader: Reader) -> None:
    log = LogQueue(reader.write, records=10, reserved=4)
    began = time.monotonic()
    for number in range(100):
        log.handle(record(logging.INFO, f"line {number}"))
    for number in range(3):
        log.handle(record(logging.ERROR, f"error {number}"))
    assert time.monotonic() - began < 1
    assert not log.drain(0.05)
    lost = log.lost
    assert 93 <= lost <= 94  # one may be with the reader already
    reader.reads.set()
    assert log.drain(5)
    kept = [line for line in reader.lines if line.startswith("line")]
    assert kept == [f"line {number}" for number in range(100 - lost)]
    assert [line for line in reader.lines if line.startswith("error")] == ["error 0", "error 1", "error 2"]
    assert [line for line in reader.lines if "lost" in line] == [
        f"{lost} lines of the log were lost: nobody read it for a while."
    ]
    assert log.lost == 0


def test_a_message_is_made_when_it_is_logged(reader: Reader) -> None:
    log = LogQueue(reader.write)
    values = ["now"]
    log.handle(logging.LogRecord("sikkerguard", logging.INFO, __file__, 0, "%s", (values,), None))
    values[0] = "later"
    reader.reads.set()
    assert log.drain(5)
    assert reader.lines == ["['now']"]


def test_lines_get_out_whole_through_a_pipe_that_is_narrower() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    log = LogQueue(DescriptorHandler(writing).emit)
    lines = [f"{number} {'x' * 3000}" for number in range(20)]
    for line in lines:
        log.handle(record(logging.INFO, line))
    with os.fdopen(reading, "rb") as stream:
        assert [stream.readline().decode().rstrip("\n") for _ in lines] == lines
        assert log.drain(5)
    os.close(writing)


def test_where_nobody_reads_any_more_nothing_happens() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = LogQueue(DescriptorHandler(writing).emit)
    log.handle(record(logging.INFO, "hello"))
    assert log.drain(5)
    os.close(writing)


def test_a_process_ends_though_nobody_reads_its_log() -> None:
    program = (
        "import logging\n"
        "from sikkerguard.edges.log_output import handlers as logs\n"
        "logs.begin('info')\n"
        "for number in range(20000): logging.info('x' * 100)\n"
        "logs.complain('the end')\n"
    )
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with subprocess.Popen([sys.executable, "-c", program], stderr=writing) as process:
            try:
                assert process.wait(20) == 0
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
    finally:
        os.close(reading)
        os.close(writing)
