"""Ordinary trouble that ends nothing: a wrong key, an answer that nobody expects, a log that nobody reads, a service
manager that does not listen, a reload at any moment."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from tests.kernel.conftest import PROJECT, SIKKERGUARD
from tests.kernel.test_commands import put
from tests.kernel.traffic import Traffic
from tests.standin.faults import Canned, Delay
from tests.standin.server import DEMO_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Guard

LISTED, OTHER, INNOCENT = "203.0.113.7", "203.0.113.8", "203.0.113.99"


class Manager:
    """systemd, as far as it listens: what the service tells it, in the order in which it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.2)
        self._ended = threading.Event()
        self.words: list[str] = []
        self._thread = threading.Thread(target=self._listen)

    def listen(self) -> None:
        """From now on."""
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                self.words += self._socket.recv(8192).decode().splitlines()
            except TimeoutError:
                continue

    def said(self, beginning: str) -> list[str]:
        return [word for word in self.words if word.startswith(beginning)]


@contextmanager
def manager(guard: Guard) -> Iterator[Manager]:
    made = Manager(guard.directory / "notify")
    guard.environment["NOTIFY_SOCKET"] = str(made.path)
    try:
        yield made
    finally:
        made.close()


def test_a_wrong_key_is_told_at_once_asked_for_hourly_and_corrected_within_a_second(guard: Guard) -> None:
    guard.expected_errors.append("does not know this key")
    key = guard.directory / "schl\u00fcssel"
    key.write_text("sk_free_wrong\n")
    del guard.environment["SIKKER_API_KEY"]
    put(guard, LISTED, OTHER)
    with manager(guard) as systemd:
        systemd.listen()
        guard.start(SIKKER_API_KEY_FILE=str(key))
        wait_for("READY", lambda: systemd.said("READY"))
        wait_for("a word on why", lambda: [word for word in systemd.said("STATUS=") if "(401)" in word])
        found = guard.status()
        assert found["status"] == "degraded"
        assert "does not know this key (401)" in " ".join(found["reasons"])
        line = guard.logged("does not know this key")
        # 60 minutes, and a quarter of it more or less.
        assert re.search(r"next try in (1h|4[5-9]m|[56]\dm|7[0-5]m)", line), line
        # The chain stands, and lets everybody in.
        assert "SIKKERGUARD" in guard.lab.rules()
        assert guard.lab.passes(LISTED)
        asked = len(guard.standin.record.requests)
        key.write_text(f"{DEMO_KEY}\n")
        began = time.monotonic()
        wait_for("another request", lambda: len(guard.standin.record.requests) > asked, 2.0)
        assert time.monotonic() - began < 1.2
        guard.logged("Blocking 2 IPs")
        assert not guard.lab.passes(LISTED)
        wait_for("a status without trouble", lambda: guard.status()["status"] != "degraded")
        guard.stop()
        assert systemd.said("STOPPING")


def test_a_start_that_gets_no_answer_is_ready_without_one(guard: Guard) -> None:
    guard.standin.fault("blacklist", Delay(60), 1000)
    with manager(guard) as systemd:
        systemd.listen()
        guard.start()
        wait_for("READY", lambda: systemd.said("READY"), 15.0)
        assert guard.status()["status"] != "active"
        guard.stop()


def test_a_manager_that_does_not_read_keeps_nobody_waiting(guard: Guard) -> None:
    guard.serve(LISTED)
    with manager(guard) as systemd:
        # Its queue is full before the service has said a word.
        fill(systemd.path)
        guard.start()
        guard.logged("Blocking 1 IPs")
        guard.lab.host.run("ipset", "flush", "sikkerguard-v4")
        wait_for("a repair", lambda: not guard.lab.passes(LISTED))
        assert guard.status()["repairs"] >= 1
        systemd.listen()
        wait_for("READY", lambda: systemd.said("READY"), 10.0)
        guard.stop()


def fill(path: Path) -> None:
    """Send to a socket until it has no room."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood, suppress(BlockingIOError):
        flood.connect(str(path))
        flood.setblocking(False)
        while True:
            flood.send(b"X=1")


BAD_ANSWERS = [
    Canned(302, headers=(("Location", "http://[bad"),)),
    Canned(302, headers=(("Location", "http://x:99999999999/"),)),
    Canned(301, headers=(("Location", "//[::1]]/v1"),)),
    Canned(200, body=b"\xff\x1b[2J<", content_type="text/plain; charset=\xe4"),
    Canned(429, headers=(("Retry-After", "9" * 400),)),
]


def test_no_answer_ends_it_and_none_reaches_the_terminal(guard: Guard) -> None:
    guard.expected_errors.append(" ERROR SikkerAPI")
    guard.expected_errors.append(" ERROR .*list")
    guard.serve(LISTED)
    guard.start()
    guard.logged("Blocking 1 IPs")
    with Traffic(guard.lab, innocent=(INNOCENT,), listed=(LISTED,)) as traffic:
        pulls = guard.status()["pulls"]
        for number, answer in enumerate(BAD_ANSWERS, start=1):
            guard.standin.clear_faults()
            guard.standin.fault("blacklist", answer, 1000)
            reload(guard)
            wait_for(f"the end of pull {number}", partial(_has_pulled, guard, pulls + number))
            found = guard.status()
            assert found["status"] == "degraded"
            assert found["lastPullError"]
            assert guard.cli("health").returncode == 0  # it lives, and the list blocks
            traffic.check()
        guard.serve(LISTED, OTHER)
        reload(guard)
        guard.logged("Blocking 2 IPs")
        wait_for("all well", lambda: guard.status()["status"] != "degraded")
    assert "\x1b" not in guard.log()
    guard.stop()


def reload(guard: Guard) -> None:
    assert guard.process is not None
    assert guard.process.poll() is None
    guard.process.send_signal(signal.SIGHUP)


def test_a_hangup_breaks_off_a_fetch_and_uses_the_settings_of_now(guard: Guard) -> None:
    file = guard.directory / "sikkerguard.env"
    file.write_text("SIKKER_SCORE_MIN=60\n")
    guard.serve(LISTED)
    guard.start(*SIKKERGUARD, "--config", str(file), "run")
    guard.logged("Blocking 1 IPs")
    guard.standin.clear_faults()
    guard.standin.fault("blacklist", Delay(120), 1)
    guard.answer(f"{LISTED}\n{OTHER}\n".encode())
    reload(guard)
    wait_for("a pull that hangs", lambda: guard.status()["pulling"])
    file.write_text("SIKKER_SCORE_MIN=70\n")
    reload(guard)
    guard.logged("broken off, and begun anew")
    guard.logged("Blocking 2 IPs", seconds=10)
    assert ("scoreMinimum", "70") in guard.standin.record.requests[-1].query
    guard.stop()


def test_a_hangup_in_the_first_moments_waits_until_there_is_a_handler(guard: Guard) -> None:
    guard.serve(LISTED)
    for _ in range(3):
        process = guard.start()
        # As soon as signals are held back, which is before any library is read.
        wait_for("signals to be held back", partial(_holds_back, process.pid, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        guard.logged("Settings reloaded")
        assert process.poll() is None
        guard.stop()


def _has_pulled(guard: Guard, times: int) -> bool:
    return bool(guard.status()["pulls"] >= times)


def _holds_back(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    mask = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def test_a_log_that_nobody_reads_holds_nothing_up(guard: Guard) -> None:
    lab = guard.lab
    crowd = [f"203.0.113.{number}" for number in range(1, 31)]
    guard.serve(*crowd)
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(writing, "wb", buffering=0) as full:
        guard.process = lab.host.start(
            (*SIKKERGUARD, "run"), {**guard.environment, "SIKKER_LOG_LEVEL": "debug"}, stderr=full, cwd=PROJECT
        )
    try:
        wait_for("a list in force", lambda: not lab.passes(LISTED), 15)
        # Each of them is worth a line, again and again.
        with Traffic(lab, innocent=(INNOCENT,), listed=crowd) as traffic:
            wait_for("a full pipe", lambda: _waiting(reading) > size - 200, 20)
            pulls = guard.status()["pulls"]
            guard.process.send_signal(signal.SIGHUP)
            wait_for("a pull", lambda: guard.status()["pulls"] > pulls)
            traffic.check()
        lab.host.run("ipset", "flush", "sikkerguard-v4")
        wait_for("a repair", lambda: LISTED in lab.sets(), 10)
        assert guard.cli("health").returncode == 0
        guard.process.terminate()
        assert guard.process.wait(5) == 0
        assert "sikkerguard" not in lab.sets()
    finally:
        os.close(reading)


def _waiting(descriptor: int) -> int:
    """How many bytes wait to be read."""
    found = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


def test_what_nobody_expects_at_a_start_keeps_no_list_from_blocking(guard: Guard) -> None:
    guard.expected_errors += [
        "should not have happened",
        "of a library",
        "can't be read, and is learned anew",
        "Traceback",
    ]
    guard.serve(LISTED)
    guard.start()
    guard.logged("Blocking 1 IPs")
    guard.stop()
    assert guard.lab.passes(LISTED)
    guard.start(sys.executable, "-m", "tests.kernel.failing", "start")
    guard.logged("Blocking 1 IPs .from the cache")
    assert not guard.lab.passes(LISTED)
    assert guard.lab.reaches(INNOCENT)
    wait_for("a word on it", lambda: guard.status()["status"] == "degraded")
    assert guard.log().count("Traceback") <= 8  # each once, whatever is tried again
    guard.stop()


def test_what_nobody_expects_at_a_stop_keeps_nothing_in_the_kernel(guard: Guard) -> None:
    guard.expected_errors += ["should not have happened", "of a library", "Traceback"]
    guard.serve(LISTED)
    guard.start(sys.executable, "-m", "tests.kernel.failing", "stop")
    guard.logged("Blocking 1 IPs")
    assert not guard.lab.passes(LISTED)
    guard.stop()
    assert "SIKKERGUARD" not in guard.lab.rules()
    assert "sikkerguard" not in guard.lab.sets()
    assert guard.lab.passes(LISTED)


def test_a_pipe_in_the_place_of_the_key_holds_nothing_up(guard: Guard) -> None:
    guard.expected_errors += ["no regular file"]
    key = guard.directory / "api-key"
    key.write_text(f"{DEMO_KEY}\n")
    del guard.environment["SIKKER_API_KEY"]
    guard.environment["SIKKER_API_KEY_FILE"] = str(key)
    guard.serve(LISTED)
    guard.start()
    guard.logged("Blocking 1 IPs")
    key.unlink()
    os.mkfifo(key)
    reload(guard)
    guard.logged("The new configuration is not used.*no regular file")
    guard.lab.host.run("ipset", "flush", "sikkerguard-v4")
    wait_for("a repair", lambda: not guard.lab.passes(LISTED))
    guard.stop()


def test_closed_streams_keep_it_from_nothing(guard: Guard) -> None:
    guard.serve(LISTED)
    guard.start("sh", "-c", 'exec "$0" -m sikkerguard run <&- >&- 2>&-', sys.executable)
    wait_for("a list in force", lambda: not guard.lab.passes(LISTED), 15)
    assert guard.cli("health").returncode == 0
    guard.stop()
