"""Word that the surroundings changed: netlink tells of addresses and routes, inotify of files."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from sikkerguard.core.host import routes
from sikkerguard.core.host.netlink import HEADER, payloads
from sikkerguard.edges.host.addresses import ADDRESS, ends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

# linux/rtnetlink.h, enum rtnetlink_groups: addresses and routes of both families, and nexthop objects.
_GROUPS = (5, 7, 9, 11, 32)
# linux/netlink.h and asm-generic/socket.h, as far as Python does not name them.
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
# Room for what comes while the event loop is busy.
_EVENTS_BYTES = 1 << 20
# Messages that are read before others in the event loop have their turn.
_AT_ONCE = 200
# Addresses whose last event is remembered.
_REMEMBERED = 65536
# linux/filter.h: load a half-word, load a byte, jump if equal, return.
_LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06
# inotify(7): changed, written and closed, moved away, moved in, made, removed.
_WATCHED = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200


class ChangeMonitor:
    """Calls `changed` in the event loop soon after an address, a default route, one of the `files`, or anything in one
    of the `folders` changed, and once when it begins to watch.

    `uses` says whether a default route depends on a nexthop object, by its number.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        files: Iterable[Path] = (),
        folders: Iterable[Path] = (),
        uses: Callable[[int], bool] = lambda nexthop: True,
    ) -> None:
        self._changed = changed
        self._files = tuple(files)
        self._folders = tuple(folders)
        self._uses = uses
        self._netlink: socket.socket | None = None
        self._inotify = -1
        self._names: set[str] = set()
        self._folder_watches: set[int] = set()
        self._told: dict[bytes, int] = {}

    def start(self) -> None:
        """Begin to watch; to be called in the event loop. What can't be watched is logged and left to polling."""
        loop = asyncio.get_running_loop()
        try:
            self._netlink = _event_socket()
            loop.add_reader(self._netlink, self._drain_netlink, self._netlink)
        except OSError as error:
            log.warning("Changes of addresses and routes are seen by polling only: %s.", error)
        try:
            self._inotify = _inotify()
            self._watch_files()
            loop.add_reader(self._inotify, self._drain_inotify)
        except OSError as error:
            log.warning("Changes of resolvers are seen by polling only: %s.", error)
        # What changed between the first look and now was seen by nobody.
        self._changed()

    def stop(self) -> None:
        """End watching."""
        loop = asyncio.get_running_loop()
        if self._netlink is not None:
            loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None
        if self._inotify >= 0:
            loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def _watch_files(self) -> None:
        """Watch the directories in which the files lie, links followed too, since a file that is replaced is a new
        file; and the files themselves, since one that is mounted by itself changes in another directory. A second
        watch of the same thing changes nothing."""
        ends = [end for file in self._files if (end := _end_of(file)) is not None]
        places = {file.parent for file in (*self._files, *ends)}
        self._names = {file.name for file in (*self._files, *ends)}
        for place in (*places, *self._files, *self._folders):
            # Of what is not there yet, the nearest directory that is: systemd-resolved may start after us.
            existing = place
            while not existing.exists():
                self._names.add(existing.name)
                existing = existing.parent
            with suppress(FileNotFoundError):
                watch = _add_watch(self._inotify, existing)
                if existing in self._folders:
                    self._folder_watches.add(watch)

    def _drain_netlink(self, netlink: socket.socket) -> None:
        relevant = False
        try:
            for _ in range(_AT_ONCE):
                relevant |= self._matters(netlink.recv(65536))
        except BlockingIOError:
            pass
        except OSError as error:
            # ENOBUFS: more changed than fits into the buffer, and what it was is lost.
            log.debug("netlink events were lost: %s", error)
            self._told.clear()
            relevant = True
        if relevant:
            self._changed()

    def _matters(self, events: bytes) -> bool:
        """Whether any of these messages is of something that we follow."""
        offset, found = 0, False
        while offset + HEADER.size <= len(events):
            length, kind, *_ = HEADER.unpack_from(events, offset)
            if length < HEADER.size:
                break
            found |= self._event_matters(kind, events[offset + HEADER.size : offset + length])
            offset += (length + 3) & ~3
        return found

    def _event_matters(self, kind: int, message: bytes) -> bool:
        if kind in (routes.NEW_ROUTE, routes.DELETED_ROUTE):
            return not message[routes.DESTINATION_LENGTH]
        if kind in (routes.NEW_NEXTHOP, routes.DELETED_NEXTHOP):
            number = payloads(message, routes.NEXTHOP.size).get(routes.NHA_ID, bytes(4))
            return self._uses(int(struct.unpack("=I", number)[0]))
        if kind in (routes.NEW_ADDRESS, routes.DELETED_ADDRESS):
            return self._is_news(kind, message)
        return False

    def _is_news(self, kind: int, message: bytes) -> bool:
        """Whether an address is there now that was not, or the reverse. An address that is only prolonged, as a router
        may do with each of its advertisements, comes as one that is new."""
        family, length, _, _, interface = ADDRESS.unpack_from(message)
        key = struct.pack("=BBI", family, length, interface) + b"".join(ends(message))
        if self._told.get(key) == kind:
            return False
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[key] = kind
        return True

    def _drain_inotify(self) -> None:
        names = [name.encode() for name in self._names]
        events = os.read(self._inotify, 65536)
        offset, relevant = 0, False
        while offset < len(events):
            watch, _mask, _cookie, length = struct.unpack_from("iIII", events, offset)
            # A watched file's own events bear no name.
            named = events[offset + 16 : offset + 16 + length].rstrip(b"\0") in (*names, b"")
            relevant |= named or watch in self._folder_watches
            offset += 16 + length
        if relevant:
            self._changed()
            with suppress(OSError):  # polling sees what can't be watched
                self._watch_files()


def _event_socket() -> socket.socket:
    """A socket that gets an event for each change of an address, a default route, or a nexthop object."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        made.setblocking(False)
        # Root may have more than net.core.rmem_max; what it can't have is not worth an error.
        with suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENTS_BYTES)
        with suppress(OSError):
            _attach_filter(made)
        made.bind((0, 0))
        for group in _GROUPS:
            # A kernel before 5.3 has no group of nexthop objects, nor such objects.
            with suppress(OSError):
                made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        made.close()
        raise
    return made


def _attach_filter(netlink: socket.socket) -> None:
    """Have the kernel keep events of other routes than default routes to itself: on a router there may be thousands in
    a second. Without it, they are passed over when they are read."""
    # The filter reads numbers in network byte order; the message has them in the host's.
    kinds = [socket.htons(kind) for kind in (routes.NEW_ROUTE, routes.DELETED_ROUTE)]
    program = (
        (_LOAD_HALF, 0, 0, 4),  # the message's type
        (_JUMP_EQUAL, 1, 0, kinds[0]),
        (_JUMP_EQUAL, 0, 2, kinds[1]),
        (_LOAD_BYTE, 0, 0, HEADER.size + routes.DESTINATION_LENGTH),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    netlink.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))


def _inotify() -> int:
    """A descriptor for watches. Debian has no package for this that is kept up on both of its releases, and it is two
    calls."""
    return _checked(ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def _add_watch(descriptor: int, place: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return _checked(libc.inotify_add_watch(descriptor, os.fsencode(place), _WATCHED), str(place))


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return answer


def _end_of(file: Path) -> Path | None:
    """Where the links lead, if to anywhere: Python before 3.13 calls a circle of them a RuntimeError."""
    try:
        return file.resolve()
    except (OSError, RuntimeError):
        return None
