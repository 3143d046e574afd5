"""The kernel's own log, /dev/kmsg. Everyone who may write there can write a line that looks like ours, with another
facility than the kernel's: only records of that one are given.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KMSG = "/dev/kmsg"
# Records that one read takes: a flood of other messages can't hold us for more than a millisecond or two.
BATCH = 256
# What a record can have at most, escapes included: CONSOLE_EXT_LOG_MAX of the kernel's kernel/printk/printk.c.
_RECORD = 8192
_KMSG_DEVICE = os.makedev(1, 11)  # the kernel's Documentation/admin-guide/devices.txt
_STANDARD_INPUT = 0
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class Kmsg:
    """/dev/kmsg, in the form of the kernel's Documentation/ABI/testing/dev-kmsg. `descriptor` is not to block; the
    caller gives it away. `read` is read(2)."""

    name = "kmsg"

    def __init__(self, descriptor: int, read: Callable[[int, int], bytes] = os.read) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._read = read
        self._next: int | None = None
        self._overrun = False

    def fileno(self) -> int:
        """What to poll for input."""
        return self._descriptor

    def read(self) -> list[str]:
        """The kernel's messages of up to 256 records.

        Raises:
            OSError: the device is gone.
        """
        messages = []
        for _ in range(BATCH):
            try:
                record = self._read(self._descriptor, _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:
                # The next record tells how many are gone.
                self._overrun = True
                continue
            if not record:
                raise OSError(f"{KMSG} has come to an end")
            message = self._message(record)
            if message is not None:
                messages.append(message)
        return messages

    def close(self) -> None:
        """Once, at the end."""
        os.close(self._descriptor)

    def _message(self, record: bytes) -> str | None:
        """The text of a record of the kernel's; None for one of user space. `4,498,1615668572,-;text` and lines of
        keys and values, each with a space before it."""
        head, _, text = record.partition(b";")
        fields = head.split(b",", 2)
        try:
            level, number = int(fields[0]), int(fields[1])
        except (ValueError, IndexError):
            return None
        if self._next is not None:
            self.lost += max(0, number - self._next)
        elif self._overrun:
            # Before our first record: at least one, and nothing tells of more.
            self.lost += 1
        self._next, self._overrun = number + 1, False
        if level >> 3:
            return None
        text = text.partition(b"\n")[0]
        if b"\\" in text:
            text = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), text)
        return text.decode("utf-8", "replace")


def open_kmsg(path: str = KMSG) -> Kmsg:
    """/dev/kmsg from now on; systemd may have opened it for us as standard input.

    Raises:
        OSError: it can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        if not _is_kmsg(_STANDARD_INPUT):
            raise
        descriptor = os.dup(_STANDARD_INPUT)
        os.set_blocking(descriptor, False)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        os.close(descriptor)
        raise
    return Kmsg(descriptor)


def _is_kmsg(descriptor: int) -> bool:
    with suppress(OSError):
        found = os.fstat(descriptor)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == _KMSG_DEVICE
    return False
