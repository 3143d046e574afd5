"""The control socket, by which commands ask the service and have it pull: HTTP, as on the page, over a Unix socket.

Whoever may not open the socket learns nothing; who may, is asked for by the kernel (SO_PEERCRED): root, and the
service's own user and group. What changes something is root's alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.edges.http.control_socket import NAME, peer_of
from sikkerguard.edges.http.server import Answer, HttpServer, Request, as_json, read
from sikkerguard.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from sikkerguard.core.interfaces import Operations

log = logging.getLogger(__name__)

_BACKLOG = 128
# What a disk may take until a stop goes on without it.
_DISK_SECONDS = 1.0
# sun_path without the NUL at its end (unix(7)).
_LONGEST_PATH = 107
_ACCEPT = {"": False, "accept=false": False, "accept=true": True}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where we listen: the socket, its file's device and inode, and whether the directory was made for it."""

    directory: Path
    listening: socket.socket
    inode: tuple[int, int]
    made: bool

    @property
    def path(self) -> Path:
        return self.directory / NAME

    def is_ours(self) -> bool:
        """Whether the file there is still our socket."""
        try:
            return _inode(self.path) == self.inode
        except OSError:
            return False

    def remove(self) -> None:
        """Take the file away, and the directory where it was made for it."""
        with suppress(OSError):  # on a read-only disk it stays, and the next start takes its place
            if self.is_ours():
                self.path.unlink()
            if self.made:
                self.directory.rmdir()


class Control:
    """The server. The first of `directories` that has room for the socket gets it. `disk` does what a disk may take its
    time for: an executor for which nothing waits at the end of the process."""

    name = "control"

    def __init__(self, directories: Sequence[Path], operations: Operations, disk: Executor) -> None:
        self._directories = directories
        self._operations = operations
        self._disk = disk
        self._server = HttpServer(self._answer)
        self._place: _Place | None = None
        self._opening: asyncio.Future[_Place] | None = None

    async def open(self) -> None:
        """Answer from now on, unless that is so already; a socket that somebody has removed is made anew.

        Raises:
            ListenError: it can be made in none of the directories.
        """
        loop = asyncio.get_running_loop()
        if self._place is not None:
            if await loop.run_in_executor(self._disk, self._place.is_ours):
                return
            log.warning("The control socket %s was removed, and is made anew.", self._place.path)
            self._server.silence()
            self._place = None
        # A stop in the middle of this is not to leave a socket behind.
        self._opening = loop.run_in_executor(self._disk, _listen, self._directories)
        self._place = await asyncio.shield(self._opening)
        self._opening = None
        self._server.serve(self._place.listening)

    async def close(self) -> None:
        """Close the server and what is still connected, and take the socket away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISK_SECONDS):
                if self._opening is not None:
                    with suppress(ListenError):  # it was said, or nobody wants to know any more
                        self._place = await self._opening
                        self._place.listening.close()
                place, self._place = self._place, None
                await self._server.close()
                if place is not None:
                    await asyncio.get_running_loop().run_in_executor(self._disk, place.remove)

    def _answer(self, request: Request, connection: socket.socket) -> Answer:
        peer = peer_of(connection)
        if peer.user not in (0, os.geteuid()) and os.getegid() not in peer.groups:
            return Answer(403, b"Only root and the service's group may ask.\n")
        if request.method == "POST":
            return self._change(request, peer.user)
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"Only GET and POST are answered.\n")
        return read(request, self._operations) or Answer(404, b"There are /healthz and /status, and /pull for POST.\n")

    def _change(self, request: Request, user: int) -> Answer:
        if user != 0:
            return Answer(403, b"Only root may change something: run it as root (sudo).\n")
        if request.path != "/pull":
            return Answer(404, b"What can be posted to is /pull.\n")
        if request.query not in _ACCEPT:
            return Answer(400, b"It is /pull, or /pull?accept=true.\n")
        return as_json(self._operations.reload(accept=_ACCEPT[request.query]))


def _listen(directories: Sequence[Path]) -> _Place:
    """Make the socket in the first of the directories that takes it."""
    failures = []
    for directory in directories:
        try:
            return _listen_in(directory)
        except OSError as error:
            failures.append(f"{directory / NAME} ({error.strerror or error})")
    raise ListenError(
        f"The control socket can't be made: {', '.join(failures)}. Protection goes on, 'sikkerguard status', 'health' "
        "and 'pull' find no service meanwhile, and it is tried again"
    )


def _listen_in(directory: Path) -> _Place:
    made = not directory.is_dir()
    if made:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = str(directory / NAME)
        # A short path is what `ss -x` should show.
        address = path if len(os.fsencode(path)) <= _LONGEST_PATH else f"/proc/self/fd/{handle}/{NAME}"
        _remove_dead(directory / NAME, address)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(address)
            (directory / NAME).chmod(0o660)
            # Not before this is it open to anyone.
            listening.listen(_BACKLOG)
            return _Place(directory, listening, _inode(directory / NAME), made)
        except OSError:
            listening.close()
            raise
    finally:
        os.close(handle)


def _remove_dead(path: Path, address: str) -> None:
    """Take away what a service that died has left. What a living one listens at stays, as does what is no socket.

    Raises:
        OSError: it stays.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(None, "it is there, and no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # so many wait there that it can't be dead
    raise FileExistsError(None, "another sikkerguard listens there")


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
