"""What the service needs from outside: one object that the command line makes, and that tests change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import (
        ApiConnector,
        Clock,
        Connections,
        Feed,
        FirewallBackend,
        HostObserver,
        KernelLog,
        Probes,
        ReportClient,
        ReportOutbox,
        ServiceManager,
        StateStore,
        TrafficRecords,
    )
    from sikkerguard.core.sikkerapi.endpoint import Endpoint


class Adapters(Protocol):
    """The edges. Methods that get a configuration are called again when that has changed; those that may import a
    library or read certificates are called in a thread, and those of one configuration share one connector. `records`
    and `outbox` are None where nothing is to be kept or reported."""

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

    def endpoint(self, config: Config) -> Endpoint:
        """What requests connect to by these settings and the environment. Imports and reads nothing."""

    def connector(self, config: Config) -> ApiConnector:
        """What finds and proves the endpoint's addresses. For a thread. Raises `FetchError`."""

    def blacklist(self, config: Config) -> Feed:
        """SikkerAPI's list. For a thread. Raises `FetchError`."""

    def local_list(self, path: Path) -> Feed:
        """The list that the host's owner keeps in this file."""

    def reports(self, config: Config) -> ReportClient:
        """Where reports are sent. For a thread. Raises `FetchError`."""

    def probes(self, config: Config) -> Probes:
        """The self-test. For a thread."""

    def kernel_log(self, config: Config) -> KernelLog | None:
        """The kernel's log lines, or None where they can't be read. To be used by the thread that calls this."""

    def file_stamp(self, path: Path) -> object:
        """What differs once the file at this path has changed; None without one. Reads the disk."""

    def lost_log_lines(self) -> int:
        """Lines of our own log that were lost lately because nobody reads it."""
