"""`sikkerguard cleanup`: removes everything of ours from the kernel, whatever state it is in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.cli.command import Command, Outcome, settings_reader, warn
from sikkerguard.errors import BusyError, SikkerGuardError

if TYPE_CHECKING:
    import argparse

    from sikkerguard.core.interfaces import FirewallBackend


def _run(options: argparse.Namespace) -> Outcome:
    # systemd has told that the service has ended; for whoever calls it by hand, that is looked at.
    is_told = options.after_stop and "SERVICE_RESULT" in os.environ
    service = "" if is_told else _find_service(options)
    if service and not options.force:
        raise SikkerGuardError(
            f"{service} runs, and would put back within seconds what is removed; nothing was done. Stop it, which "
            "removes everything (systemctl stop sikkerguard), or have it removed all the same with --force"
        )
    if options.after_stop and _stays():
        return Outcome.FINE
    from sikkerguard.edges.kernel.select import open_backend

    backend = open_backend(dry_run=False)
    try:
        if options.after_stop:
            remove_after_stop(backend)
            return Outcome.FINE
        backend.remove()
    finally:
        backend.close()
    print("Nothing of SikkerGuard is left in the kernel.")
    if service:
        warn(f"{service} runs and will put it back; stop that instead.")
    return Outcome.FINE


def remove_after_stop(backend: FirewallBackend) -> None:
    """Remove what a service left that has ended; what another program still uses may stay.

    Raises:
        KernelError: the kernel refused for another reason.
    """
    if not backend.has_state():
        return
    try:
        backend.remove()
    except BusyError as error:
        # What is left blocks nobody, and is no reason to call the unit failed.
        warn(f"{error}.")


def _stays() -> bool:
    """Whether the list must stay in force though the service has ended: it is being restarted, or has died, or the
    machine goes down. The result is what systemd says of the service (systemd.exec(5), SERVICE_RESULT)."""
    from sikkerguard.edges.systemd.notifier import Notifier

    job = Notifier().pending_job()
    result = os.environ.get("SERVICE_RESULT", "success")
    if state := os.environ.get("STATE_DIRECTORY"):
        # The service, which can still ask, leaves a note for the unit that is stopped after it, when D-Bus has ended.
        # The next start removes the note.
        from sikkerguard.edges.storage.directory import Directory

        notes = Directory(Path(state))
        if job == "shutdown":
            with suppress(OSError):  # on a full disk the rules are gone a moment before the network is
                notes.replace("going-down")
        with suppress(OSError):
            if notes.has("going-down"):
                return True
    return job in ("restart", "shutdown") or (job != "stop" and result not in ("success", "exec-condition"))


def _find_service(options: argparse.Namespace) -> str:
    """Name the service that runs; empty where none can be found. Works with any settings, and for a user who may not
    read the state directory."""
    from sikkerguard.cli.service_client import make_client
    from sikkerguard.edges.storage.lock import NamespaceLock
    from sikkerguard.edges.storage.store import Store

    if make_client(options).is_answered():
        return "the service"
    if (process := NamespaceLock().holder()) is not None:
        return f"the service (process {process})"
    try:
        process = Store(settings_reader(options).state_dir()).service_pid()
    except SikkerGuardError:
        return ""
    return f"the service (process {process})" if process is not None else ""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--after-stop", action="store_true", help="as systemd's ExecStopPost=: only if the service was stopped for good"
    )
    parser.add_argument("--force", action="store_true", help="also beside a service that runs, which puts it back")


COMMAND = Command("cleanup", "remove everything of SikkerGuard from the kernel", _run, _add_options)
