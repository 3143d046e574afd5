"""Other programs that list our sets, as `ipset list SET | less` does for as long as the pager is left open."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scripts.laboratory.network import Laboratory


@contextlib.contextmanager
def pager(lab: Laboratory, *names: str) -> Iterator[None]:
    """`ipset list` of each of these sets, whose output nobody reads: it stands still in the middle of the set, which
    must be larger than what a pipe and a socket take."""
    with contextlib.ExitStack() as stack:
        for name in names:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            listing = lab.host.start(("ipset", "list", name), os.environ, stdout=writing)
            os.close(writing)
            stack.callback(_end, listing)
            wait_for("a full pipe", partial(_sleeps_in_write, listing.pid))
        yield


@contextlib.contextmanager
def in_a_loop(lab: Laboratory, words: Sequence[str], pause: float = 0.0) -> Iterator[list[int]]:
    """Run this again and again, from entering until leaving; gives a list with one entry for each time."""
    stopped = threading.Event()
    times: list[int] = []

    def run() -> None:
        while not stopped.wait(pause):
            listing = lab.host.start(words, os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            times.append(listing.wait(60))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield times
    finally:
        stopped.set()
        thread.join()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


def _sleeps_in_write(pid: int) -> bool:
    # write(2) is 1 on x86-64 and 64 elsewhere (asm/unistd.h).
    call = "64" if os.uname().machine == "aarch64" else "1"
    return Path(f"/proc/{pid}/syscall").read_text("ascii").split()[0] == call
