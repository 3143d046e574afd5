"""The kernel's own log, in the journal. `_TRANSPORT=kernel` is said there of lines too that a program
wrote to /dev/kmsg, with another SYSLOG_FACILITY than the kernel's: only records of that one are given.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Entries that one read takes: a flood of other messages can't hold us for more than some milliseconds.
BATCH = 256
# Where we are so far behind the journal, what is left out shows in the kernel's counters long before we get there.
_STALE_MICROSECONDS = 10_000_000
# Where journald has its files. A reader never learns of one that appears, or takes the place of another, later on:
# add_root_directory in systemd's src/libsystemd/sd-journal/sd-journal.c.
_ROOTS = (Path("/run/log/journal"), Path("/var/log/journal"))
# From where a reader that is opened anew goes on, if there was nothing for so long: that much is not stale yet.
_BACK_SECONDS = 9.0
# How long the journal may be away, or not be ours to read yet, while it is moved.
_PATIENCE_SECONDS = 10.0
_NO_FILES = "there is no journal that this user may read"


class Journal:
    """What a `systemd.journal.Reader` gives from now on; `open_reader` makes one, with its matches, at first and each
    time that one of the directories `roots` has appeared or is another one. To be made, read and closed by one and
    the same thread, as sd-journal(3) asks. journald does not tell what it never got, so `lost` stays 0."""

    name = "journald"

    def __init__(
        self,
        open_reader: Callable[[], Any],
        roots: Sequence[Path] = _ROOTS,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self.lost = 0
        self._open_reader = open_reader
        self._roots = roots
        self._patience = patience_seconds
        self._reader: Any = None
        self._moved_at: float | None = None
        self._latest = 0
        try:
            self._open()
            self.carries = self._go_to_end()
        except BaseException:
            self.close()
            raise

    def has_files(self) -> bool:
        """Whether there is anything that we may read."""
        return bool(self._reader.has_runtime_files() or self._reader.has_persistent_files())

    def fileno(self) -> int:
        """What to poll for input until the next read; on some file systems it stays silent
        (sd_journal_reliable_fd(3))."""
        return self._descriptor

    def read(self) -> list[str]:
        """The kernel's messages of up to 256 entries.

        Raises:
            OSError: the journal can't be read.
        """
        if _identities(self._roots) != self._found:
            self._open_anew()
        self._reader.process()
        if self._moved_at is not None:
            self._wait_for_files(self._moved_at)
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
        if self._reader is not None:
            self._reader.close()

    def _open(self) -> None:
        # Before the opening, and the descriptor before anything is read, so that no change goes by unseen
        # (sd_journal_get_fd(3)).
        self._found = _identities(self._roots)
        self._reader = self._open_reader()
        self._descriptor: int = self._reader.fileno()

    def _open_anew(self) -> None:
        """Have the next entry be the one after the last that was given, wherever it is now."""
        self._reader.close()
        self._reader = None
        self._open()
        self._moved_at = time.monotonic()
        # What has the same stamp is not told apart: it counts as given.
        self._latest += 1
        self._reader.seek_monotonic(max(self._latest / 1e6, time.monotonic() - _BACK_SECONDS))

    def _wait_for_files(self, moved_at: float) -> None:
        if self.has_files():
            self._moved_at = None
        elif time.monotonic() - moved_at > self._patience:
            raise OSError(_NO_FILES)

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


def open_journal() -> Journal:
    """The kernel's messages in the journal, of this boot and from now on.

    Raises:
        OSError: the journal can't be read by us, or carries no message of the kernel.
    """
    try:
        from systemd import journal

        made = Journal(lambda: _reader(journal))
    except (ImportError, AttributeError, TypeError) as error:
        # There are other packages of this name, and libraries change.
        absent = isinstance(error, ModuleNotFoundError) and error.name == "systemd"
        what = "is not installed" if absent else f"is of no use ({error})"
        raise OSError(f"the Python package systemd {what}") from error
    if not made.carries:
        files = made.has_files()
        made.close()
        nothing = "the journal has no message of the kernel of this boot"
        raise OSError(nothing if files else _NO_FILES)
    return made


def _reader(journal: Any) -> Any:
    # No field but the message is of interest, so none is converted: that takes half of the time.
    plain = dict.fromkeys(journal.DEFAULT_CONVERTERS, _as_it_is)
    try:
        reader = journal.Reader(flags=journal.LOCAL_ONLY | journal.SYSTEM, converters=plain)
    except ValueError as error:
        # What the library makes of EINVAL.
        raise OSError(str(error)) from error
    reader.add_match(_TRANSPORT="kernel", SYSLOG_FACILITY="0")
    reader.this_boot()
    return reader


def _identities(paths: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """Which directories these are now, None for each that is not there. A new one can have the inode of one that is
    gone; and one that may be read at last has changed too."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_ctime_ns))
    return found


def _as_it_is(value: Any) -> Any:
    return value
