"""Keeping loops alive: what nobody thought of is logged once, with its trace, and the loop begins anew after a
pause."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core.text import printable
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sikkerguard.core.interfaces import Clock, Signal

log = logging.getLogger(__name__)

# The pause before a loop begins anew, doubled each time, and the longest one; in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 600.0
# A loop that has run for so many seconds works again.
_SETTLED_SECONDS = 60.0


class Loop(Protocol):
    """A part of the service that runs until it is cancelled. `work` says what it does, as in "reporting"."""

    work: str

    async def run(self) -> None:
        """Run until cancelled."""


class UnexpectedErrors:
    """Logs what nobody thought of, each kind of it once with its trace: where it comes again and again, a log would be
    full of it."""

    def __init__(self) -> None:
        self._logged = set[str]()

    def sentence(self, error: BaseException) -> str:
        """What happened, for an operator; the trace goes to the log the first time."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        what = printable(f"{type(error).__name__}: {error}".removesuffix(": "))
        if what not in self._logged:
            self._logged.add(what)
            log.error("This should not have happened; please report it with these lines.", exc_info=error)
        return f"an error that nobody expected ({what})"

    @contextmanager
    def as_kind(self, kind: type[SikkerGuardError], no_memory: SikkerGuardError) -> Iterator[None]:
        """Have whatever is raised, and is no error of ours, raised as one of this kind, and want of memory as
        `no_memory`."""
        try:
            yield
        except SikkerGuardError:
            raise
        except MemoryError as error:
            raise no_memory from error
        except Exception as error:
            raise kind(self.sentence(error)) from error

    @contextmanager
    def survived(self, consequence: str = "") -> Iterator[None]:
        """Go on after this whatever it raises that is no error of ours. `consequence` is logged with what happened: a
        sentence with `%s` in that place."""
        try:
            yield
        except SikkerGuardError:
            raise
        except Exception as error:  # noqa: BLE001 - it is logged, with its trace, and what comes after is to be done
            what = self.sentence(error)
            if consequence:
                log.error(consequence, what)


class Supervisor:
    """Runs loops. `troubles` has a sentence for each loop, by its work, that is stopped at the moment."""

    def __init__(self, unexpected: UnexpectedErrors, clock: Clock, changes: Signal) -> None:
        self._unexpected = unexpected
        self._clock = clock
        self._changes = changes
        self.troubles: dict[str, str] = {}

    async def keep(self, loop: Loop) -> None:
        """Run this loop until cancelled; where it raises, or ends, begin it anew."""
        failures = 0
        while True:
            task = asyncio.create_task(loop.run())
            try:
                done, _ = await asyncio.wait({task}, timeout=_SETTLED_SECONDS)
                if not done:
                    failures = 0
                    if self.troubles.pop(loop.work, ""):
                        self._changes.set()
                    await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.wait({task})
            failures += 1
            error = None if task.cancelled() else task.exception()
            what = self._unexpected.sentence(error or RuntimeError("it ended by itself"))
            self.troubles[loop.work] = (
                f"{loop.work.capitalize()} was stopped by {what}; what is blocked stays blocked; it begins anew."
            )
            self._changes.set()
            pause = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 30), _LONGEST_PAUSE)
            await asyncio.sleep(pause * (0.75 + 0.5 * self._clock.random()))
