"""Messages to systemd by sd_notify(3), none where nobody listens; and what is asked of it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 2.0
# sd_booted(3): this directory is there where systemd is the init.
_BOOTED = Path("/run/systemd/system")
_SHOW = ("systemctl", "show", "--property=LoadState,ActiveState,StatusText", "sikkerguard.service")
# Targets that are started as the machine goes down (systemd.special(7)).
_DOWN = frozenset({"shutdown.target", "reboot.target", "poweroff.target", "halt.target", "kexec.target"})
# The last of our control groups that is a service's: `0::/system.slice/sikkerguard.service`.
_UNIT = re.compile(r"/([^/\n]+\.service)(?:/[^\n]*)?$", re.MULTILINE)


class Notifier:
    """The `ServiceManager` that systemd is. Nothing is sent without NOTIFY_SOCKET, and nothing is asked without
    INVOCATION_ID, which every process of a unit has (systemd.exec(5))."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        groups: Path = Path("/proc/self/cgroup"),
        jobs: Sequence[str] = ("systemctl", "list-jobs", "--no-legend", "--plain"),
    ) -> None:
        self._notifier: Any = None
        # What systemd had no room for, by its first word: said again before anything else.
        self._unsaid: dict[str, str] = {}
        self._managed = bool(environment.get("INVOCATION_ID"))
        self._groups = groups
        self._jobs = tuple(jobs)
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address:
            self._connect()

    def close(self) -> None:
        """Let go of the socket."""
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def ready(self, status: str) -> None:
        """The rules are live, or all that can be done for it without a list is done."""
        # Each by itself: what may be the matter with a sentence is not the matter with this.
        self._send("READY=1")
        self.status(status)

    def status(self, status: str) -> None:
        """A sentence for `systemctl status`."""
        self._send(f"STATUS={' '.join(status.split())}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says that it was. systemd wants to know since when, by the
        clock that it uses (sd_notify(3), MONOTONIC_USEC)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def ping_watchdog(self) -> None:
        """Feed the watchdog; to be called on real progress only."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much more time for what is under way, starting or stopping."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def pending_job(self) -> str:
        """What systemd is doing with our service: `start`, `stop`, `restart`, as an upgrade of the package does,
        `shutdown` where it stops it with all others, or nothing, also where it can't be asked."""
        if not self._managed:
            return ""
        try:
            unit = _UNIT.search(self._groups.read_text())
            if unit is None:
                return ""
            # What it may have to say is not our status.
            environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
            done = subprocess.run(
                self._jobs, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True, env=environment
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.debug("systemd could not be asked what it does with us: %s", error)
            return ""
        # Number, unit, type and state of each job; a unit has one at most.
        jobs = {fields[1]: fields[2] for line in done.stdout.splitlines() if len(fields := line.split()) > 2}
        goes_down = any(jobs.get(target) == "start" for target in _DOWN)
        return "shutdown" if goes_down else jobs.get(unit[1], "")

    def _send(self, text: str) -> None:
        if self._notifier is None:
            return
        word = text.partition("=")[0]
        # The newest of a kind, in the order in which they came.
        self._unsaid.pop(word, None)
        self._unsaid[word] = text
        try:
            for kind, unsaid in tuple(self._unsaid.items()):
                self._notifier.notify(_in_utf8(unsaid))
                del self._unsaid[kind]
        except BlockingIOError:
            log.debug("the service manager does not read; it is told later: %s", ", ".join(self._unsaid))
        except OSError as error:
            log.debug("the service manager is away; it is told later: %s", error)
            with suppress(OSError):  # another one may listen there next time
                self._notifier.socket.connect(re.sub("^@", "\0", self._address))

    def _connect(self) -> None:
        from sdnotify import SystemdNotifier

        try:
            # By itself it swallows whatever goes wrong, and READY with it.
            self._notifier = SystemdNotifier(debug=True)
        except OSError as error:
            log.warning("The service manager can't be told how the service is (%s).", error.strerror)
            return
        # A manager that does not read must not have the service stand still.
        self._notifier.socket.setblocking(False)


def unit_properties(booted: Path = _BOOTED, words: Sequence[str] = _SHOW) -> dict[str, str]:
    """`LoadState`, `ActiveState` and `StatusText` of the unit, for commands that find no service; nothing where systemd
    can't be asked."""
    if not booted.is_dir():
        return {}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}  # it is a help, and the command has an error to show already
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def _in_utf8(text: str) -> str:
    """What sdnotify, which knows Latin-1 only, sends as the text in UTF-8, as sd_notify(3) wants it."""
    return text.encode("utf-8", "replace").decode("latin-1")
