"""Look-ups of names: with a deadline, one for each name at a time, and none that holds up the end of a process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sikkerguard.edges.sikkerapi import failures, resolution
from sikkerguard.edges.sikkerapi.blacklist import Blacklist
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.sikkerapi.connector import PinnedConnector
from sikkerguard.edges.sikkerapi.resolution import MAX_SECONDS, resolve
from sikkerguard.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HOST = "api.example.net"


class Resolver:
    """Hangs until it is let go, and then gives an address; `asked` are the names that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, host: str) -> Iterable[str]:
        self.asked.append(host)
        self.go_on.wait(20)
        return ["192.0.2.1", "192.0.2.1", "2001:db8::1"]


@pytest.fixture(name="resolver")
def _resolver() -> Iterator[Resolver]:
    made = Resolver()
    yield made
    made.go_on.set()


def threads() -> int:
    return sum(thread.name == "look-up" for thread in threading.enumerate())


def test_the_deadline_is_about_ten_seconds() -> None:
    assert 5 <= MAX_SECONDS <= 10
    assert PinnedConnector("http://api.example.net", {})._resolve_seconds == MAX_SECONDS


def test_a_look_up_that_hangs_ends_by_its_deadline_and_has_no_second_thread(resolver: Resolver) -> None:
    before = threads()
    began = time.monotonic()
    for _ in range(5):
        assert asyncio.run(resolve(HOST, 0.05, resolver)) == ()
    # Another connector, as after new settings, joins it too.
    for _ in range(5):
        connector = PinnedConnector(f"http://{HOST}", {}, look_up=resolver, resolve_seconds=0.05)
        assert asyncio.run(connector.resolve()) == ()
    assert time.monotonic() - began < 5
    assert resolver.asked == [HOST]
    assert threads() == before + 1
    # Another name has its own.
    assert asyncio.run(resolve("other.example.net", 0.05, resolver)) == ()
    assert resolver.asked == [HOST, "other.example.net"]


def test_an_answer_that_came_too_late_is_used_where_the_next_one_is_late_again(resolver: Resolver) -> None:
    calls, hanging = 0, threading.Event()

    def slow(host: str) -> Iterable[str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            resolver(host)
            return ["192.0.2.1"]
        hanging.wait(20)
        return ["192.0.2.2"]

    async def asked() -> list[tuple[str, ...]]:
        first = await resolve(HOST, 0.05, slow)
        resolver.go_on.set()
        lookup = resolution._under_way[slow, HOST]
        deadline = time.monotonic() + 10
        while not lookup.done() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return [first, await resolve(HOST, 0.05, slow), await resolve(HOST, 0.05, slow)]

    assert asyncio.run(asked()) == [(), ("192.0.2.1",), ()]
    hanging.set()
    assert calls == 2


def test_an_answer_is_new_each_time_and_leaves_nothing(resolver: Resolver) -> None:
    resolver.go_on.set()
    for _ in range(2):
        assert asyncio.run(resolve(HOST, 5, resolver)) == ("192.0.2.1", "2001:db8::1")
    assert resolver.asked == [HOST, HOST]
    assert (resolver, HOST) not in resolution._under_way


def test_who_asks_at_the_same_time_gets_the_same_answer(resolver: Resolver) -> None:
    async def both() -> list[tuple[str, ...]]:
        waiting = [asyncio.create_task(resolve(HOST, 5, resolver)) for _ in range(2)]
        await asyncio.sleep(0)
        resolver.go_on.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(both()) == [("192.0.2.1", "2001:db8::1")] * 2
    assert resolver.asked == [HOST]


def test_a_resolver_that_fails_as_nobody_thought_is_no_answer_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_logged", set())

    def odd(host: str) -> Iterable[str]:
        raise KeyError(host)

    assert asyncio.run(resolve(HOST, 5, odd)) == ()
    assert asyncio.run(resolve(HOST, 5, odd)) == ()
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_where_there_can_be_no_more_threads_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def look_up(host: str) -> Iterable[str]:
        return ["192.0.2.1"]

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert asyncio.run(resolve(HOST, 5, look_up)) == ()
    assert asyncio.run(resolve(HOST, 5, look_up)) == ("192.0.2.1",)


HANGING = """
import asyncio, socket, sys, threading
def hang(*_, **__):
    print("asked", flush=True)
    threading.Event().wait()
socket.getaddrinfo = hang
from sikkerguard.edges.sikkerapi.connector import PinnedConnector
from sikkerguard.edges.sikkerapi.blacklist import Blacklist
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.errors import FetchError
async def pull():
    connector = PinnedConnector("http://api.example.net", {environment}, resolve_seconds=0.2)
    {use}
    try:
        client = ApiClient("http://api.example.net", "key", connector=connector)
        print([piece async for piece in Blacklist(client, score_min=50, interval=3600.0).stream()])
    except FetchError as error:
        print(error)
asyncio.run(pull())
print("ended")
"""


@pytest.mark.parametrize(
    ("environment", "use"),
    [
        ("{}", "pass"),
        ("{}", "print(await connector.resolve())"),
        # Spoken to by TLS, a proxy is connected to by its name.
        ("{'HTTP_PROXY': 'https://proxy.example.net'}", "connector.use(['192.0.2.1'])"),
        ("{'HTTP_PROXY': 'http://proxy.example.net'}", "pass"),
    ],
)
def test_a_look_up_that_never_ends_does_not_hold_up_the_end_of_the_process(environment: str, use: str) -> None:
    program = HANGING.replace("{environment}", environment).replace("{use}", use)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "asked"
    assert "SikkerAPI can't be reached (the name does not resolve)" in done.stdout
    assert done.stdout.splitlines().count("asked") == 1
    assert done.stdout.splitlines()[-1] == "ended"


def test_a_name_that_does_not_resolve_is_an_api_that_can_not_be_had() -> None:
    def nothing(host: str) -> Iterable[str]:
        raise OSError("Name or service not known")

    client = ApiClient(f"http://{HOST}", "key", connector=PinnedConnector(f"http://{HOST}", {}, look_up=nothing))
    with pytest.raises(FetchError, match="the name does not resolve"):
        asyncio.run(anext(Blacklist(client, score_min=50, interval=3600.0).stream()))
