"""The kernel asked over netlink: listings, of which only what is wanted is taken apart, and single questions.

A full listing of a router's table is a hundred thousand messages. To look at one byte of each takes a third of a
microsecond, to decode all of it thirty times as long. Sets are reached by a reader of their own (`ipset_netlink`).
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from sikkerguard.core.host.netlink import DONE, DUMP, DUMP_INTERRUPTED, ERROR, error_code, messages, request
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

# What one answer holds at most is 32 KiB, whatever fits into one message more (net/netlink/af_netlink.c).
_RECEIVE = 1 << 18
# The kernel answers at once; without a limit a lost answer would hang its reader for good.
_ANSWER_SECONDS = 5.0
# A listing while the listed changes may lack an entry. On a host where something changes all the time each may be
# such a one; what was in any of so many is there.
_TRIES = 5


def _opened(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


class ListingBroken(KernelError):
    """The kernel broke off a listing; what it had sent until then is right, and there may be more."""


class NetlinkReader:
    """A netlink socket that asks and reads. Not for use by two threads at once; a context manager that closes it.

    Every method raises `KernelError` when the kernel refuses, sends no answer for five seconds, or is not done at the
    `deadline` (of the monotonic clock; None for no further limit); `what` says in a word what is read. `interrupted`
    becomes true when what is listed changed meanwhile, so that something may be missing. `open_socket` makes the
    socket for a netlink protocol.
    """

    def __init__(
        self,
        protocol: int,
        what: str,
        deadline: float | None = None,
        open_socket: Callable[[int], Any] = _opened,
    ) -> None:
        self._what = what
        self._deadline = deadline
        self._sequence = 0
        self.interrupted = False
        try:
            self._socket = open_socket(protocol)
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> NetlinkReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes, only: tuple[int, int] | None = None) -> Iterator[tuple[bytes, int, int]]:
        """The place of each body of a listing, as (block, first byte, byte behind the last); with `only`, of those
        that have at this place of their body, counted from 0, a byte of this value.

        Raises:
            ListingBroken: the kernel broke it off.
            KernelError: it can't be read.
        """
        sequence = self._send(kind, DUMP, body)
        place, value = only or (0, 0)
        while True:
            block = self._receive()
            for kind_of, flags, start, end in messages(block, sequence):
                if flags & DUMP_INTERRUPTED:
                    self.interrupted = True
                if kind_of in (ERROR, DONE):
                    if code := error_code(block, start, end):
                        raise self._failure(OSError(code, os.strerror(code)))
                    return
                if only is None or (start + place < end and block[start + place] == value):
                    yield block, start, end

    def ask(self, kind: int, body: bytes) -> bytes | None:
        """The body of the one answer; None where the kernel has only an error, as for what is not there.

        Raises:
            KernelError: it can't be asked.
        """
        sequence = self._send(kind, 0, body)
        while True:
            block = self._receive()
            for kind_of, _flags, start, end in messages(block, sequence):
                return None if kind_of == ERROR else block[start:end]

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence += 1
        try:
            self._socket.settimeout(_ANSWER_SECONDS)
            self._socket.send(request(kind, flags, self._sequence, body))
        except OSError as error:
            raise self._failure(error) from error
        return self._sequence

    def _receive(self) -> bytes:
        """The next block of messages that the kernel, and no other program, sent."""
        until = time.monotonic() + _ANSWER_SECONDS
        if self._deadline is not None:
            until = min(until, self._deadline)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise self._failure(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
            self._socket.settimeout(left)
            try:
                block, sender = self._socket.recvfrom(_RECEIVE)
            except OSError as error:
                raise self._failure(error) from error
            if not sender[0]:  # the number of a program's socket; 0 is the kernel
                return bytes(block)

    def _failure(self, error: OSError) -> KernelError:
        # EINTR: the listed changed too much to go on. ENOBUFS: there was no memory for the next block.
        kind = ListingBroken if error.errno in (errno.EINTR, errno.ENOBUFS) else KernelError
        return kind(f"{self._what} can't be read over netlink ({error.strerror or error})")


def route_listing(
    what: str, kind: int, body: bytes, only: tuple[int, int], open_socket: Callable[[int], Any] = _opened
) -> list[bytes]:
    """The bodies of a listing of rtnetlink's, of those messages that `only` names (see `NetlinkReader.dump`).

    `kind` is the message that asks, `body` what is in it, and `what` says in a word what is listed. A listing that was
    interrupted or broken off is read again; if that goes on, the answer is what any of them had.

    Raises:
        KernelError: the kernel refuses, or can't be asked.
    """
    found: dict[bytes, None] = {}
    for _ in range(_TRIES):
        bodies: list[bytes] = []
        with NetlinkReader(socket.NETLINK_ROUTE, what, open_socket=open_socket) as reader:
            try:
                for block, start, end in reader.dump(kind, body, only):
                    bodies.append(block[start:end])
            except ListingBroken:
                reader.interrupted = True
            if not reader.interrupted:
                return bodies
        found.update(dict.fromkeys(bodies))
    return list(found)
