"""Sentences for whatever a request to SikkerAPI ends with instead of an answer: one line, printable, bounded.

Whatever a library raises ends the request and nothing else. An error that nobody has thought of is logged with its
traceback, once for each place that it comes from: it would be the same at each try.
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
EXPECTED = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
# These come without a text.
_DESCRIPTIONS: dict[type[Exception], str] = {
    httpx.ReadError: "the connection was closed",
    httpx.WriteError: "the connection was closed",
    httpx.ConnectTimeout: "no connection",
    httpx.ReadTimeout: "nothing came",
    httpx.WriteTimeout: "nothing was taken",
}

_Result = TypeVar("_Result")
_logged = set[tuple[type[Exception], str, int | None]]()


class CancelledByLibraryError(OSError):
    """A library cancelled the task that it ran in, though nobody wanted that."""


async def within(seconds: float, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run this coroutine for so many seconds at most, and return its result.

    It gets a task of its own: anyio before 3.7 cancels the task in which it connects, and does not take that back, so
    that a `timeout` around it, and with Python 3.11.2 each later one in that task, would let its own cancellation out
    instead of a `TimeoutError`, as if the service was stopped (findings/anyio-leaves-cancellation.sh).

    Raises:
        TimeoutError: it took longer, and was cancelled.
        CancelledByLibraryError: it was cancelled though nobody cancelled the caller.
    """
    task = asyncio.create_task(work)
    try:
        # Not `wait_for`: Python 3.11 loses a cancellation of the caller there that comes when the task has just ended.
        async with asyncio.timeout(seconds):
            await asyncio.wait({task})
    finally:
        task.cancel()
        await asyncio.wait({task})
    if task.cancelled():
        raise CancelledByLibraryError("it was cancelled from within")
    return task.result()


def sentence(error: Exception) -> str:
    """A sentence for the error that a request ended with. An unexpected one is logged with its traceback, once."""
    if isinstance(error, httpx.TimeoutException):
        return f"SikkerAPI did not answer in time ({reason(error)})"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"SikkerAPI's answer broke off or is not HTTP ({reason(error)})"
    if isinstance(error, httpx.TransportError | OSError):
        return f"SikkerAPI can't be reached ({reason(error)})"
    if isinstance(error, EXPECTED):
        return f"SikkerAPI's answer can't be understood ({reason(error)})"
    log_unexpected(error)
    return f"SikkerAPI's answer was not understood ({type(error).__name__}: {reason(error)})"


def reason(error: Exception) -> str:
    """The error's own text, which may come from a server, made printable."""
    return printable(str(error)) or _DESCRIPTIONS.get(type(error), type(error).__name__)


def log_unexpected(error: Exception) -> None:
    """Log an error that nobody has thought of with its traceback, unless this kind was logged for this place before."""
    frames = traceback.extract_tb(error.__traceback__)
    place = (type(error), frames[-1].filename, frames[-1].lineno) if frames else (type(error), "", None)
    if place in _logged:
        return
    _logged.add(place)
    log.error(
        "A request ended with an error that was not expected; blocking goes on, and it is tried again. Please report "
        "this:",
        exc_info=error,
    )
