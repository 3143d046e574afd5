"""The lock that keeps two services out of one network namespace, whatever their state directories are.

It is an abstract Unix socket (unix(7)): such a name belongs to the network namespace, as rules and sets do, needs no
disk, and goes with its process. Any local user may have taken the name, so that only a holder who could be a service
is believed.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time

from sikkerguard.edges.storage.processes import is_dying, may_write_rules
from sikkerguard.errors import ConfigError

log = logging.getLogger(__name__)

_NAME = "\0sikkerguard"
# struct ucred: pid, uid, gid.
_PEER = struct.Struct("3i")
# One that is about to end has so long for it.
_SECONDS = 0.5
# Those who ask are not answered, and wait here.
_BACKLOG = 128


class NamespaceLock:
    """Held from `take` until `close`."""

    def __init__(self, name: str = _NAME) -> None:
        self._name = name
        self._socket: socket.socket | None = None

    def take(self) -> None:
        """Take it.

        Raises:
            ConfigError: another service runs in this network namespace.
        """
        deadline = time.monotonic() + _SECONDS
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while not _bound(made, self._name):
                if time.monotonic() > deadline:
                    self._judge()
                    return
                time.sleep(0.02)
            made.listen(_BACKLOG)
            self._socket = made
        finally:
            if self._socket is not made:
                made.close()

    def _judge(self) -> None:
        """Who has the name, if he is believed, is a reason not to go on."""
        peer = self._peer()
        if peer is None:
            return
        process, user = peer
        if not _is_believed(process, user):
            log.warning(
                "Process %d of user %d has the name that keeps two SikkerGuards out of one network namespace; it is "
                "gone on without.",
                process,
                user,
            )
        elif not is_dying(process):
            raise ConfigError(
                [f"another sikkerguard runs in this network namespace (process {process}); stop it first."]
            )

    def holder(self) -> int | None:
        """The process of the service that holds it, where there is one that is believed to be that."""
        peer = self._peer()
        return None if peer is None or not _is_believed(*peer) or is_dying(peer[0]) else peer[0]

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _peer(self) -> tuple[int, int] | None:
        """The process and the user that hold the name; None where nobody answers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            try:
                asking.connect(self._name)
                process, user, _ = _PEER.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            except OSError:
                return None
        return process, user


def _is_believed(process: int, user: int) -> bool:
    """Whether this can be a service: root, who asks, or somebody who may write rules."""
    return user in (0, os.geteuid()) or may_write_rules(process)


def _bound(made: socket.socket, name: str) -> bool:
    try:
        made.bind(name)
    except OSError:
        return False
    return True
