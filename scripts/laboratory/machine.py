"""What all laboratories of one machine share: a cache, locks, and the switch for LOG lines of other namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whether LOG lines of other namespaces than the machine's own reach the kernel's log, and our note of how it was.
_SWITCH = Path("/proc/sys/net/netfilter/nf_log_all_netns")
_NOTE, _NOTE_LOCK = "log-switch", "log-switch.lock"


def cache() -> Path:
    """The directory, outside any checkout, where what takes long to make is kept from one run to the next."""
    found = Path(os.environ.get("SIKKERGUARD_TESTS_CACHE") or "/var/cache/sikkerguard-tests")
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextlib.contextmanager
def locked(path: Path, seconds: float = 10.0) -> Iterator[None]:
    """Be the only one on this machine who is in here with this file."""
    with path.open("a") as handle:
        wait_for(f"the lock {path}", lambda: _flock(handle.fileno(), fcntl.LOCK_EX), seconds)
        yield


@contextlib.contextmanager
def log_of_all_namespaces() -> Iterator[None]:
    """Have the LOG lines of every namespace reach the kernel's log.

    That is one switch for the whole machine: the first who needs it notes how it was, and the last one sets it back.
    """
    with (cache() / _NOTE).open("a+") as note:
        with locked(cache() / _NOTE_LOCK):
            fcntl.flock(note, fcntl.LOCK_SH)
            # A note of a run that was killed is still right: the switch has not been set back since.
            if not _noted():
                note.write(_SWITCH.read_text())
                note.flush()
            _SWITCH.write_text("1")
        try:
            yield
        finally:
            with locked(cache() / _NOTE_LOCK):
                if _flock(note.fileno(), fcntl.LOCK_EX):
                    _SWITCH.write_text(_noted())
                    note.truncate(0)


def how_the_log_was() -> str:
    """How that switch stands when no test is under way that needs it."""
    with locked(cache() / _NOTE_LOCK):
        return _noted() or _SWITCH.read_text()


def _noted() -> str:
    note = cache() / _NOTE
    return note.read_text() if note.exists() else ""


def _flock(handle: int, kind: int) -> bool:
    """Whether the lock could be had without waiting."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
