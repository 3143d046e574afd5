"""The control socket and the commands that ask at it, over real Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.cli.command import Outcome
from sikkerguard.cli.health import print_health
from sikkerguard.cli.service_client import ServiceClient
from sikkerguard.core.health import status
from sikkerguard.core.state import ListState, PullResult, PullState, State
from sikkerguard.edges.http import control, control_socket
from sikkerguard.edges.http.control import Control
from sikkerguard.edges.http.control_socket import NAME, Peer, UntrustedError
from sikkerguard.errors import ListenError, SikkerGuardError
from sikkerguard.service.disk_thread import DiskThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

SECONDS = 5.0
NOW = 1_800_000_000.0
STATE = State(
    NOW - 8130, dry_run=False, lists=ListState(blocked_v4=8774), pull=PullState(PullResult(NOW, ""), pull_answered=9)
)
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\r\nbell"


@dataclass
class Guarded:
    """A control socket, and the service that it speaks for."""

    directories: tuple[Path, ...]
    state: State = STATE
    reasons: tuple[str, ...] = ()
    pulls: list[bool] = field(default_factory=list)
    complaint: str = ""

    def __post_init__(self) -> None:
        self.control = Control(self.directories, self, DiskThread("control-socket"))

    @property
    def path(self) -> Path:
        return self.directories[0] / NAME

    def failures(self) -> tuple[str, ...]:
        return self.reasons

    def status(self) -> dict[str, Any]:
        return status(self.state, NOW, self.reasons)

    def reload(self, *, accept: bool) -> dict[str, Any]:
        self.pulls.append(accept)
        return {"pull": len(self.pulls), "complaint": self.complaint}

    async def command(self, action: Callable[..., Outcome], **options: Any) -> Outcome:
        """Run a command against the socket, beside the server."""
        return await asyncio.to_thread(partial(action, ServiceClient(self.directories), **options))

    async def raw(self, request: bytes) -> tuple[int, bytes]:
        """The status code and the body of what comes back."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(request)
        async with asyncio.timeout(SECONDS):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body


@contextlib.asynccontextmanager
async def running(*directories: Path, **options: Any) -> AsyncIterator[Guarded]:
    made = Guarded(directories, **options)
    await made.control.open()
    try:
        yield made
    finally:
        await made.control.close()


def with_control(directory: Path, action: Callable[[Guarded], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with running(directory, **options) as made:
            return await action(made)

    return asyncio.run(run())


def request(target: str, method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


# What is answered


def test_curl_s_words_work(tmp_path: Path) -> None:
    async def ask(made: Guarded) -> list[tuple[int, bytes]]:
        return [await made.raw(request(path)) for path in ("/healthz", "/status?x=1", "/pull", "/nothing")]

    found = with_control(tmp_path, ask)
    assert [code for code, _ in found] == [200, 200, 404, 404]
    assert found[0][1] == b"OK\n"
    assert json.loads(found[1][1])["status"] == "active"


# Who may


@pytest.mark.parametrize(
    ("peer", "reads", "changes"),
    [
        (Peer(1, 0, frozenset({0})), 200, 200),
        (Peer(1, 4711, frozenset({1, 2})), 200, 403),
        (Peer(1, 4712, frozenset({1, 815})), 200, 403),
        (Peer(1, 4712, frozenset({1, 2})), 403, 403),
        (Peer(0, 65534, frozenset()), 403, 403),
    ],
    ids=["root", "the service's user", "the service's group", "somebody", "unknown"],
)
def test_who_may_ask_and_who_may_change_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: Peer, reads: int, changes: int
) -> None:
    monkeypatch.setattr(control, "peer_of", lambda connection: peer)

    async def ask(made: Guarded) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        monkeypatch.setattr(os, "getegid", lambda: 815)
        assert (await made.raw(request("/status")))[0] == reads
        assert (await made.raw(request("/healthz")))[0] == reads
        code, body = await made.raw(request("/pull", "POST"))
        assert code == changes
        assert made.pulls == ([False] if changes == 200 else [])
        assert b"8774" not in body

    with_control(tmp_path, ask)


@pytest.mark.parametrize(
    ("target", "method", "code", "pulls"),
    [
        ("/pull", "POST", 200, [False]),
        ("/pull?accept=false", "POST", 200, [False]),
        ("/pull?accept=true", "POST", 200, [True]),
        ("/pull?accept=yes", "POST", 400, []),
        ("/pull?accept=true&accept=true", "POST", 400, []),
        ("/status", "POST", 404, []),
        ("/pull", "PUT", 405, []),
        ("/pull", "post", 405, []),
        ("/pull?accept=true", "GET", 404, []),
        ("/pull?accept=true", "HEAD", 404, []),
    ],
)
def test_what_root_can_have_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, method: str, code: int, pulls: list[bool]
) -> None:
    monkeypatch.setattr(control, "peer_of", lambda connection: Peer(1, 0, frozenset()))

    async def ask(made: Guarded) -> None:
        assert (await made.raw(request(target, method)))[0] == code
        assert made.pulls == pulls

    with_control(tmp_path, ask)


def test_who_is_at_the_other_end_is_the_kernel_s_word() -> None:
    one, other = socket.socketpair()
    with one, other:
        found = control_socket.peer_of(one)
    assert (found.process, found.user) == (os.getpid(), os.geteuid())
    assert found.groups >= {os.getegid(), *os.getgroups()}


def test_a_command_believes_no_other_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "peer_of", lambda connection: Peer(1, 4711, frozenset()))

    async def ask(made: Guarded) -> None:
        with pytest.raises(UntrustedError, match="user 4711"):
            await made.command(print_health)
        assert not ServiceClient(made.directories).is_answered()

    with_control(tmp_path, ask)


def test_a_link_in_the_socket_s_place_is_not_followed(tmp_path: Path) -> None:
    async def ask(made: Guarded) -> None:
        planted = tmp_path / "planted"
        planted.mkdir()
        (planted / NAME).symlink_to(made.path)
        with pytest.raises(UntrustedError, match="is no socket"):
            await asyncio.to_thread(print_health, ServiceClient([planted]))
        # One that is right beside it is found all the same.
        assert await asyncio.to_thread(print_health, ServiceClient([planted, tmp_path])) is Outcome.FINE

    with_control(tmp_path, ask)


# Where it is


def test_it_is_open_to_user_and_group_and_gone_at_the_end(tmp_path: Path) -> None:
    async def look(made: Guarded) -> None:
        found = made.path.stat()
        assert found.st_mode & 0o777 == 0o660
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())

    old = os.umask(0o077)
    try:
        with_control(tmp_path, look)
    finally:
        os.umask(old)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_made_for_it_goes_with_it(tmp_path: Path) -> None:
    async def look(made: Guarded) -> None:
        assert made.path.parent.stat().st_mode & 0o777 == 0o700

    with_control(tmp_path / "state", look)
    assert list(tmp_path.iterdir()) == []


def test_a_path_longer_than_an_address_of_a_socket_works(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30) / ("longer" * 20)
    directory.mkdir(parents=True)
    assert len(str(directory / NAME)) > 108

    async def ask(made: Guarded) -> None:
        assert await made.command(print_health) is Outcome.FINE
        # A second one finds the first one alive there too.
        with pytest.raises(ListenError, match="another sikkerguard listens there"):
            await Guarded(made.directories).control.open()

    with_control(directory, ask)
    assert list(directory.iterdir()) == []


def test_what_a_dead_service_has_left_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / NAME))

    async def ask(made: Guarded) -> None:
        assert await made.command(print_health) is Outcome.FINE
        with pytest.raises(ListenError, match="another sikkerguard listens there"):
            await Guarded(made.directories).control.open()
        assert await made.command(print_health) is Outcome.FINE

    with_control(tmp_path, ask)


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("mine")
    with pytest.raises(ListenError, match="no socket"):
        asyncio.run(Guarded((tmp_path,)).control.open())
    assert (tmp_path / NAME).read_text() == "mine"


def test_where_there_is_no_room_the_next_directory_has_it(tmp_path: Path) -> None:
    full, room = tmp_path / "full", tmp_path / "room"
    full.touch()

    async def run() -> None:
        async with running(full / "inside", room) as made:
            assert await made.command(print_health) is Outcome.FINE
        with pytest.raises(ListenError) as caught:
            await Guarded((full, full / "inside")).control.open()
        assert str(caught.value).startswith(f"The control socket can't be made: {full / NAME} (")
        assert "Protection goes on" in str(caught.value)

    asyncio.run(run())
    assert sorted(tmp_path.iterdir()) == [full]


def test_one_that_was_removed_is_made_anew_and_nobody_else_s_is_taken_away(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as made:
            before = made.path.stat().st_ino
            await made.control.open()
            assert made.path.stat().st_ino == before
            made.path.unlink()
            await made.control.open()
            assert await made.command(print_health) is Outcome.FINE
            made.path.unlink()
            made.path.write_text("mine")

    asyncio.run(run())
    assert (tmp_path / NAME).read_text() == "mine"


def test_a_stop_while_it_is_being_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, listen = threading.Event(), control._listen
    monkeypatch.setattr(control, "_listen", lambda directories: go_on.wait(SECONDS) and listen(directories))

    async def run() -> None:
        made = Guarded((tmp_path,))
        opening = asyncio.create_task(made.control.open())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        go_on.set()
        await made.control.close()

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_hangs_keeps_no_stop_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(control._Place, "remove", lambda place: release.wait(60))

    async def run() -> float:
        async with running(tmp_path):
            began = time.monotonic()
        return time.monotonic() - began

    try:
        assert asyncio.run(run()) < 3
    finally:
        release.set()


# Crowds


def test_idle_connections_are_no_outage(tmp_path: Path) -> None:
    async def crowd(made: Guarded) -> None:
        idle = [await asyncio.open_unix_connection(made.path) for _ in range(40)]
        for _ in range(20):
            assert await made.command(print_health) is Outcome.FINE
        for _, writer in idle:
            writer.close()

    with_control(tmp_path, crowd)


def test_a_server_that_takes_no_connection_is_given_up_in_time(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        hung = opened.enter_context(socket.socket(socket.AF_UNIX))
        hung.bind(str(tmp_path / NAME))
        hung.listen(0)
        waiting = opened.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(tmp_path / NAME))
        with pytest.raises(SikkerGuardError, match="can't be asked"):
            print_health(ServiceClient([tmp_path], answer_seconds=0.2))
        # Nor is it taken for dead.
        with pytest.raises(ListenError, match="another sikkerguard listens there"):
            asyncio.run(Guarded((tmp_path,)).control.open())
