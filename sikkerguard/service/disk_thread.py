"""A thread for a disk that may hang: nobody waits for it for long."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sikkerguard.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

# A disk that takes longer than this for one job hangs: nobody waits for it any more until that job is done.
HUNG_SECONDS = 1.5
# Whoever waits looks this often whether the disk hangs.
_STEP_SECONDS = 0.25
# How long the disk is waited for at the end of a run, or of a task. All of a stop has five seconds.
LAST_SECONDS = 1.0

_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class DiskThread(Executor):
    """One thread that does one job after the other, made at the first need. Nothing waits for its end, so that a disk
    that hangs does not keep the process from ending.

    `monotonic` gives the seconds by which a job's time is measured, in the thread itself; waiting goes by the event
    loop's time."""

    def __init__(self, name: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._monotonic = monotonic
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._began: float | None = None

    def submit(
        self, fn: Callable[_Arguments, _Result], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        """Queue this behind all other jobs."""
        future: Future[_Result] = Future()
        self._jobs.put(partial(_carry_out, future, partial(fn, *args, **kwargs)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        return future

    def start(self, action: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Queue this for a caller that may not wait for it: an error that nobody asks for is not logged."""
        job = asyncio.get_running_loop().run_in_executor(self, action)
        job.add_done_callback(lambda done: done.cancelled() or done.exception())
        return job

    async def run(
        self, action: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> _Result:
        """Do this to its end even if the task is cancelled meanwhile: a job that still used a database would open it
        again after its owner has closed it. A cancelled task waits one second for that, and no longer."""
        job = self.start(partial(action, *arguments, **named))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await self.soon(job, LAST_SECONDS)
            raise

    async def soon(self, job: asyncio.Future[_Result], seconds: float) -> bool:
        """Wait for this job for so many seconds at most, and no longer once the disk hangs. Returns whether it has come
        to its end."""
        now = asyncio.get_running_loop().time
        deadline = now() + seconds
        while not job.done() and not self.hangs() and (left := deadline - now()) > 0:
            await asyncio.wait({job}, timeout=min(left, _STEP_SECONDS))
        return job.done()

    def at_once(self, action: Callable[[], None]) -> None:
        """Do this while the caller, who can't await, waits for a second at most. It may be done later.

        Raises:
            RecordError: it is not done yet. And what the action raises.
        """
        try:
            self.submit(action).result(timeout=LAST_SECONDS)
        except TimeoutError as error:
            raise RecordError(f"the disk has not answered for {LAST_SECONDS:g} s") from error

    def took(self) -> float:
        """Seconds that the present job has taken until now; 0 where there is none."""
        began = self._began  # the thread may finish at this moment
        return 0.0 if began is None else self._monotonic() - began

    def hangs(self) -> bool:
        """Whether the present job takes too long for anybody to wait."""
        return self.took() > HUNG_SECONDS

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End the thread once all queued jobs are done; that is not waited for, whatever the arguments."""
        del wait, cancel_futures
        if self._thread is not None:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._began = self._monotonic()
            try:
                job()
            finally:
                self._began = None
            del job


def _carry_out(future: Future[_Result], action: Callable[[], _Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = action()
    except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)
    else:
        future.set_result(result)


def within(seconds: float, action: Callable[[], _Result]) -> _Result:
    """Do this in a thread, and return its result; for a caller that has no event loop yet.

    Raises:
        TimeoutError: it is not done in so many seconds. And what the action raises.
    """
    thread = DiskThread("disk")
    try:
        return thread.submit(action).result(timeout=seconds)
    finally:
        thread.shutdown()
