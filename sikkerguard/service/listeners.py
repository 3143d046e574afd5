"""Where the service can be asked: kept open as long as it runs, and never a reason for it to end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from sikkerguard.core.text import printable
from sikkerguard.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sikkerguard.core.interfaces import Listener

log = logging.getLogger(__name__)

_RETRY_SECONDS = 30.0


class Listening:
    """Opens the listeners, and looks every thirty seconds, or when told to, whether they are open still. `trouble` gets
    a listener's name with the sentence that says why it is not open, or with nothing where it is. Of the `optional`
    ones a warning is enough."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        trouble: Callable[[str, str], None],
        optional: Collection[str] = (),
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._listeners = listeners
        self._trouble = trouble
        self._optional = optional
        self._retry_seconds = retry_seconds
        self._said: dict[str, str] = {}
        self._wanted = [asyncio.Event() for _ in listeners]
        self._tasks: list[asyncio.Task[None]] = []

    def try_now(self) -> None:
        """Try again at once what could not be opened."""
        for wanted in self._wanted:
            wanted.set()

    async def start(self) -> None:
        """Begin to listen; whatever becomes of that, nothing waits for it."""
        for listener, wanted in zip(self._listeners, self._wanted, strict=True):
            task = asyncio.create_task(self._keep_open(listener, wanted))
            task.add_done_callback(_ended)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(listener.close() for listener in self._listeners))

    async def _keep_open(self, listener: Listener, wanted: asyncio.Event) -> None:
        while True:
            wanted.clear()
            await self._open(listener)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._retry_seconds):
                    await wanted.wait()

    async def _open(self, listener: Listener) -> None:
        try:
            await listener.open()
        except ListenError as error:
            sentence = f"{error}."
        except Exception as error:
            sentence = printable(
                f"Nobody listens ({listener.name}: {type(error).__name__}: {error}); it is tried again."
            )
            if self._said.get(listener.name) != sentence:
                log.exception("This should not have happened; please report it with these lines.")
        else:
            sentence = ""
        if listener.name not in self._optional:
            self._trouble(listener.name, sentence)
        elif sentence and self._said.get(listener.name) != sentence:
            log.warning("%s", sentence)
        self._said[listener.name] = sentence


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("Nobody looks after the page and the control socket any more.", exc_info=error)
