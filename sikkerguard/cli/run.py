"""Wiring for `sikkerguard run` and `sikkerguard restore`: edges, signals, the log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.edges.host.connections import Connections
from sikkerguard.edges.http import control_socket
from sikkerguard.edges.http.control import Control
from sikkerguard.edges.http.web import Web
from sikkerguard.edges.kernel import modules
from sikkerguard.edges.kernel.dry_run import DryRunBackend
from sikkerguard.edges.list_file import ListFile
from sikkerguard.edges.log_output import handlers
from sikkerguard.edges.sikkerapi.proxies import way_of
from sikkerguard.edges.storage.database import Database
from sikkerguard.edges.storage.lock import NamespaceLock
from sikkerguard.edges.storage.outbox import Outbox
from sikkerguard.edges.storage.store import Store
from sikkerguard.edges.storage.traffic import TrafficStore
from sikkerguard.edges.systemd.notifier import Notifier
from sikkerguard.service.adapters import Adapters
from sikkerguard.service.disk_thread import within
from sikkerguard.service.lifecycle import Service
from sikkerguard.service.listeners import Listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import FirewallBackend, KernelLog, Probes, ReportClient
    from sikkerguard.core.sikkerapi.endpoint import Way
    from sikkerguard.edges.sikkerapi.client import SikkerApi
    from sikkerguard.edges.sikkerapi.connector import PinnedConnector

log = logging.getLogger(__name__)

# A start goes on without a lock where the disk has none to offer in this time.
_PREPARE_SECONDS = 3.0

_Result = TypeVar("_Result")


def run(
    config: Config,
    reread: Callable[[], Config],
    adjust: Callable[[Adapters], Adapters] = lambda edges: edges,
    files: Callable[[], Iterable[Path]] = tuple,
) -> int:
    """Protect until a signal says stop; the answer is the exit code. `reread` gives the settings as they are by then,
    `files` those that it reads, and `adjust` may put other edges in place of some.

    Raises:
        SikkerGuardError: the service could not start, or could not remove all of its rules.
    """
    handlers.begin(config.log_level)
    modules.load_modules_and_drop_capability()
    if config.is_plain and config.allow_http:
        log.warning("SIKKER_API_URL does not begin with https: the key goes over the network as anyone can read it.")
    store = Store(config.state_dir)
    try:
        with nullcontext() if config.dry_run else _alone(store):
            asyncio.run(_run(config, reread, files, store, adjust))
    finally:
        handlers.end()
    return 0


def restore(config: Config) -> int:
    """Block by the list kept on disk, and end; the answer is the exit code. Where there is none, nothing is done.

    Raises:
        SikkerGuardError: it could not be put into force, or a service runs, which has done it.
    """
    handlers.begin(config.log_level)
    modules.load_modules_and_drop_capability()
    store = Store(config.state_dir)
    if config.dry_run or not _soon(store.has_list, otherwise=True):
        log.info("No list is kept on disk yet: nothing is blocked until one was pulled.")
        handlers.end()
        return 0
    try:
        with _alone(store):
            asyncio.run(_restore(config, store))
    finally:
        handlers.end()
    return 0


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Be the only service on this directory and in this network namespace. A directory that can't be used is no reason
    not to protect, and no more is one on a disk that hangs."""
    lock = NamespaceLock()
    try:
        _soon(store.prepare, otherwise=None)
        lock.take()
        yield
    finally:
        _soon(store.close, otherwise=None)
        lock.close()


def _soon(action: Callable[[], _Result], *, otherwise: _Result) -> _Result:
    try:
        return within(_PREPARE_SECONDS, action)
    except (TimeoutError, OSError) as error:
        log.debug("the state directory can't be used yet: %s", error)
        return otherwise


async def _restore(config: Config, store: Store) -> None:
    await Service(config, _edges(config, store, Database(config.state_dir)), lambda: config).restore()


def _edges(config: Config, store: Store, database: Database | None) -> Adapters:
    from sikkerguard.edges.host.surroundings import Observer

    observer = Observer()
    return Adapters(
        kernel=_kernel(config),
        store=store,
        list_file=ListFile(),
        connections=Connections(),
        counts=TrafficStore(database) if database else None,
        outbox=Outbox(database) if database else None,
        notifier=Notifier(os.environ),
        detect=observer.detect,
        way=_way,
        make_door=lambda config: _client(config)[0],
        make_api=lambda config: _client(config)[1],
        make_reports=_reports,
        make_probes=_probes,
        make_watch=observer.watch,
        open_log=_log_opener(),
        lines_lost=handlers.lost,
    )


async def _run(
    config: Config,
    reread: Callable[[], Config],
    files: Callable[[], Iterable[Path]],
    store: Store,
    adjust: Callable[[Adapters], Adapters],
) -> None:
    database = None if config.dry_run else Database(config.state_dir)
    edges = adjust(_edges(config, store, database))
    service = Service(config, edges, reread, files)
    listening = _listening(config, service)

    def reload() -> None:
        listening.try_now()
        service.reload()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    # What has come since the process began, and was held back, is answered now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        await service.run(listening)
    finally:
        # The loop is about to give back its handlers: a reload that comes now is for nobody.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
        edges.notifier.close()


def _listening(config: Config, service: Service) -> Listening:
    """The page, and the control socket: in systemd's runtime directory, or else in the state directory. A dry run
    can do without, since it may stand beside a service that has it."""
    found = control_socket.runtime_directory(os.environ)
    control = Control(
        (*((found,) if found else ()), config.state_dir),
        service.health,
        service.status,
        lambda accept: service.reload(accept=accept),
    )
    web = Web(config.health_host, config.health_port, service.health, service.status)
    if config.dry_run:
        return Listening((web, control), service.trouble, optional=(control.name,))
    return Listening((web, control), service.trouble)


def _kernel(config: Config) -> FirewallBackend:
    if config.dry_run:
        return DryRunBackend()
    from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend

    return IpsetBackend()


def _way(config: Config) -> Way:
    return way_of(config.api_url, os.environ)


# Pulls and reports may ask at the same moment, from two threads, and must get the same one.
_making = threading.Lock()


def _client(config: Config) -> tuple[PinnedConnector, SikkerApi]:
    """One for pulls and reports, by one door: the certificates of all authorities are some megabytes."""
    with _making:
        return _made_client(config.api_url, config.api_key, config.key_source)


# Two, since for a moment after new settings were read some still ask by the former.
@lru_cache(maxsize=2)
def _made_client(url: str, key: str, key_source: str) -> tuple[PinnedConnector, SikkerApi]:
    from sikkerguard.edges.sikkerapi.client import KEY_SOURCE, SikkerApi  # httpx, once the cached list blocks
    from sikkerguard.edges.sikkerapi.connector import PinnedConnector

    door = PinnedConnector(url)
    return door, SikkerApi(url, key, key_source=key_source or KEY_SOURCE, door=door)


def _reports(config: Config) -> ReportClient:
    from sikkerguard.edges.sikkerapi.reports import ReportApi

    return ReportApi(_client(config)[1])


def _log_opener() -> Callable[[str], KernelLog | None]:
    said = set[str]()

    def open_log(choice: str) -> KernelLog | None:
        from sikkerguard.edges.kernel_log.select import open_source  # once the cached list blocks

        return open_source(choice, said)

    return open_log


def _probes(config: Config) -> Probes:
    from sikkerguard.edges.host.probes import Probes
    from sikkerguard.edges.host.resolvers import resolvers
    from sikkerguard.edges.host.routes import gateways

    return Probes(gateways, resolvers, _way(config))
