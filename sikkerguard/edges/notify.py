"""Word to systemd by sd_notify; silent where nobody listens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Tells systemd how the service is. Every method does nothing without NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._notifier: Any = None
        if environment.get("NOTIFY_SOCKET"):
            from sdnotify import SystemdNotifier

            # Not debug=True: that raises where the socket has gone.
            self._notifier = SystemdNotifier()

    def ready(self, status: str) -> None:
        """The rules of a verified list are live."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """A sentence for `systemctl status`."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog; to be called on real progress only."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for this much more time for what is under way, starting or stopping."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(text)
