"""The disk as the service sees it: what is kept, what is tried again, and that nothing waits for one that hangs."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.errors import ListError, RecordError
from sikkerguard.service import disk_thread, state_writer
from sikkerguard.service.disk_thread import DiskThread, within
from sikkerguard.service.state_writer import StateWriter
from tests.unit.edges.storage.test_store import NEW, OLD
from tests.unit.service.test_pull_loop import Store as InMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sikkerguard.core.lists.sources import VerifiedList

FULL = OSError(errno.ENOSPC, "No space left on device")


class Store(InMemory):
    """A disk that can be full, hang, and lose its directory."""

    def __init__(self) -> None:
        super().__init__()
        self.error: OSError | None = None
        self.may_go = threading.Event()
        self.may_go.set()
        self.saved: list[Any] = []
        self.lost = False

    def claim(self) -> bool:
        self._write("claim")
        lost, self.lost = self.lost, False
        return lost

    def save_list(self, verified: VerifiedList) -> None:
        self._write(verified)
        self.list = verified

    def save_pulls(self, known: dict[str, Any]) -> None:
        self._write(known)
        self.pulls = known

    def _write(self, what: Any) -> None:
        assert self.may_go.wait(20)
        if self.error is not None:
            raise self.error
        self.saved.append(what)


class Bench:
    def __init__(self) -> None:
        self.store = Store()
        self.said: list[str] = []
        self.disk = StateWriter(self.store, "/state", self.said.append)

    async def until_said(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.said) < count:
                await asyncio.sleep(0.01)


@pytest.fixture(name="bench")
def _bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """With time limits that suit a test."""
    for name, seconds in (
        ("HUNG", 0.2),
        ("_SAID", 0.4),
        ("_LOAD", 0.3),
        ("_AGAIN", 0.1),
        ("_LOOK", 0.05),
    ):
        monkeypatch.setattr(disk_thread if name == "HUNG" else state_writer, f"{name}_SECONDS", seconds)
    bench = Bench()
    yield bench
    bench.store.may_go.set()


def test_what_is_kept_is_written_by_another_thread_and_the_newest_only(bench: Bench) -> None:
    async def work() -> None:
        bench.disk.save_pulls({"n": 0})
        bench.store.may_go.clear()
        for number in range(1, 50):
            bench.disk.save_pulls({"n": number})
            await asyncio.sleep(0)
        bench.disk.save_list(NEW)
        bench.store.may_go.set()
        await bench.disk.settled(5)
        assert bench.store.pulls == {"n": 49}
        assert bench.store.list == NEW
        assert len(bench.store.saved) <= 3

    asyncio.run(work())


def test_what_is_refused_is_said_once_and_written_when_there_is_room(bench: Bench) -> None:
    async def work() -> None:
        watch = asyncio.create_task(bench.disk.watch_forever())
        bench.store.error = FULL
        bench.disk.save_pulls({"n": 1})
        await bench.until_said(1)
        assert "/state can't be written (No space left on device): blocking goes on" in bench.said[0]
        assert "not kept for the next start" in bench.said[0]
        bench.disk.save_list(OLD)
        bench.disk.save_list(NEW)
        await bench.until_said(2)
        assert "after a reboot an older one blocks until the next pull" in bench.said[1]
        await asyncio.sleep(0.5)
        assert len(bench.said) == 2
        bench.store.error = None
        await bench.until_said(3)
        assert bench.said[2] == ""
        assert (bench.store.list, bench.store.pulls) == (NEW, {"n": 1})
        watch.cancel()

    asyncio.run(work())


def test_a_disk_that_hangs_keeps_nobody_waiting_and_is_said_with_the_time(bench: Bench) -> None:
    async def work() -> None:
        watch = asyncio.create_task(bench.disk.watch_forever())
        bench.store.may_go.clear()
        bench.disk.save_pulls({"n": 1})
        for longest in (0.9, 0.1, 0.1):
            began = time.monotonic()
            bench.disk.save_list(NEW)
            await bench.disk.settled(10)
            assert time.monotonic() - began < longest
        await bench.until_said(1)
        assert "/state has not answered since " in bench.said[0]
        await asyncio.sleep(0.5)
        assert len(bench.said) == 1
        bench.store.may_go.set()
        await bench.until_said(2)
        assert bench.said[1] == ""
        await bench.disk.settled(5)
        assert bench.store.list == NEW
        watch.cancel()

    asyncio.run(work())


def test_a_directory_that_was_made_again_gets_all_that_was_in_it(bench: Bench) -> None:
    async def work() -> None:
        bench.store.list, bench.store.pulls = OLD, {"n": 1}
        await bench.disk.load()
        assert (bench.disk.kept.verified, bench.disk.kept.pulls) == (OLD, {"n": 1})
        bench.disk.claim()
        await bench.disk.settled(5)
        assert bench.store.saved == ["claim"]
        bench.store.lost = True
        bench.disk.save_pulls({"n": 2})
        bench.disk.claim()
        await bench.disk.settled(5)
        assert bench.store.list == OLD
        assert bench.store.pulls == {"n": 2}
        assert OLD in bench.store.saved

    asyncio.run(work())


def test_a_start_does_not_wait_for_a_list_that_can_not_be_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> None:
        bench.store.may_go.wait(20)

    def refuse() -> None:
        raise ListError("the cached list is damaged")

    async def work() -> None:
        monkeypatch.setattr(bench.store, "load_list", refuse)
        await bench.disk.load()
        assert bench.disk.kept.complaint == "The cached list is damaged"
        monkeypatch.setattr(bench.store, "load_list", hang)
        bench.store.may_go.clear()
        began = time.monotonic()
        await bench.disk.load()
        assert time.monotonic() - began < 2
        assert bench.disk.kept.allowlist == Allowlist()
        assert "has not answered" in bench.disk.kept.complaint

    asyncio.run(work())


def test_a_stop_waits_a_second_and_no_longer(bench: Bench) -> None:
    async def work() -> None:
        bench.store.may_go.clear()
        bench.disk.save_list(NEW)
        await bench.disk.finish()

    began = time.monotonic()
    asyncio.run(work())
    assert time.monotonic() - began < 2


def test_what_is_done_is_done_to_its_end_unless_the_disk_hangs() -> None:
    thread, may_go, done = DiskThread("test"), threading.Event(), list[int]()

    def act() -> None:
        may_go.wait(20)
        done.append(1)

    async def work(seconds: float) -> None:
        task = asyncio.create_task(thread.run(act))
        await asyncio.sleep(0.05)
        task.cancel()
        asyncio.get_running_loop().call_later(seconds, may_go.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work(0.2))
    assert done == [1]
    may_go.clear()
    began = time.monotonic()
    asyncio.run(work(60))
    assert 0.9 < time.monotonic() - began < 2
    assert done == [1]
    may_go.set()
    thread.shutdown()


def test_who_can_not_await_is_told_that_it_is_not_done() -> None:
    thread, may_go = DiskThread("test"), threading.Event()
    thread.at_once(lambda: None)

    def hang() -> None:
        may_go.wait(20)

    def refuse() -> None:
        raise RecordError("no room")

    with pytest.raises(RecordError, match="has not answered"):
        thread.at_once(hang)
    may_go.set()
    with pytest.raises(RecordError, match="no room"):
        thread.at_once(refuse)
    thread.shutdown()


def test_before_there_is_a_loop_it_is_waited_for_as_little() -> None:
    assert within(5, lambda: 7) == 7
    may_go = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.1, may_go.wait)
    assert time.monotonic() - began < 2
    may_go.set()


HANGING = """
import asyncio, os, sys, threading
from sikkerguard.service.disk_thread import DiskThread
async def work():
    DiskThread("test").start(threading.Event().wait)
    await asyncio.sleep(0.1)
asyncio.run(work())
"""


def test_the_process_ends_though_a_thread_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], cwd=Path(__file__).parents[3], timeout=20, check=False)
    assert done.returncode == 0
