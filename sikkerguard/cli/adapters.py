"""The edges of a service that really runs: which class of this machine stands for which interface."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from sikkerguard.edges.host.connections import Connections
from sikkerguard.edges.host.surroundings import Observer
from sikkerguard.edges.kernel.select import open_backend
from sikkerguard.edges.list_file import LocalListFile, stamp_of
from sikkerguard.edges.log_output import handlers
from sikkerguard.edges.sikkerapi.proxies import endpoint_of
from sikkerguard.edges.storage.database import Database
from sikkerguard.edges.storage.outbox import Outbox
from sikkerguard.edges.storage.traffic import TrafficStore
from sikkerguard.edges.system_clock import SystemClock
from sikkerguard.edges.systemd.notifier import Notifier
from sikkerguard.service.disk_thread import DiskThread

if TYPE_CHECKING:
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Feed, KernelLog, Probes, ReportClient
    from sikkerguard.core.sikkerapi.endpoint import Endpoint
    from sikkerguard.edges.sikkerapi.client import ApiClient
    from sikkerguard.edges.sikkerapi.connector import PinnedConnector
    from sikkerguard.edges.storage.store import Store


class SystemAdapters:
    """The `Adapters` of this machine. What a start from the cache does not need is imported when it is asked for."""

    def __init__(self, config: Config, store: Store) -> None:
        self.clock = SystemClock()
        self.backend = open_backend(dry_run=config.dry_run)
        self.store = store
        self.observer = Observer()
        self.connections = Connections()
        database = None if config.dry_run else Database(config.state_dir)
        self.records = TrafficStore(database) if database else None
        self.outbox = Outbox(database) if database else None
        self.manager = Notifier(os.environ)
        self._file_thread = DiskThread("list file")
        # Sentences on a log that can't be read, each of which is said once.
        self._said_of_log = set[str]()

    def endpoint(self, config: Config) -> Endpoint:
        """What requests connect to by these settings and the environment."""
        return endpoint_of(config.api_url, os.environ)

    def connector(self, config: Config) -> PinnedConnector:
        """What finds and proves the endpoint's addresses."""
        return _client(config)[0]

    def blacklist(self, config: Config) -> Feed:
        """SikkerAPI's list."""
        with _importing:
            from sikkerguard.edges.sikkerapi.blacklist import Blacklist
        return Blacklist(_client(config)[1], score_min=config.score_min, interval=config.pull_interval)

    def local_list(self, path: Path) -> Feed:
        """The list that the host's owner keeps in this file."""
        return LocalListFile(path, self._file_thread)

    def reports(self, config: Config) -> ReportClient:
        """Where reports are sent."""
        with _importing:
            from sikkerguard.edges.sikkerapi.reports import BulkReportClient
        return BulkReportClient(_client(config)[1])

    def probes(self, config: Config) -> Probes:
        """The self-test."""
        with _importing:
            from sikkerguard.edges.host import probes, resolvers, routes
        return probes.Probes(routes.gateways, resolvers.resolvers, self.endpoint(config))

    def kernel_log(self, config: Config) -> KernelLog | None:
        """The kernel's log lines, or None where they can't be read."""
        with _importing:
            from sikkerguard.edges.kernel_log.select import open_source
        return open_source(config.log_source, self._said_of_log)

    def file_stamp(self, path: Path) -> object:
        """What differs once the file at this path has changed; None without one."""
        return stamp_of(path)

    def lost_log_lines(self) -> int:
        """Lines of our own log that were lost lately because nobody reads it."""
        return handlers.lost()


# Threads read one library at a time: those that import each other's packages from two ends can wait for each other for
# good in Python 3.11, whose detection of that misses cases (CPython's issue 83065).
_importing = threading.Lock()
# Pulls and reports may ask at the same moment, from two threads, and must get the same one.
_making = threading.Lock()


def _client(config: Config) -> tuple[PinnedConnector, ApiClient]:
    """One for pulls and reports, by one connector: the certificates of all authorities are some megabytes."""
    with _making:
        return _made_client(config.api_url, config.api_key, config.key_source)


# Two, since for a moment after new settings were read some still ask by the former.
@lru_cache(maxsize=2)
def _made_client(url: str, key: str, key_source: str) -> tuple[PinnedConnector, ApiClient]:
    with _importing:
        from sikkerguard.edges.sikkerapi.client import KEY_SOURCE, ApiClient  # httpx, once the cached list blocks
        from sikkerguard.edges.sikkerapi.connector import PinnedConnector
    connector = PinnedConnector(url)
    return connector, ApiClient(url, key, key_source=key_source or KEY_SOURCE, connector=connector)
