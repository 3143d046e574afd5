"""What the service manager hears: that we are ready, how we are, that we live, that a start makes progress."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from sikkerguard.core import health

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import Clock, ServiceManager
    from sikkerguard.core.state import State
    from sikkerguard.service.wakeup import Wakeup

log = logging.getLogger(__name__)

# A start that makes progress may take so many seconds more; said again this often.
_EXTEND_SECONDS, _EXTEND_AGAIN_SECONDS = 60.0, 1.0
# So long a start waits for its first list, once the chain stands, before it is called ready without one.
_READY_SECONDS = 10.0
# How often the state is looked at though nothing says that it changed, since ages in it grow; and how often its
# sentence is sent at most, since packets are counted each second.
_LOOK_SECONDS, _SENTENCE_SECONDS = 5.0, 2.0
_SHORTEST_SECONDS = 0.01


class StateSource(Protocol):
    """Composes the state of the moment."""

    @property
    def state(self) -> State:
        """All that is known now."""


class Announcer:
    """Pulls the state whenever `changes` is set, and tells what follows from it. READY is sent once, when the chain
    stands and a list blocks or a pull was tried: nothing that waits for us, as a boot does, waits for a server that
    takes its time."""

    work = "telling the service manager"

    def __init__(self, manager: ServiceManager, clock: Clock, changes: Wakeup, source: StateSource) -> None:
        self._manager = manager
        self._clock = clock
        self._changes = changes
        self._source = source
        self._stands_since: float | None = None
        self._is_ready = False
        self._sentence, self._sentence_at = "", float("-inf")
        self._is_late = False
        self._pinged_at: float | None = None
        self._extended_at = float("-inf")
        self._known: tuple[tuple[str, str], ...] = ()

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            progress = await self._changes.wait(self._pause())
            self.announce(progress=progress)

    def announce(self, *, progress: bool = False) -> None:
        """Tell what there is to tell now; `progress` says that something has been done since."""
        state, now = self._source.state, self._clock.monotonic()
        self.log_troubles(state)
        sentence = health.sentence(state, self._clock.wall())
        if not self._is_ready and self._may_be_ready(state, now):
            self._is_ready = True
            self._sentence, self._sentence_at = sentence, now
            self._manager.ready(sentence)
        elif not self._is_ready and progress and now - self._extended_at >= _EXTEND_AGAIN_SECONDS:
            # A start that makes progress is not to be broken off for taking long.
            self._extended_at = now
            self._manager.extend_timeout(_EXTEND_SECONDS)
        self._is_late = sentence != self._sentence and now - self._sentence_at < _SENTENCE_SECONDS
        if sentence != self._sentence and not self._is_late:
            self._sentence, self._sentence_at = sentence, now
            self._manager.status(sentence)
        if state.repair.alive_at != self._pinged_at:
            self._pinged_at = state.repair.alive_at
            self._manager.ping_watchdog()

    def reloading(self) -> None:
        """The settings are being read."""
        if self._is_ready:
            self._manager.reloading()

    def reloaded(self) -> None:
        """The settings were read, whatever became of them."""
        if self._is_ready:
            self._manager.ready(self._sentence)

    def _may_be_ready(self, state: State, now: float) -> bool:
        if state.repair.verified_ok_at is None:
            return False
        if self._stands_since is None:
            self._stands_since = now
        return state.lists.protecting or state.pull.pulls > 0 or now - self._stands_since >= _READY_SECONDS

    def _pause(self) -> float:
        """Seconds until there may be something to tell though nothing changed."""
        times = [self._clock.monotonic() + _LOOK_SECONDS]
        if self._is_late:
            times.append(self._sentence_at + _SENTENCE_SECONDS)
        if self._stands_since is not None and not self._is_ready:
            times.append(self._stands_since + _READY_SECONDS)
        # A little more than nothing: of two times that are the same, rounding may make one the earlier.
        return max(_SHORTEST_SECONDS, min(times) - self._clock.monotonic())

    def log_troubles(self, state: State) -> None:
        """Each trouble is one line of the log for as long as it is the same."""
        for trouble in state.troubles:
            if trouble not in self._known:
                log.error("%s", trouble[1])
        self._known = state.troubles
