"""A log that nobody reads holds nothing up: a bounded queue, and a thread that writes what it holds.

A terminal stopped by Ctrl-S, a full pipe, a journald that is stopped: to write there waits until somebody reads, maybe
for ever. What the queue has no room for is counted, and the count is written when there is room again.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import time
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Some megabytes, and more than a start or a repair has to say. The last of it is kept for warnings and errors.
_RECORDS, _RESERVED = 5000, 500
# How often a pipe that does not block is looked at.
_LOOK_SECONDS = 1.0


class LogQueue(QueueHandler):
    """Takes every record at once, and has a thread give it to `write`. `close` waits for it a moment; the thread ends
    with the process, wherever it stands. Nothing else may hold a lock that `write` takes. `lost` counts the records
    that had no room since the last time that this was written."""

    def __init__(
        self, write: Callable[[logging.LogRecord], None], records: int = _RECORDS, reserved: int = _RESERVED
    ) -> None:
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(records)
        super().__init__(self._records)
        self._write = write
        self._usual = records - reserved
        self._counting = threading.Lock()
        self.lost = 0
        threading.Thread(target=self._write_forever, name="log", daemon=True).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put the record into the queue, or count it."""
        try:
            if record.levelno < logging.WARNING and self._records.qsize() >= self._usual:
                raise queue.Full
            self._records.put_nowait(record)
        except queue.Full:
            with self._counting:
                self.lost += 1

    def drain(self, seconds: float) -> bool:
        """Wait until all is written, at most so long; says whether it is."""
        deadline = time.monotonic() + seconds
        while self._records.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _write_forever(self) -> None:
        while True:
            self._write(self._records.get())
            with self._counting:
                lost, self.lost = self.lost, 0
            if lost:
                text = "%d lines of the log were lost: nobody read it for a while."
                self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), None))
            self._records.task_done()


class DescriptorHandler(logging.Handler):
    """Writes lines to a file descriptor. Not by a stream of Python's: a thread that hangs in one holds its lock, and an
    interpreter that ends waits for that."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write it; where nobody reads any more, there is nobody to be told of it."""
        left = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Of somebody who wants no writer of his to wait: this thread may.
                select.select([], [self._descriptor], [], _LOOK_SECONDS)
            except OSError:
                return
