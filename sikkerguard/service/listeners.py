"""Where the service can be asked: kept open as long as it runs, and never a reason for it to end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sikkerguard.core.text import printable
from sikkerguard.errors import ListenError
from sikkerguard.service.said import Said
from sikkerguard.service.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sikkerguard.core.interfaces import Server, Signal

log = logging.getLogger(__name__)

_RETRY_SECONDS = 30.0


class Listeners:
    """Opens servers, and looks every thirty seconds, or when told to, whether they are open still. `troubles` has a
    sentence for each one that is not open, by its name; of the `optional` ones a warning in the log is enough."""

    def __init__(self, servers: Sequence[Server], changes: Signal, optional: Collection[str] = ()) -> None:
        self._servers = servers
        self._changes = changes
        self._optional = optional
        self._said = {server.name: Said(log) for server in servers}
        self._wakeups = [Wakeup() for _ in servers]
        self._tasks: list[asyncio.Task[None]] = []
        self.troubles: dict[str, str] = {}

    def try_now(self) -> None:
        """Try again at once what could not be opened."""
        for wakeup in self._wakeups:
            wakeup.set()

    def start(self) -> None:
        """Begin to listen; whatever becomes of that, nothing waits for it."""
        for server, wakeup in zip(self._servers, self._wakeups, strict=True):
            task = asyncio.create_task(self._keep_open(server, wakeup))
            task.add_done_callback(_ended)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers))

    async def _keep_open(self, server: Server, wakeup: Wakeup) -> None:
        while True:
            await self._open(server)
            await wakeup.wait(_RETRY_SECONDS)

    async def _open(self, server: Server) -> None:
        said, sentence = self._said[server.name], ""
        try:
            await server.open()
        except ListenError as error:
            sentence = f"{error}."
        except Exception as error:
            sentence = printable(f"Nobody listens ({server.name}: {type(error).__name__}: {error}); it is tried again.")
            if said.sentence != sentence:
                log.exception("This should not have happened; please report it with these lines.")
        if server.name in self._optional:
            said.say(sentence, logging.WARNING)
        elif said.say(sentence, logging.DEBUG):
            self.troubles.pop(server.name, None)
            if sentence:
                self.troubles[server.name] = sentence
            self._changes.set()


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("Nobody looks after the page and the control socket any more.", exc_info=error)
