"""The disk's thread: jobs one after the other, and nobody waits for it for long."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.errors import RecordError
from sikkerguard.service.disk_thread import DiskThread, within

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[3]


@pytest.fixture(name="gate")
def _gate() -> Iterator[threading.Event]:
    """What a job waits for; opened at the end, so that no thread is left."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_jobs_are_done_one_after_the_other_and_say_how_long_they_take(gate: threading.Event) -> None:
    moment, entered, done = [0.0], threading.Event(), list[int]()
    thread = DiskThread("test", monotonic=lambda: moment[0])
    assert (thread.took(), thread.hangs()) == (0.0, False)

    def first() -> None:
        entered.set()
        gate.wait(20)
        done.append(1)

    one, other = thread.submit(first), thread.submit(done.append, 2)
    assert entered.wait(20)
    moment[0] = 1.5
    assert (thread.took(), thread.hangs()) == (1.5, False)
    moment[0] = 1.6
    assert thread.hangs()
    assert not other.done()
    gate.set()
    one.result(20)
    other.result(20)
    assert done == [1, 2]
    thread.shutdown()


def test_a_job_is_waited_for_until_it_is_done_or_the_disk_hangs(gate: threading.Event) -> None:
    moment, entered = [0.0], threading.Event()
    thread = DiskThread("test", monotonic=lambda: moment[0])

    def act() -> int:
        entered.set()
        gate.wait(20)
        return 7

    async def work() -> None:
        job = thread.start(act)
        assert await asyncio.to_thread(entered.wait, 20)
        assert not await thread.soon(job, 0.0)
        moment[0] = 2.0
        began = time.monotonic()
        assert not await thread.soon(job, 60)
        assert time.monotonic() - began < 5
        gate.set()
        assert await asyncio.wait_for(job, 20) == 7
        assert await thread.soon(job, 0.0)

    asyncio.run(work())
    thread.shutdown()


def test_what_is_done_is_done_to_its_end_unless_the_disk_hangs(gate: threading.Event) -> None:
    thread, entered, done = DiskThread("test"), threading.Event(), list[int]()

    def act() -> None:
        entered.set()
        gate.wait(20)
        done.append(1)

    async def work(seconds: float) -> None:
        task = asyncio.create_task(thread.run(act))
        assert await asyncio.to_thread(entered.wait, 20)
        task.cancel()
        asyncio.get_running_loop().call_later(seconds, gate.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work(0.2))
    assert done == [1]
    gate.clear()
    entered.clear()
    began = time.monotonic()
    asyncio.run(work(60))
    assert 0.9 < time.monotonic() - began < 2
    assert done == [1]
    gate.set()
    thread.shutdown()


def test_what_a_job_raises_is_raised_where_its_result_is_asked_for() -> None:
    thread = DiskThread("test")

    def refuse(*, why: str) -> None:
        raise RecordError(why)

    async def work() -> None:
        with pytest.raises(RecordError, match="no room"):
            await thread.run(refuse, why="no room")
        ignored = thread.start(lambda: refuse(why="nobody asks"))
        await asyncio.wait({ignored}, timeout=20)

    asyncio.run(work())
    thread.shutdown()


def test_a_caller_that_can_not_await_is_told_that_it_is_not_done(gate: threading.Event) -> None:
    thread = DiskThread("test")
    thread.at_once(lambda: None)

    def hang() -> None:
        gate.wait(20)

    def refuse() -> None:
        raise RecordError("no room")

    with pytest.raises(RecordError, match="has not answered"):
        thread.at_once(hang)
    gate.set()
    with pytest.raises(RecordError, match="no room"):
        thread.at_once(refuse)
    thread.shutdown()


def test_before_there_is_a_loop_it_is_waited_for_as_little(gate: threading.Event) -> None:
    assert within(5, lambda: 7) == 7
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.1, gate.wait)
    assert time.monotonic() - began < 2


HANGING = """
import asyncio, threading
from sikkerguard.service.disk_thread import DiskThread
entered = threading.Event()
def hang():
    entered.set()
    threading.Event().wait()
async def work():
    DiskThread("test").start(hang)
    assert await asyncio.to_thread(entered.wait, 20)
asyncio.run(work())
"""


def test_the_process_ends_though_a_thread_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], cwd=PROJECT, timeout=20, check=False)
    assert done.returncode == 0
