"""The Unix socket between the service and its commands: its name, who is at the other end, and how to get there.

A socket is reached by its open file instead of its path, `/proc/self/fd/N`: so a path may be longer than the 108 bytes
of sockaddr_un (unix(7)), and no link that somebody put in the socket's place is followed.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "control.sock"
RUNTIME_DIRECTORY = Path("/run/sikkerguard")
# struct ucred: process, user and group (unix(7), SO_PEERCRED).
_CREDENTIALS = struct.Struct("iII")
# asm-generic/socket.h; not among Python's constants. Groups are numbers of 32 bits; Python reads 1024 bytes.
_SO_PEERGROUPS, _GROUPS_SIZE = 59, 1024
# What connect(2) says of a Unix socket that has too many in its queue, it says at once.
_FULL_SECONDS = 0.05


class UntrustedError(SikkerGuardError):
    """What is at the socket's place is not the service."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: a process (0 where it can't be seen from here), its user, and those of its groups that
    can be known."""

    process: int
    user: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a connected socket. The server's are those of the time when it began to listen."""
    process, user, group = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    groups = {group}
    with suppress(OSError):  # more than fit: whoever may open the socket by one of them has shown that he has it
        found = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
        groups.update(each for (each,) in struct.iter_unpack("I", found))
    return Peer(process, user, frozenset(groups))


def runtime_directory(environment: Mapping[str, str]) -> Path | None:
    """Where systemd, or a container's image, says that sockets belong (systemd.exec(5), RUNTIME_DIRECTORY)."""
    first = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(first) if first.startswith("/") else None


def connect(directory: Path, seconds: float) -> socket.socket:
    """A connection to the service whose socket lies there, with this time limit for each step.

    Raises:
        UntrustedError: who listens is neither root, nor the caller's user, nor the one to whom root gave the directory.
        OSError: nobody is there (FileNotFoundError, ConnectionRefusedError), it may not be asked (PermissionError), or
            it does not take connections.
    """
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = os.open(NAME, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if not stat.S_ISSOCK(os.fstat(file).st_mode):
                raise UntrustedError(f"{directory / NAME} is no socket; nothing there is believed")
            trusted = _trusted(parent)
            connection = _connected(f"/proc/self/fd/{file}", seconds)
        finally:
            os.close(file)
    finally:
        os.close(parent)
    user = peer_of(connection).user
    if user not in trusted:
        connection.close()
        raise UntrustedError(
            f"who listens at {directory / NAME} (user {user}) is neither root nor the service's user; nothing of it is "
            "believed"
        )
    return connection


def _trusted(directory: int) -> set[int]:
    """The users whom a command believes at a socket in this directory. Its owner is one where the directory above is
    root's, and nobody else can make anything there: then it was root who gave him this place."""
    trusted = {0, os.geteuid()}
    above = os.stat("..", dir_fd=directory)
    if above.st_uid == 0 and not above.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        trusted.add(os.fstat(directory).st_uid)
    return trusted


def _connected(address: str, seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + seconds
    connection.settimeout(seconds)
    while True:
        try:
            connection.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                connection.close()
                raise
            time.sleep(_FULL_SECONDS)
        except OSError:
            connection.close()
            raise
        else:
            return connection
