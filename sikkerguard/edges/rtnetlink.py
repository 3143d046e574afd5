"""rtnetlink, spoken straight: listings of routes, addresses and neighbours, of which only what is wanted is decoded.

A full listing of a router's table is a hundred thousand messages. To look at one byte of each takes a tenth of a
microsecond, to decode it a hundred times as long. Numbers and layouts are those of the kernel's
`include/uapi/linux/netlink.h` and `include/uapi/linux/rtnetlink.h`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEW_LINK, NEW_ADDRESS, DELETED_ADDRESS, GET_ADDRESS = 16, 20, 21, 22
NEW_ROUTE, DELETED_ROUTE, GET_ROUTE = 24, 25, 26
GET_NEIGHBOUR = 30
NEW_NEXTHOP, DELETED_NEXTHOP, GET_NEXTHOP = 104, 105, 106

# struct nlmsghdr: length, type, flags, sequence number, port.
HEADER = struct.Struct("=IHHII")
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_TYPE_MASK = 0x3FFF
# The kernel fills at most 32 KiB at a time.
_RECEIVE = 1 << 16
# The kernel answers at once; without a limit a lost answer would hang its reader for good.
_ANSWER_SECONDS = 5.0
# A listing while the listed changes may lack an entry. On a host where something changes all the time each may be
# such a one; what was in any of so many is there.
_TRIES = 5


def _asked(kind: int, flags: int, request: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.send(HEADER.pack(HEADER.size + len(request), kind, flags, 1, 0) + request)
    except OSError:
        connection.close()
        raise
    return connection


def listing(
    kind: int, request: bytes, at: int, value: int, ask: Callable[[int, int, bytes], Any] = _asked
) -> list[bytes]:
    """The messages of a dump, without their headers, in which byte `at` has this value.

    `kind` is the message that asks, and `request` its body; `ask` sends it, with these flags, and gives the socket. A
    dump that was interrupted is read again; if that goes on, the answer is what any of them had.

    Raises:
        KernelError: the kernel refuses, or can't be asked.
    """
    found: dict[bytes, None] = {}
    for _ in range(_TRIES):
        messages, whole = _dump(lambda: ask(kind, _REQUEST | _DUMP, request), at, value)
        if whole:
            return messages
        found.update(dict.fromkeys(messages))
    return list(found)


def one(kind: int, request: bytes) -> bytes | None:
    """The message that answers this request, without its header, or None where there is no such thing.

    Raises:
        KernelError: the kernel can't be asked.
    """
    try:
        with _asked(kind, _REQUEST, request) as connection:
            sender = -1
            while sender:  # 0 is the kernel
                answer, (sender, _) = connection.recvfrom(_RECEIVE)
    except OSError as error:
        raise _unreadable(str(error)) from error
    _, answered, _, _, _ = HEADER.unpack_from(answer)
    return None if answered == _ERROR else answer[HEADER.size :]


def attributes(message: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each attribute from this offset on."""
    while offset + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, offset)
        if length < 4:
            return
        yield kind & _TYPE_MASK, message[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _dump(ask: Callable[[], Any], at: int, value: int) -> tuple[list[bytes], bool]:
    """The wanted messages, and whether the listing was not interrupted."""
    messages: list[bytes] = []
    whole = True
    place = HEADER.size + at
    head = struct.Struct("=IHH").unpack_from
    block = bytearray(_RECEIVE)
    try:
        with ask() as connection:
            while True:
                size, (sender, _) = connection.recvfrom_into(block)
                if sender:
                    continue  # another program's, not the kernel's
                offset = 0
                while offset < size:
                    length, answered, flags = head(block, offset)
                    if flags & _INTERRUPTED:
                        whole = False
                    if answered in (_DONE, _ERROR):
                        if (code := _code(block, offset)) == errno.EINTR:
                            return messages, False
                        if code:
                            raise _unreadable(os.strerror(code))
                        return messages, whole
                    if length < HEADER.size:
                        raise _unreadable("a message without a length")
                    if block[offset + place] == value:
                        messages.append(bytes(block[offset + HEADER.size : offset + length]))
                    offset += (length + 3) & ~3
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            return messages, False
        raise _unreadable(str(error)) from error


def _code(block: bytearray, offset: int) -> int:
    """The number of the error with which a listing ended, or 0."""
    return max(0, -int(struct.unpack_from("=i", block, offset + HEADER.size)[0]))


def _unreadable(reason: str) -> KernelError:
    return KernelError(f"routes and addresses can't be read: {reason}")
