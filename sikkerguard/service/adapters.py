"""What the service needs from outside: one object that the command line makes, and that tests change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sikkerguard.service.api_endpoint import Connectors
from sikkerguard.service.local_file import LocalLists
from sikkerguard.service.log_follower import KernelLogs
from sikkerguard.service.report_sender import ReportClients
from sikkerguard.service.settings import FileStamps
from sikkerguard.service.update_runner import PullAdapters

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import (
        Clock,
        Connections,
        FirewallBackend,
        HostObserver,
        ReportOutbox,
        ServiceManager,
        StateStore,
        TrafficRecords,
    )


class Adapters(Connectors, PullAdapters, LocalLists, ReportClients, KernelLogs, FileStamps, Protocol):
    """The edges. Methods that get a configuration are called each time that one is needed; those that may import a
    library or read certificates are called in a thread, and those of one API and key share one connector. `records` and
    `outbox` are None where nothing is to be kept or reported."""

    @property
    def clock(self) -> Clock:
        """Time and chance."""

    @property
    def backend(self) -> FirewallBackend:
        """The kernel."""

    @property
    def store(self) -> StateStore:
        """The state directory."""

    @property
    def observer(self) -> HostObserver:
        """What the host is connected by."""

    @property
    def connections(self) -> Connections:
        """Connections of the host."""

    @property
    def records(self) -> TrafficRecords | None:
        """What was counted, on disk."""

    @property
    def outbox(self) -> ReportOutbox | None:
        """Reports, on disk."""

    @property
    def manager(self) -> ServiceManager:
        """systemd."""

    def lost_log_lines(self) -> int:
        """Lines of our own log that were lost lately because nobody reads it."""
