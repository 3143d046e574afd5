"""Netlink messages as bytes: requests written, answers taken apart.

Layouts are those of the kernel's `include/uapi/linux/netlink.h`. What reads a hundred thousand messages can't afford an
object for each: a message is given as the place where its body lies.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR, DONE = 2, 3
REQUEST, DUMP = 1, 0x300
DUMP_INTERRUPTED = 0x10

# struct nlmsghdr: length, kind, flags, sequence number, port.
HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# Behind the two flags (nested, network byte order) of an attribute's kind.
_KIND = 0x3FFF
_CODE = struct.Struct("=i")


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message that asks for something."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, sequence, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    """An attribute, filled up to a multiple of four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def messages(block: bytes, sequence: int) -> Iterator[tuple[int, int, int, int]]:
    """Kind, flags, and the place of the body (first byte, and the byte behind the last) of each message that answers
    the request of this number.

    Raises:
        KernelError: a message is longer than what there is of it.
    """
    at, size, head, unpack = 0, len(block), HEADER.size, HEADER.unpack_from
    while at + head <= size:
        length, kind, flags, answered, _port = unpack(block, at)
        if length < head or at + length > size:
            raise KernelError("the kernel's answer over netlink came in pieces; it is asked again the next time")
        if answered == sequence:
            yield kind, flags, at + head, at + length
        at += (length + 3) & ~3


def error_code(block: bytes, start: int, end: int) -> int:
    """The number of the error in the body of an ERROR or DONE message; 0 for none."""
    return -int(_CODE.unpack_from(block, start)[0]) if end - start >= _CODE.size else 0


def attributes(block: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """The places of the attributes' payloads by kind; of one that is there twice, the last. It ends where an attribute
    does not fit."""
    found = {}
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(block, start)
        if length < 4 or start + length > end:
            break
        found[kind & _KIND] = (start + 4, start + length)
        start += (length + 3) & ~3
    return found


def payloads(message: bytes, start: int) -> dict[int, bytes]:
    """The attributes' payloads by kind, from this place on to the message's end; see `attributes`."""
    return {kind: message[slice(*place)] for kind, place in attributes(message, start, len(message)).items()}
