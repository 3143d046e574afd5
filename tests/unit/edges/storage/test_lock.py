"""One service in one network namespace, and nobody who could keep it from starting."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import wait_for
from sikkerguard.edges.storage import lock as module
from sikkerguard.edges.storage.lock import NamespaceLock
from sikkerguard.edges.storage.processes import may_write_rules
from sikkerguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Holds the name as this user does, listening or not, and says when.
HOLDER = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
held.bind("\\0" + sys.argv[1])
if sys.argv[3] == "listens":
    held.listen(128)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(name="name")
def _name(monkeypatch: pytest.MonkeyPatch) -> str:
    """One of our own: the machine may have a service."""
    monkeypatch.setattr(module, "_SECONDS", 0.1)
    return f"\0sikkerguard-test-{secrets.token_hex(8)}"


@pytest.fixture(name="hold")
def _hold(name: str) -> Iterator[list[subprocess.Popen[str]]]:
    held: list[subprocess.Popen[str]] = []
    yield held
    for process in held:
        process.kill()
        process.communicate()


def holder(name: str, user: int, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, name[1:], str(user), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path("/"),
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_service_is_refused_and_the_first_is_named(name: str, hold: list[subprocess.Popen[str]]) -> None:
    hold.append(holder(name, os.geteuid(), "listens"))
    with pytest.raises(ConfigError, match=rf"another sikkerguard runs .*\(process {hold[0].pid}\)"):
        NamespaceLock(name).take()
    hold[0].kill()
    hold[0].wait()
    free = NamespaceLock(name)
    free.take()
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        NamespaceLock(name).take()
    free.close()
    free.close()
    free.take()
    free.close()


@pytest.mark.parametrize("how", ["listens", "is deaf"])
def test_another_user_keeps_nobody_from_starting(
    name: str, hold: list[subprocess.Popen[str]], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    hold.append(holder(name, 65534, how))
    lock = NamespaceLock(name)
    lock.take()
    lock.close()
    assert ("of user 65534 has the name" in caplog.text) == (how == "listens")


def test_who_holds_it_is_told_where_he_can_be_a_service(
    name: str, hold: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NamespaceLock(name).holder() is None
    hold.append(holder(name, 65534, "listens"))
    # Anybody may have taken the name; who may write rules is no anybody.
    assert NamespaceLock(name).holder() is None
    monkeypatch.setattr(module, "may_write_rules", lambda number: number == hold[0].pid)
    assert NamespaceLock(name).holder() == hold[0].pid
    with pytest.raises(ConfigError, match=rf"process {hold[0].pid}\); stop it first"):
        NamespaceLock(name).take()


def test_one_that_is_about_to_end_is_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 10.0)
    first = NamespaceLock(name)
    first.take()
    answers = iter([OSError(), OSError()])
    bind = socket.socket.bind

    def once_it_is_free(made: socket.socket, address: str) -> None:
        if next(answers, None) is None:
            first.close()
        bind(made, address)

    monkeypatch.setattr(socket.socket, "bind", once_it_is_free)
    second = NamespaceLock(name)
    second.take()
    second.close()


def test_what_is_left_of_a_process_that_was_killed_is_no_service(
    name: str, hold: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread in the hands of a disk that hangs keeps all its sockets."""
    hold.append(holder(name, os.geteuid(), "listens"))
    monkeypatch.setattr(module, "is_dying", lambda number: number == hold[0].pid)
    NamespaceLock(name).take()


def test_the_right_to_write_rules_is_read_from_the_kernel() -> None:
    root = os.geteuid() == 0
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin") if root else ()
    for words, may in (((), root), (without, False)):
        with subprocess.Popen([*words, "sleep", "60"]) as process:
            try:
                # Until setpriv has become the other program.
                wait_for("the program", partial(_is_called, process.pid, "sleep"))
                assert may_write_rules(process.pid) == may
            finally:
                process.kill()
    assert not may_write_rules(0)


def _is_called(process: int, name: str) -> bool:
    return Path(f"/proc/{process}/comm").read_text("ascii") == f"{name}\n"
