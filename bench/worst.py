"""What the worst lists cost: memory and processor time of the process that receives, reads and loads them.

Run as root: `.venv/bin/python -m bench.worst [KIND...]`, all kinds by default, each in a process and a network
namespace of its own. A server on loopback, a process too, sends the body; it goes through the client of SikkerAPI, the
reader, the guards, the kernel and the list on disk, and then once more with other entries, so that the old list and the
new one are there at the same time. Self-tests pass at once.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.pull import updates
from sikkerguard.core.lists.parse import MOST_ENTRIES, MOST_OTHER_LINES, MOST_RANGES, MOST_REJECTED, MOST_V6
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.size_guard import Limits
from sikkerguard.core.sikkerapi.body import LARGEST_BODY
from sikkerguard.edges.host.connections import Connections
from sikkerguard.edges.list_file import LocalListFile
from sikkerguard.edges.sikkerapi.blacklist import Blacklist
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import SikkerGuardError
from sikkerguard.service.disk_thread import DiskThread
from sikkerguard.service.feed_reader import read_forgivingly, read_strictly
from sikkerguard.service.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sikkerguard.service.list_in_force import InForce

_PORT = 8000
_PULLS = 2
_ALL = 1 << 40  # as many as go into the largest body
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"


def _v4(number: int) -> str:
    """The address of that number, counted from 11.0.0.0 and back there behind 99.255.255.255."""
    return socket.inet_ntoa(((11 << 24) + number % (89 << 24)).to_bytes(4, "big"))


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Different numbers below 2^30, in no order; those of two seeds are other ones for the most part."""
    # An odd factor and a power of two: no number comes twice before all have come.
    return ((each * 0x9E3779B1 + seed * 0x3C6EF372) % (1 << 30) for each in range(min(count, 1 << 30)))


def singles(count: int, seed: int) -> Iterator[str]:
    """Addresses of IPv4 in no order."""
    return map(_v4, _shuffled(count, seed))


def narrow(count: int, seed: int) -> Iterator[str]:
    """Neighbours, all within a range of their own, from the last to the first."""
    return (_v4((seed << 22) + each) for each in range(min(count, 1 << 22), 0, -1))


def slow(count: int, seed: int) -> Iterator[str]:
    """Addresses that have to be read one by one."""
    return (f" {address}\t#" for address in singles(count, seed))


def v6(count: int, seed: int) -> Iterator[str]:
    """Addresses of IPv6, no two with the same beginning."""
    return (f"2{each >> 20:03x}:{each >> 4 & 0xFFFF:x}:{each & 15:x}::2" for each in _shuffled(count, seed))


def ranges(count: int, seed: int) -> Iterator[str]:
    """The smallest ranges, no two of which can be joined."""
    return (f"{_v4(each << 2)}/31" for each in _shuffled(count, seed))


def nested(count: int, seed: int) -> Iterator[str]:
    """Ranges that overlap, each of 16 different sizes."""
    return (f"{_v4(each << 2)}/{16 + each % 16}" for each in _shuffled(count, seed))


def v6_ranges(count: int, seed: int) -> Iterator[str]:
    """The smallest ranges of IPv6."""
    return (f"{address}/127" for address in v6(count, seed))


def same(count: int, seed: int) -> Iterator[str]:
    """One address again and again."""
    return itertools.repeat(_v4(seed), min(count, LARGEST_BODY))


def line(text: str) -> Callable[[int, int], Iterator[str]]:
    """This text again and again."""
    return lambda count, seed: itertools.repeat(text, min(count, LARGEST_BODY))


def at_all_ceilings(seed: int, share: int = 1) -> Iterator[str]:
    """As much of everything as a list may have, or that divided."""
    # Two addresses of IPv4 in five are read one by one.
    left = MOST_ENTRIES - MOST_V6 - MOST_RANGES
    for part, count in (
        (slow, left * 2 // 5),
        (v6, MOST_V6),
        (ranges, MOST_RANGES // 2),
        (v6_ranges, MOST_RANGES - MOST_RANGES // 2),
        (line("unreadable"), min(MOST_REJECTED, MOST_ENTRIES // 100)),
        (line("#"), MOST_OTHER_LINES - MOST_REJECTED),
    ):
        yield from part(count // share, seed)
    yield from itertools.islice(singles(MOST_ENTRIES, seed), left * 2 // 5 // share, left // share)


# What each kind of list has in it, by seed.
LISTS: dict[str, Callable[[int], Iterable[str]]] = {
    "100,000 addresses": lambda seed: singles(100_000, seed),
    "IPv4": lambda seed: singles(MOST_ENTRIES, seed),
    "IPv4, without end": lambda seed: singles(_ALL, seed),
    "IPv4, side by side": lambda seed: narrow(MOST_ENTRIES, seed),
    "IPv4, with blanks and comments": lambda seed: slow(MOST_ENTRIES, seed),
    "IPv6": lambda seed: v6(MOST_V6, seed),
    "IPv6, without end": lambda seed: v6(_ALL, seed),
    "ranges": lambda seed: ranges(MOST_RANGES, seed),
    "ranges, without end": lambda seed: ranges(_ALL, seed),
    "ranges, nested": lambda seed: nested(MOST_RANGES, seed),
    "ranges of IPv6": lambda seed: v6_ranges(MOST_RANGES, seed),
    "ranges of IPv6, without end": lambda seed: v6_ranges(_ALL, seed),
    "the same address": lambda seed: same(MOST_ENTRIES, seed),
    "the same address, without end": lambda seed: same(_ALL, seed),
    "at all ceilings": at_all_ceilings,
    "blank lines": lambda seed: line("")(_ALL, seed),
    "comments": lambda seed: line("#")(_ALL, seed),
    "long comments": lambda seed: line("#" * 1023)(_ALL, seed),
    "unreadable lines": lambda seed: line("x")(_ALL, seed),
    "unreadable ranges": lambda seed: line("1.1.1.1/0")(_ALL, seed),
}


def joined(lines: Iterable[str]) -> Iterator[bytes]:
    """The body, in pieces of some kilobytes, cut off at the largest size."""
    left = LARGEST_BODY
    rest = iter(lines)
    while left and (some := list(itertools.islice(rest, 4096))):
        piece = ("\n".join(some) + "\n").encode()[:left]
        left -= len(piece)
        yield piece


def packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """As gzip."""
    packer = zlib.compressobj(6, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def plain(lines: Callable[[int], Iterable[str]], seed: int) -> Iterator[bytes]:
    """An answer as it goes over the wire, which ends with the connection."""
    return itertools.chain([_HEAD + b"\r\n"], joined(lines(seed)))


def gzipped(lines: Callable[[int], Iterable[str]], seed: int) -> Iterator[bytes]:
    """The same, packed."""
    return itertools.chain([_HEAD + b"Content-Encoding: gzip\r\n\r\n"], packed(joined(lines(seed))))


def members(seed: int) -> Iterator[bytes]:
    """Nothing, packed again and again."""
    nothing = b"".join(packed([b""]))
    number = LARGEST_BODY // len(nothing) // 4096
    return itertools.chain(
        [_HEAD + b"Content-Encoding: gzip\r\n\r\n"], packed([b"1.1.1.1\n"]), itertools.repeat(nothing * 4096, number)
    )


def chopped(size: int, seed: int) -> Iterator[bytes]:
    """Addresses in chunks of that many bytes (RFC 9112, section 7.1)."""
    yield _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for piece in joined(singles(_ALL, seed)):
        yield b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in _parts(piece, size))
    yield b"0\r\n\r\n"


def _parts(piece: bytes, size: int) -> Iterator[bytes]:
    return (piece[at : at + size] for at in range(0, len(piece), size))


# Those that are sent packed too: the largest that is taken, and bombs.
_PACKED = ("at all ceilings", "the same address, without end", "ranges, without end", "blank lines", "long comments")

ANSWERS: dict[str, Callable[[int], Iterable[bytes]]] = {
    **{name: partial(plain, lines) for name, lines in LISTS.items()},
    **{f"{name}, packed": partial(gzipped, LISTS[name]) for name in _PACKED},
    "nothing in many packed parts": members,
    "pieces of 1 byte": partial(chopped, 1),
    "pieces of 16 bytes": partial(chopped, 16),
    "pieces of 72 bytes": partial(chopped, 72),
}
# Half of it comes from SikkerAPI and the other half from a file; or all of it from the file.
FILES: dict[str, tuple[str, Callable[[int], Iterable[str]]]] = {
    "half of all ceilings, and a file of as much": ("half", lambda seed: at_all_ceilings(seed + _PULLS, 2)),
    **{f"{name}, in a file": ("100,000 addresses", lines) for name, lines in LISTS.items()},
}
ANSWERS["half"] = partial(plain, partial(at_all_ceilings, share=2))


def serve(kind: str) -> None:
    """Answer each request with a list of that kind."""
    with socket.create_server(("127.0.0.1", _PORT)) as server:
        print("listening", flush=True)
        for seed in range(_PULLS):
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                try:
                    for piece in ANSWERS[kind](seed):
                        connection.sendall(piece)
                except OSError:
                    continue  # the client has had enough


class Meter:
    """Processor seconds and memory since it was made."""

    def __init__(self) -> None:
        self._spent = self._processor()
        self._started = time.monotonic()

    def __str__(self) -> str:
        spent = self._processor() - self._spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        return f"{spent:5.1f} s of processor time, {time.monotonic() - self._started:5.1f} s, peak {peak:4} MiB"

    @staticmethod
    def _processor() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime


async def pull(kind: str, directory: Path) -> None:
    """Pull as often as is measured, and print what it cost."""
    custom = directory / "custom" if kind in FILES else None
    store = Store(directory)
    changed = Wakeup()
    in_force: InForce | None = None
    memory = PullMemory()
    async with updates(Connections(), Limits(max_growth=1000, max_coverage=1)) as (update, conditions):
        for seed in range(_PULLS):
            if custom is not None:
                with custom.open("wb") as file:
                    file.writelines(joined(FILES[kind][1](seed)))
            meter = Meter()
            try:
                client = ApiClient(f"http://127.0.0.1:{_PORT}", "key")
                changes = [await read_strictly(Blacklist(client, score_min=50, interval=math.inf), (), changed)]
                if custom is not None:
                    feed = LocalListFile(custom, DiskThread("list file"))
                    changes.append(await read_forgivingly(feed, str(custom)))
                in_force, memory = await update.put_in_force(changes, in_force, memory, conditions)
                del changes
                await asyncio.to_thread(store.save, in_force.verified)
                said = f"{len(in_force.admitted.blocklist):,} entries in force"
            except SikkerGuardError as error:
                said = f"refused: {str(error)[:110]}"
            print(f"  {meter}; {said}", flush=True)


def inside(kind: str) -> None:
    """One kind, in a namespace with nothing but a loopback."""
    logging.disable(logging.WARNING)
    # All that a service has read by the time it pulls: the imports are made for what they load, and are not used here.
    import iptc  # noqa: F401
    import pyroute2  # noqa: F401

    import sikkerguard.cli.wiring  # noqa: F401

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    gc.collect()
    print(f"{kind} (at rest: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB)", flush=True)
    sent = FILES[kind][0] if kind in FILES else kind
    words = [sys.executable, "-m", "bench.worst", "--serve", sent]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server, tempfile.TemporaryDirectory() as directory:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            asyncio.run(pull(kind, Path(directory)))
        finally:
            server.terminate()


def main() -> int:
    """Measure the kinds that are named, or all."""
    match sys.argv[1:]:
        case ["--serve", kind]:
            serve(kind)
        case ["--inside", kind]:
            inside(kind)
        case chosen:
            print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}", flush=True)
            for kind in chosen or [name for name in (*ANSWERS, *FILES) if name != "half"]:
                subprocess.run(["unshare", "-n", sys.executable, "-m", "bench.worst", "--inside", kind], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
