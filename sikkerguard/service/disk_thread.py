"""A thread for a disk that may hang: nobody waits for it for long."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sikkerguard.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable


# A disk that takes longer than this for one thing hangs: nobody waits for it any more until it has done that.
HUNG_SECONDS = 1.5


# Who waits looks this often whether it does.
_STEP_SECONDS = 0.25


# At the end of a run, or of a task, the disk is given so long. All of a stop has five seconds.
LAST_SECONDS = 1.0


_Result = TypeVar("_Result")


_Arguments = ParamSpec("_Arguments")


class DiskThread(Executor):
    """One thread that does one thing after the other, made at the first need. Nothing waits for its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._began: float | None = None

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Have this done behind all else."""
        future: Future[_Result] = Future()
        self._jobs.put((future, partial(fn, *args, **kwargs)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        return future

    def start(self, action: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Have this done, for whoever may not wait for it: an error that nobody asks for is nobody's."""
        job = asyncio.get_running_loop().run_in_executor(self, action)
        job.add_done_callback(lambda done: done.cancelled() or done.exception())
        return job

    async def run(
        self, action: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> _Result:
        """Have this done to its end though the task is cancelled meanwhile: what still uses a database would open it
        again behind the back of who closes it. But a task that is cancelled waits a second, and no longer."""
        job = self.start(partial(action, *arguments, **named))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await self.soon(job, LAST_SECONDS)
            raise

    async def soon(self, job: asyncio.Future[Any], seconds: float) -> bool:
        """Whether this has come to its end, which is waited for for so many seconds at most, and no longer once the
        disk hangs."""
        deadline = time.monotonic() + seconds
        while not job.done() and not self.hangs() and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({job}, timeout=min(left, _STEP_SECONDS))
        return job.done()

    def at_once(self, action: Callable[[], None]) -> None:
        """Have this done while the caller, who can't await, waits for a second at most. It may be done later.

        Raises:
            RecordError: it is not done yet. And what the action raises.
        """
        try:
            self.submit(action).result(timeout=LAST_SECONDS)
        except TimeoutError as error:
            raise RecordError(f"the disk has not answered for {LAST_SECONDS:g} s") from error

    def took(self) -> float:
        """Seconds that what is being done has taken until now."""
        began = self._began  # the thread may be through at this moment
        return 0.0 if began is None else time.monotonic() - began

    def hangs(self) -> bool:
        """Whether nothing is to be waited for."""
        return self.took() > HUNG_SECONDS

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Have the thread end when it has done all it was told; that is not waited for."""
        del wait, cancel_futures
        if self._thread is not None:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, action = job
            if not future.set_running_or_notify_cancel():
                continue
            self._began = time.monotonic()
            try:
                result = action()
            except Exception as error:  # noqa: BLE001 - it is raised where the outcome is asked for
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                self._began = None
            del job, future, action


def within(seconds: float, action: Callable[[], _Result]) -> _Result:
    """The outcome of this, before there is an event loop.

    Raises:
        TimeoutError: there was none in time. And what the action raises.
    """
    thread = DiskThread("disk")
    try:
        return thread.submit(action).result(timeout=seconds)
    finally:
        thread.shutdown()
