"""Keeping loops alive: what nobody thought of is told once, with its trace, and the loop begins anew after a pause."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sikkerguard.core.text import printable
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

log = logging.getLogger(__name__)

# The pause before a loop begins anew, doubled each time, and the longest one; in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 600.0
# A loop that has run for so long works again.
_SETTLED = 60.0


class Unknown:
    """Says what nobody thought of, each kind of it once with its trace: where it comes again and again, a log would be
    full of it."""

    def __init__(self) -> None:
        self._told = set[str]()

    def sentence(self, error: BaseException) -> str:
        """What happened, for an operator; the trace goes to the log the first time."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        what = printable(f"{type(error).__name__}: {error}".removesuffix(": "))
        if what not in self._told:
            self._told.add(what)
            log.error("This should not have happened; please report it with these lines.", exc_info=error)
        return f"an error that nobody expected ({what})"

    @contextmanager
    def told_as(self, kind: type[SikkerGuardError]) -> Iterator[None]:
        """Have whatever is raised, and is neither an error of ours nor want of memory, raised as one of this kind."""
        try:
            yield
        except (SikkerGuardError, MemoryError):
            raise
        except Exception as error:
            raise kind(self.sentence(error)) from error

    @contextmanager
    def survived(self, tell: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
        """Go on behind this whatever it raises that is no error of ours; `tell` gets what happened, in words."""
        try:
            yield
        except SikkerGuardError:
            raise
        except Exception as error:  # noqa: BLE001 - it is told, with its trace, and what comes behind is to be done
            tell(self.sentence(error))


class Supervisor:
    """Runs loops that never end by themselves. `tell` gets a loop's name and a sentence on what is the matter with it,
    an empty one when it works again. `chance` gives numbers from 0 to 1."""

    def __init__(
        self,
        tell: Callable[[str, str], None],
        unknown: Unknown,
        *,
        pauses: tuple[float, float] = (_FIRST_PAUSE, _LONGEST_PAUSE),
        settled: float = _SETTLED,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._tell = tell
        self._unknown = unknown
        self._pauses = pauses
        self._settled = settled
        self._chance = chance

    async def keep(self, name: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what `begin` gives until cancelled; where it raises, or ends, begin it anew. `name` says in words what
        it does, as in "following the list file"."""
        failures = 0
        while True:
            task = asyncio.create_task(begin())
            try:
                done, _ = await asyncio.wait({task}, timeout=self._settled)
                if not done:
                    failures = 0
                    self._tell(name, "")
                    await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.wait({task})
            failures += 1
            pause = self._pause(failures)
            error = None if task.cancelled() else task.exception()
            what = self._unknown.sentence(error or RuntimeError("it ended by itself"))
            self._tell(
                name, f"{name.capitalize()} was stopped by {what}; what is blocked stays blocked; it begins anew."
            )
            await asyncio.sleep(pause)

    def _pause(self, failures: int) -> float:
        first, longest = self._pauses
        return min(first * 2.0 ** min(failures - 1, 30), longest) * (0.75 + 0.5 * self._chance())
