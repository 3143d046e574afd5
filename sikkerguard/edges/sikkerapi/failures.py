"""What a request to SikkerAPI may end with, an answer aside, in words: on one line, printable, and with an end.

Whatever a library raises ends the request and nothing else. What nobody has thought of is told with a traceback, once
for each place that it comes from: it would be the same with each try.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from sikkerguard.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = logging.getLogger(__name__)

# `ValueError`: what can't be read. A `UnicodeError` is one, for names that can't be names, and h11 0.14 raises one
# for a length of some thousand digits.
FORESEEN = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
# These come without a text of their own.
_WITHOUT_WORDS: dict[type[Exception], str] = {
    httpx.ReadError: "the connection was closed",
    httpx.WriteError: "the connection was closed",
    httpx.ConnectTimeout: "no connection",
    httpx.ReadTimeout: "nothing came",
    httpx.WriteTimeout: "nothing was taken",
}

_Result = TypeVar("_Result")
_told = set[tuple[type[Exception], str, int | None]]()


class CancelledByLibraryError(OSError):
    """A library cancelled the task that it ran in, which nobody had asked for."""


async def within(seconds: float, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Have this work done, or raise `TimeoutError`; `CancelledByLibraryError` where it was cancelled and we were not.

    In a task of its own: anyio before 4 cancels the task in which it connects, and does not take that back, so that a
    `timeout` around it would let its own cancellation out instead of a `TimeoutError`, as if the service was stopped.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.wait_for(task, seconds)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is None or current.cancelling() or not task.cancelled():
            raise
    raise CancelledByLibraryError("it was cancelled from within")


def sentence(error: Exception) -> str:
    """A sentence for whatever a request ended with; what is no usual failure is logged with its traceback, once."""
    if isinstance(error, httpx.TimeoutException):
        return f"SikkerAPI did not answer in time ({reason(error)})"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"SikkerAPI's answer broke off or is not HTTP ({reason(error)})"
    if isinstance(error, httpx.TransportError | OSError):
        return f"SikkerAPI can't be reached ({reason(error)})"
    if isinstance(error, FORESEEN):
        return f"SikkerAPI's answer can't be understood ({reason(error)})"
    tell(error)
    return f"SikkerAPI's answer was not understood ({type(error).__name__}: {reason(error)})"


def reason(error: Exception) -> str:
    """What the error says, which may be a server's words, fit to be shown."""
    return printable(str(error)) or _WITHOUT_WORDS.get(type(error), type(error).__name__)


def tell(error: Exception) -> None:
    """Log an error that nobody has thought of with its traceback, unless this kind of it was met at this place."""
    frames = traceback.extract_tb(error.__traceback__)
    place = (type(error), frames[-1].filename, frames[-1].lineno) if frames else (type(error), "", None)
    if place in _told:
        return
    _told.add(place)
    log.error(
        "A request ended with an error that is not foreseen; blocking goes on, and it is tried again. Please report "
        "this:",
        exc_info=error,
    )
