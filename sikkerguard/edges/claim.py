"""By which two services of one network learn of each other: an abstract Unix socket, of which each network namespace
has its own (unix(7), network_namespaces(7)). Each would undo the other's rules, whatever their state directories.

Any local user can take such a name, so nothing depends on it but what is said.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from sikkerguard.edges.control_socket import peer_of
from sikkerguard.errors import ListenError

if TYPE_CHECKING:
    from sikkerguard.edges.control_socket import Peer

_NAME = "\0sikkerguard"
# Users above are people (Debian Policy, 9.2.2); none of them runs a service that can write rules.
_LAST_SYSTEM_USER = 999


class Claim:
    """Held as long as the service runs, where it is free."""

    name = "claim"

    def __init__(self, address: str = _NAME) -> None:
        self._address = address
        self._listening: socket.socket | None = None

    async def open(self) -> None:
        """Take the name, unless it is ours already.

        Raises:
            ListenError: another service has it.
        """
        if self._listening is not None:
            return
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.bind(self._address)
            listening.listen()
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE and (holder := self._holder()) is not None:
                raise ListenError(
                    f"Another sikkerguard runs on this host (user {holder.user}"
                    f"{f', process {holder.process}' if holder.process else ''}): each undoes the other's rules. Stop "
                    "one of them"
                ) from error
        else:
            asyncio.get_running_loop().add_reader(listening, _hang_up, listening)
            self._listening = listening

    async def close(self) -> None:
        """Let go of the name."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def _holder(self) -> Peer | None:
        """Who has the name, if it may be a service."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            try:
                asking.connect(self._address)
            except OSError:
                return None  # it ends at this moment, or takes no connections, as a service would
            holder = peer_of(asking)
        return holder if holder.user <= _LAST_SYSTEM_USER else None


def _hang_up(listening: socket.socket) -> None:
    with suppress(OSError):  # who has asked has gone already
        listening.accept()[0].close()
