"""Look-ups of host names by the host's own resolver, with a deadline.

The C library has none: a server that never answers, or a module of nsswitch.conf(5) that hangs, holds the calling
thread for as long as it likes. So a look-up has a thread of its own that nobody waits for at the end of the process,
and no second look-up of a name begins while the first one hangs.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from sikkerguard.edges.sikkerapi.failures import log_unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# With the usual settings (resolv.conf(5): five seconds for each server) enough where two servers are dead. An answer
# that comes later is used by the next call.
MAX_SECONDS = 10.0

_under_way: dict[tuple[Callable[[str], Iterable[str]], str], Future[tuple[str, ...]]] = {}


def look_up(host: str) -> Iterable[str]:
    """The addresses of a name, without zones, from the host's own resolver. Blocks for as long as that does.

    Raises:
        OSError, UnicodeError: the name has no address, or can't be a name.
    """
    for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        yield str(entry[4][0]).partition("%")[0]


async def resolve(
    host: str, seconds: float = MAX_SECONDS, look_up: Callable[[str], Iterable[str]] = look_up
) -> tuple[str, ...]:
    """The addresses of a name, each once; empty where it has none, or none is known when so many seconds are over. To
    be called by one event loop at a time."""
    key = look_up, host
    lookup = _under_way.get(key)
    late: tuple[str, ...] = ()
    if lookup is not None and lookup.done():
        # This answer came when nobody waited any more. It is used if the new one comes too late as well.
        late, lookup = lookup.result(), None
    if lookup is None:
        lookup = Future()
        try:
            threading.Thread(target=_look, args=(lookup, look_up, host), name="look-up", daemon=True).start()
        except RuntimeError as error:  # there can be no more threads at the moment
            log_unexpected(error)
            return late
        _under_way[key] = lookup
    await _answered(lookup, seconds)
    if not lookup.done():
        return late
    if _under_way.get(key) is lookup:
        del _under_way[key]
    return lookup.result()


async def _answered(lookup: Future[tuple[str, ...]], seconds: float) -> None:
    """Wait for the answer for so many seconds at most."""
    loop = asyncio.get_running_loop()
    answered = asyncio.Event()

    def wake(_: Future[tuple[str, ...]]) -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile, and nobody waits
            loop.call_soon_threadsafe(answered.set)

    lookup.add_done_callback(wake)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await answered.wait()


def _look(lookup: Future[tuple[str, ...]], look_up: Callable[[str], Iterable[str]], host: str) -> None:
    found: tuple[str, ...] = ()
    try:
        found = tuple(dict.fromkeys(look_up(host)))
    except (OSError, UnicodeError):
        pass  # a UnicodeError is raised for a name with an empty or overlong label
    except Exception as error:  # noqa: BLE001 - it is logged; nobody must wait for ever
        log_unexpected(error)
    lookup.set_result(found)
