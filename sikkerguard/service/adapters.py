"""What the service needs from outside: one value that wiring makes and tests change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.host.surroundings import Surroundings
    from sikkerguard.core.interfaces import (
        ApiConnector,
        BlacklistClient,
        Connections,
        FirewallBackend,
        HostMonitor,
        KernelLog,
        ListFiles,
        Probes,
        ReportClient,
        ReportOutbox,
        ServiceManager,
        StateStore,
        TrafficRecords,
    )
    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.sikkerapi.endpoint import Way


@dataclass(frozen=True, slots=True)
class Adapters:
    """All that the service needs from outside. `detect` gets the whitelist, the addresses to which requests go, further
    ports of sshd and a look-up in the list in force, and gives what is allowed and the ways out; `way` says what
    requests connect to, and reads nothing for it; `make_door`, `make_api`, `make_reports` and `make_probes` are asked
    again when the configuration changes, and those of one configuration share one door; `make_watch` gets what to call
    when the surroundings changed; `open_log` gets the setting of the log source; `lines_lost` says how many lines of
    our own log were lost because nobody reads it. `counts` and `outbox` are None where nothing is to be kept or
    reported."""

    kernel: FirewallBackend
    store: StateStore
    list_file: ListFiles
    connections: Connections
    counts: TrafficRecords | None
    outbox: ReportOutbox | None
    notifier: ServiceManager
    detect: Callable[
        [Iterable[AllowEntry], Iterable[AllowEntry], Iterable[int], Callable[[Family, int], bool]], Surroundings
    ]
    way: Callable[[Config], Way]
    make_door: Callable[[Config], ApiConnector]
    make_api: Callable[[Config], BlacklistClient]
    make_reports: Callable[[Config], ReportClient]
    make_probes: Callable[[Config], Probes]
    make_watch: Callable[[Callable[[], None]], HostMonitor]
    open_log: Callable[[str], KernelLog | None]
    lines_lost: Callable[[], int] = lambda: 0
