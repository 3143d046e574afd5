"""The parts of the service, made in the order in which they depend on each other, and their states as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core import health
from sikkerguard.core.reports.outcomes import ReportStats
from sikkerguard.core.state import State
from sikkerguard.service.allowlist_tracker import AllowlistTracker
from sikkerguard.service.announcer import Announcer
from sikkerguard.service.api_endpoint import ApiEndpoint
from sikkerguard.service.count_loop import CountLoop
from sikkerguard.service.disk_thread import DiskThread
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.list_in_force import ListInForce
from sikkerguard.service.list_update import ListUpdate
from sikkerguard.service.local_file import LocalFile
from sikkerguard.service.log_follower import LogFollower
from sikkerguard.service.pull_journal import PullJournal
from sikkerguard.service.pull_loop import PullLoop
from sikkerguard.service.repair_loop import RepairLoop
from sikkerguard.service.report_loop import ReportLoop
from sikkerguard.service.settings import Reload, Settings, SettingsWatch
from sikkerguard.service.state_writer import StateWriter
from sikkerguard.service.supervision import Supervisor, UnexpectedErrors
from sikkerguard.service.trial import Trial
from sikkerguard.service.update_runner import UpdateRunner
from sikkerguard.service.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.config.settings import Config
    from sikkerguard.service.adapters import Adapters
    from sikkerguard.service.listeners import Listeners
    from sikkerguard.service.settings import SettingsReader
    from sikkerguard.service.supervision import Loop


class Composition:
    """Every part is given what it needs, and nothing that was made after it. Two values flow down, the configuration,
    which `settings` writes, and the allowlist, which `tracker` writes. `changes` is set when any part's state
    changed."""

    def __init__(self, config: Config, adapters: Adapters, reader: SettingsReader) -> None:
        clock = self._clock = adapters.clock
        self._adapters = adapters
        self._started_at = clock.wall()
        self._dry_run = config.dry_run
        self.listeners: Listeners | None = None
        self.changes = changes = Wakeup()
        self.unexpected = unexpected = UnexpectedErrors()
        self.supervisor = Supervisor(unexpected, clock, changes)
        self.kernel = kernel = KernelThread(adapters.backend)
        self.disk = disk = StateWriter(adapters.store, config.state_dir, clock, changes, writes=not config.dry_run)
        self.settings = Settings(config, reader, adapters, disk, changes)
        watched = self.settings.config
        self.lists = lists = ListInForce()
        self.tracker = tracker = AllowlistTracker(adapters.observer, kernel, watched, lists, disk, unexpected, changes)
        self.repairs = RepairLoop(kernel, tracker, clock, unexpected, changes)
        watched.wake(self.repairs.host_changed)  # another whitelist is followed at once
        self.endpoint = ApiEndpoint(adapters, tracker, disk, clock)
        self.records = DiskThread("records")
        healed = Wakeup()
        self.counting = CountLoop(kernel, adapters.records, self.records, watched, clock, healed, changes)
        self._trial = Trial(kernel, adapters.connections, self.counting, changes)
        journal = PullJournal(disk)
        self.runner = UpdateRunner(
            adapters,
            ListUpdate(self._trial, adapters.connections, clock),
            self.endpoint,
            tracker,
            journal,
            disk,
            lists,
            watched,
            clock,
            changes,
        )
        wakeup = Wakeup()
        self.local_file = LocalFile(adapters, self.runner, journal, lists, watched, clock, unexpected, wakeup)
        self.pulls = PullLoop(
            self.runner,
            self.local_file,
            journal,
            lists,
            tracker.allowed,
            wakeup,
            clock,
            unexpected,
            changes,
        )
        self._reports: ReportLoop | None = None
        if adapters.outbox is not None:
            self._reports = ReportLoop(
                adapters.outbox,
                adapters,
                watched,
                tracker.allowed,
                lists,
                self.endpoint,
                self.records,
                clock,
                healed,
                changes,
            )
        self._logs = LogFollower(adapters, self.counting, watched, clock, changes)
        self.announcer = Announcer(adapters.manager, clock, changes, self)
        self.reload = Reload(self.settings, self.pulls, self.announcer, unexpected)
        self._settings_watch = SettingsWatch(self.reload)

    def loops(self) -> tuple[Loop, ...]:
        """What runs from the moment in which the chain stands."""
        always: tuple[Loop, ...] = (self.pulls, self.local_file, self.repairs, self.counting, self._settings_watch)
        reports = () if self._reports is None else (self._reports,)
        # A dry run logs nothing in the kernel, and keeps nothing on disk.
        only_when_blocking = () if self._dry_run else (self.disk, self._logs)
        return (*always, *reports, *only_when_blocking)

    @property
    def state(self) -> State:
        """All that is known now."""
        return State(
            started_at=self._started_at,
            dry_run=self._dry_run,
            lists=self.runner.state,
            pull=self.pulls.state,
            repair=self.repairs.state,
            allowlist=self.tracker.state,
            traffic=self.counting.state.stats,
            reports=ReportStats() if self._reports is None else self._reports.state,
            log=self._logs.state,
            on_trial=self._trial.running,
            troubles=tuple(sorted((name, sentence) for name, sentence in self._troubles().items() if sentence)),
        )

    def failures(self) -> tuple[str, ...]:
        """Why it can't be said that the list blocks; empty where it does."""
        return health.failures(self.state, self._clock.monotonic())

    def status(self) -> Mapping[str, object]:
        """What `/status` shows."""
        state, now, config = self.state, self._clock.wall(), self.settings.config.value
        reasons = health.reasons(state, now, self._clock.monotonic(), config.pull_interval)
        return health.status(state, now, reasons, config.port_map)

    def _troubles(self) -> dict[str, str]:
        # Without their number, which grows: each sentence is a line of that log.
        lost = "Nobody reads the log: lines of it are lost." if self._adapters.lost_log_lines() else ""
        return {
            "settings": self.settings.trouble,
            "disk": self.disk.trouble,
            "records": self.counting.state.trouble,
            "log": lost,
            **self.supervisor.troubles,
            **({} if self.listeners is None else self.listeners.troubles),
        }
