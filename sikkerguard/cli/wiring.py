"""Wiring for `sikkerguard run` and `sikkerguard restore`: edges, signals, the log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from sikkerguard.cli.adapters import SystemAdapters
from sikkerguard.edges.http import control_socket
from sikkerguard.edges.http.control import Control
from sikkerguard.edges.http.page import Page
from sikkerguard.edges.kernel import modules
from sikkerguard.edges.log_output import handlers
from sikkerguard.edges.storage.lock import NamespaceLock
from sikkerguard.edges.storage.store import Store
from sikkerguard.service.disk_thread import DiskThread, within
from sikkerguard.service.lifecycle import Service
from sikkerguard.service.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sikkerguard.config.settings import Config
    from sikkerguard.service.settings import SettingsReader

log = logging.getLogger(__name__)

# A start goes on without a lock where the disk has none to offer in this time.
_PREPARE_SECONDS = 3.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_Result = TypeVar("_Result")


def run(config: Config, reader: SettingsReader, adapters: type[SystemAdapters] = SystemAdapters) -> None:
    """Protect until a signal says stop. Another class of `adapters` may put other edges in place of some.

    Raises:
        SikkerGuardError: the service could not start, or could not remove all of its rules.
    """
    handlers.begin(config.log_level)
    modules.load_modules_and_drop_capability()
    if config.is_plain and config.allow_http:
        log.warning("SIKKER_API_URL does not begin with https: the key can be read by anyone on the way.")
    store = Store(config.state_dir)
    try:
        with nullcontext() if config.dry_run else _alone(store):
            asyncio.run(_run(config, reader, adapters(config, store)))
    finally:
        handlers.end()


def restore(config: Config, reader: SettingsReader) -> None:
    """Block by the list kept on disk, and end. Where there is none, nothing is done.

    Raises:
        SikkerGuardError: it could not be put into force, or a service runs, which has done it.
    """
    handlers.begin(config.log_level)
    modules.load_modules_and_drop_capability()
    store = Store(config.state_dir)
    if config.dry_run or not _soon(store.has_list, otherwise=True):
        log.info("No list is kept on disk yet: nothing is blocked until one was pulled.")
        handlers.end()
        return
    try:
        with _alone(store):
            asyncio.run(Service(config, SystemAdapters(config, store), reader).restore())
    finally:
        handlers.end()


async def _run(config: Config, reader: SettingsReader, adapters: SystemAdapters) -> None:
    service = Service(config, adapters, reader)
    listeners = _listeners(config, service)

    def reload() -> None:
        listeners.try_now()
        service.reload()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    # What has come since the process began, and was held back, is answered now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        await service.run(listeners)
    finally:
        # The loop is about to give back its handlers: a reload that comes now is for nobody.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
        adapters.manager.close()


def _listeners(config: Config, service: Service) -> Listeners:
    """The page, and the control socket: in systemd's runtime directory, or else in the state directory. A dry run
    can do without, since it may stand beside a service that has it."""
    found = control_socket.runtime_directory(os.environ)
    control = Control((*((found,) if found else ()), config.state_dir), service, DiskThread("control-socket"))
    page = Page(config.health_host, config.health_port, service)
    optional = (control.name,) if config.dry_run else ()
    return Listeners((page, control), service.parts.changes, optional)


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
