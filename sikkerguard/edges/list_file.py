"""The file of addresses that the owner of the host keeps, as a feed. The parser decides what its lines mean."""

from __future__ import annotations

import asyncio
import math
import os
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sikkerguard.core.lists.parse import LARGEST_FILE
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from concurrent.futures import Executor
    from pathlib import Path

    # Device, inode, times of change of the content and of the inode (nanoseconds), size.
    Stamp = tuple[int, int, int, int, int]

# A disk that takes longer to say whether the file has changed hangs, and the last answer counts.
_VERSION_SECONDS = 1.5
# The largest file may take so long from a slow disk.
_READ_SECONDS = 10.0

_Result = TypeVar("_Result")


class LocalListFile:
    """The file at `path`, read by `disk`, an executor with one thread that does not delay the end of the process. The
    file's disk may hang, a network's above all; then nothing here takes longer than its time limit, and no second job
    is given to the thread. `version_seconds` and `read_seconds`, these limits, are for tests to put in."""

    name = LOCAL_FILE
    interval = math.inf
    remaining = None

    def __init__(
        self,
        path: Path,
        disk: Executor,
        *,
        version_seconds: float = _VERSION_SECONDS,
        read_seconds: float = _READ_SECONDS,
    ) -> None:
        self.path = path
        self._disk = disk
        self._version_seconds = version_seconds
        self._read_seconds = read_seconds
        self._job: asyncio.Future[Any] | None = None
        self._stamp: Stamp | None = None

    async def version(self) -> tuple[Path, Stamp | None]:
        """The path and the stamp of the file; None as its stamp where it can't be looked at. While its disk hangs, the
        answer is the last one."""
        with suppress(TimeoutError):
            self._stamp = await self._ask(partial(stamp_of, self.path), self._version_seconds)
        return self.path, self._stamp

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The whole content, in one piece.

        Raises:
            ListError: it can't be read, is no regular file, is larger than 64 MiB, or its disk does not answer.
        """
        try:
            content = await self._ask(partial(read, self.path), self._read_seconds)
        except TimeoutError:
            raise ListError(
                f"{self.path} can't be read (its disk has not answered for {self._read_seconds:g} s)"
            ) from None
        if content:
            yield content

    async def _ask(self, action: Callable[[], _Result], seconds: float) -> _Result:
        """Run the action in the disk's thread.

        Raises:
            TimeoutError: the thread has not finished it, or what it was given before, in so many seconds.
        """
        async with asyncio.timeout(seconds):
            if self._job is not None and not self._job.done():
                await asyncio.wait({self._job})
            job = asyncio.get_running_loop().run_in_executor(self._disk, action)
            # An error that comes when nobody waits any more is nobody's.
            job.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._job = job
            await asyncio.wait({job})
            if self._job is job:
                self._job = None  # it would keep the content in memory
            return job.result()


def stamp_of(path: Path) -> Stamp | None:
    """What differs once the file was changed or replaced; None where it can't be looked at."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        ListError: it can't be read, is no regular file, or is larger than 64 MiB.
    """
    try:
        # Not to wait where somebody has put a FIFO.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ListError(f"{path} is no regular file")
            # All of it is asked for at once: then there is one piece, of which no copy is made.
            content = file.read(LARGEST_FILE + 1)
    except IsADirectoryError:
        raise ListError(f"{path} is no regular file") from None
    except (OSError, ValueError) as error:  # a ValueError for a NUL in the path
        raise ListError(f"{path} can't be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > LARGEST_FILE:
        raise ListError(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
    return content
