"""The kernel's own log lines, from journald or /dev/kmsg.

A line is a hint, never a proof, and yet only the kernel's own records are given: everyone who may write to /dev/kmsg
can write a line that looks like ours, there with another facility than the kernel's, and in the journal, which says
`_TRANSPORT=kernel` of such a line too, with another SYSLOG_FACILITY.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sikkerguard.core.faces import LogFace

log = logging.getLogger(__name__)

KMSG = "/dev/kmsg"
# Records that one read takes: a flood of other messages can't hold us for more than a millisecond or two.
BATCH = 256
# What a record can have at most, escapes included: CONSOLE_EXT_LOG_MAX of the kernel's kernel/printk/printk.c.
_RECORD = 8192
_KMSG_DEVICE = os.makedev(1, 11)  # the kernel's Documentation/admin-guide/devices.txt
_STANDARD_INPUT = 0
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
# Where we are so far behind the journal, what is left out shows in the kernel's counters long before we get there.
_STALE_MICROSECONDS = 10_000_000

_STAYS = "blocked connections are still counted exactly, and shown within a second, from the kernel's counters"
_GROUP = "add this user to the group systemd-journal"
_DEVICE = f"make {KMSG} readable (CAP_SYSLOG)"


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


class Journal:
    """What a `systemd.journal.Reader`, with its matches, gives from now on. To be made, read and closed by one and
    the same thread, as sd-journal(3) asks. journald does not tell what it never got, so `lost` stays 0."""

    name = "journald"

    def __init__(self, reader: Any) -> None:
        self.lost = 0
        self._reader = reader
        # Before anything is read, so that no change goes by unseen (sd_journal_get_fd(3)).
        self._descriptor: int = reader.fileno()
        self._latest = 0
        self.carries = self._go_to_end()

    def fileno(self) -> int:
        """What to poll for input; on some file systems it stays silent (sd_journal_reliable_fd(3))."""
        return self._descriptor

    def read(self) -> list[str]:
        """The kernel's messages of up to 256 entries.

        Raises:
            OSError: the journal can't be read.
        """
        self._reader.process()
        messages = []
        for _ in range(BATCH):
            entry = self._reader.get_next()
            if not entry:
                break
            if time.time() * 1e6 - entry["__REALTIME_TIMESTAMP"] > _STALE_MICROSECONDS:
                self._go_to_end()
                break
            # Within one boot this only grows: should a seek or a change of files lead back, nothing is given again.
            stamp = entry["__MONOTONIC_TIMESTAMP"][0]
            if stamp < self._latest:
                continue
            self._latest = stamp
            message = entry.get("MESSAGE")
            # Bytes where it is no UTF-8.
            if isinstance(message, bytes):
                message = message.decode("utf-8", "replace")
            if isinstance(message, str):
                messages.append(message)
        return messages

    def close(self) -> None:
        """Once, at the end."""
        self._reader.close()

    def _go_to_end(self) -> bool:
        """Have the next entry be one that is not there yet; False where there is none at all."""
        # To seek the tail alone is not enough: what comes next may then be the last entry, or an older one.
        self._reader.seek_tail()
        last = self._reader.get_previous()
        if last:
            self._latest = max(self._latest, last["__MONOTONIC_TIMESTAMP"][0])
        else:
            self._reader.seek_head()
        return bool(last)


def open_kmsg(path: str = KMSG) -> Kmsg:
    """/dev/kmsg from now on; systemd may have opened it for us as standard input (testing.md).

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


def open_journal() -> Journal:
    """The kernel's messages in the journal, of this boot and from now on.

    Raises:
        OSError: the journal can't be read by us, or carries no message of the kernel.
    """
    try:
        from systemd import journal
    except ImportError:
        raise OSError("the Python package systemd is not installed") from None
    # No field but the message is of interest, so none is converted: that takes half of the time.
    plain = dict.fromkeys(journal.DEFAULT_CONVERTERS, _as_it_is)
    try:
        reader = journal.Reader(flags=journal.LOCAL_ONLY | journal.SYSTEM, converters=plain)
    except ValueError as error:
        # What the library makes of EINVAL.
        raise OSError(str(error)) from error
    try:
        if not (reader.has_runtime_files() or reader.has_persistent_files()):
            raise OSError("there is no journal that this user may read")
        reader.add_match(_TRANSPORT="kernel", SYSLOG_FACILITY="0")
        reader.this_boot()
        made = Journal(reader)
        if not made.carries:
            raise OSError("the journal has no message of the kernel of this boot")
    except BaseException:
        reader.close()
        raise
    return made


def open_source(
    choice: str,
    said: set[str] | None = None,
    open_journal: Callable[[], LogFace] = open_journal,
    open_kmsg: Callable[[], LogFace] = open_kmsg,
) -> LogFace | None:
    """The source for `SIKKER_LOG_SOURCE` (auto, journald or kmsg), or None after a sentence that says why, what stays
    and what to do. `said` keeps the sentences, so that who asks again and again has each one said once."""
    reasons = []
    for name, place, opened in (("journald", "journald", open_journal), ("kmsg", KMSG, open_kmsg)):
        if choice not in ("auto", name):
            continue
        try:
            source = opened()
        except OSError as error:
            reasons.append(f"{place} ({error.strerror or error})")
        else:
            if said is not None:
                said.clear()
            return source
    if choice == "auto":
        level, advice = logging.INFO, f"to have single events too, {_GROUP} or {_DEVICE}"
        sentence = f"The kernel's log can be read neither from {' nor from '.join(reasons)}; {_STAYS}; {advice}."
    else:
        level, advice = logging.WARNING, _GROUP if choice == "journald" else _DEVICE
        sentence = f"SIKKER_LOG_SOURCE={choice} can't be had: {reasons[0]}; {_STAYS}; {advice}, or set it to auto."
    if said is None or sentence not in said:
        log.log(level, "%s", sentence)
    if said is not None:
        said.add(sentence)
    return None


def _as_it_is(value: Any) -> Any:
    return value


def _is_kmsg(descriptor: int) -> bool:
    with suppress(OSError):
        found = os.fstat(descriptor)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == _KMSG_DEVICE
    return False
