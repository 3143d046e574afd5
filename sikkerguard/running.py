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

from sikkerguard.disk import within
from sikkerguard.edges import control_socket, logs, modules
from sikkerguard.edges.control import Control
from sikkerguard.edges.counts import Counts
from sikkerguard.edges.database import Database
from sikkerguard.edges.dryrun import DryRunKernel
from sikkerguard.edges.listfile import ListFile
from sikkerguard.edges.lock import NamespaceLock
from sikkerguard.edges.notify import Notifier
from sikkerguard.edges.outbox import Outbox
from sikkerguard.edges.outgoing import Connections
from sikkerguard.edges.proxies import way_of
from sikkerguard.edges.store import Store
from sikkerguard.edges.web import Web
from sikkerguard.listening import Listening
from sikkerguard.needs import Edges
from sikkerguard.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from sikkerguard.config import Config
    from sikkerguard.core.faces import KernelFace, LogFace, ProbesFace
    from sikkerguard.core.ways import Way
    from sikkerguard.edges.apidoor import ApiDoor
    from sikkerguard.edges.sikkerapi import SikkerApi
    from sikkerguard.sending import ReportFace

log = logging.getLogger(__name__)

# A start goes on without a lock where the disk has none to offer in this time.
_PREPARE_SECONDS = 3.0

_Result = TypeVar("_Result")


def run(
    config: Config,
    reread: Callable[[], Config],
    adjust: Callable[[Edges], Edges] = lambda edges: edges,
    files: Callable[[], Iterable[Path]] = tuple,
) -> int:
    """Protect until a signal says stop; the answer is the exit code. `reread` gives the settings as they are by then,
    `files` those that it reads, and `adjust` may put other edges in place of some.

    Raises:
        SikkerGuardError: the service could not start, or could not remove all of its rules.
    """
    logs.begin(config.log_level)
    modules.load_and_let_go()
    if config.is_plain and config.allow_http:
        log.warning("SIKKER_API_URL does not begin with https: the key goes over the network as anyone can read it.")
    store = Store(config.state_dir)
    try:
        with nullcontext() if config.dry_run else _alone(store):
            asyncio.run(_run(config, reread, files, store, adjust))
    finally:
        logs.end()
    return 0


def restore(config: Config) -> int:
    """Block by the list kept on disk, and end; the answer is the exit code. Where there is none, nothing is done.

    Raises:
        SikkerGuardError: it could not be put into force, or a service runs, which has done it.
    """
    logs.begin(config.log_level)
    modules.load_and_let_go()
    store = Store(config.state_dir)
    if config.dry_run or not _soon(store.has_list, otherwise=True):
        log.info("No list is kept on disk yet: nothing is blocked until one was pulled.")
        logs.end()
        return 0
    try:
        with _alone(store):
            asyncio.run(_restore(config, store))
    finally:
        logs.end()
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


def _edges(config: Config, store: Store, database: Database | None) -> Edges:
    from sikkerguard.edges.surroundings import Observer

    observer = Observer()
    return Edges(
        kernel=_kernel(config),
        store=store,
        list_file=ListFile(),
        connections=Connections(),
        counts=Counts(database) if database else None,
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
        lines_lost=logs.lost,
    )


async def _run(
    config: Config,
    reread: Callable[[], Config],
    files: Callable[[], Iterable[Path]],
    store: Store,
    adjust: Callable[[Edges], Edges],
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


def _kernel(config: Config) -> KernelFace:
    if config.dry_run:
        return DryRunKernel()
    from sikkerguard.edges.kernel import Kernel

    return Kernel()


def _way(config: Config) -> Way:
    return way_of(config.api_url, os.environ)


# Pulls and reports may ask at the same moment, from two threads, and must get the same one.
_making = threading.Lock()


def _client(config: Config) -> tuple[ApiDoor, SikkerApi]:
    """One for pulls and reports, by one door: the certificates of all authorities are some megabytes."""
    with _making:
        return _made_client(config.api_url, config.api_key, config.key_source)


# Two, since for a moment after new settings were read some still ask by the former.
@lru_cache(maxsize=2)
def _made_client(url: str, key: str, key_source: str) -> tuple[ApiDoor, SikkerApi]:
    from sikkerguard.edges.apidoor import ApiDoor
    from sikkerguard.edges.sikkerapi import KEY_SOURCE, SikkerApi  # httpx, once the cached list blocks

    door = ApiDoor(url)
    return door, SikkerApi(url, key, key_source=key_source or KEY_SOURCE, door=door)


def _reports(config: Config) -> ReportFace:
    from sikkerguard.edges.reportapi import ReportApi

    return ReportApi(_client(config)[1])


def _log_opener() -> Callable[[str], LogFace | None]:
    said = set[str]()

    def open_log(choice: str) -> LogFace | None:
        from sikkerguard.edges.kernlog import open_source  # once the cached list blocks

        return open_source(choice, said)

    return open_log


def _probes(config: Config) -> ProbesFace:
    from sikkerguard.edges.probes import Probes
    from sikkerguard.edges.resolvers import resolvers
    from sikkerguard.edges.routes import gateways

    return Probes(gateways, resolvers, _way(config))
