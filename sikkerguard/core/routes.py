"""Addresses and routes, as rtnetlink sends them: what is needed to tell who is this host, and who is behind it.

Layouts and numbers are those of the kernel's `include/uapi/linux/rtnetlink.h` and `if_addr.h`.
"""

from __future__ import annotations

import struct

from sikkerguard.core.model import Family
from sikkerguard.core.netlink import attribute, attributes

GET_ADDRESSES, GET_ROUTE = 22, 26

_ADDRESS, _LOCAL = 1, 2
_DESTINATION, _GATEWAY, _MULTIPATH, _VIA, _DEVICE = 1, 5, 9, 18, 4
_ROUTE = struct.Struct("=BBBBBBBBI")
_ADDRESS_SIZE = 8
_UNICAST = 1
# RTM_F_FIB_MATCH: the answer is the route that was found, and not one for this address alone.
_WHOLE_ROUTE = 0x2000


def addresses_wish(family: Family) -> bytes:
    """The body of a request for the addresses of all interfaces."""
    return bytes([family.number]) + bytes(_ADDRESS_SIZE - 1)


def read_address(block: bytes, start: int, end: int) -> bytes | None:
    """Our end's address in the body of one message, packed."""
    found = attributes(block, start + _ADDRESS_SIZE, end)
    # On a point-to-point link the other one is the peer's.
    place = found.get(_LOCAL) or found.get(_ADDRESS)
    address = block[slice(*place)] if place else b""
    return address if len(address) in (Family.V4.size, Family.V6.size) else None


def route_wish(family: Family, address: bytes) -> bytes:
    """The body of a request for the route to this address."""
    head = _ROUTE.pack(family.number, family.bits, 0, 0, 0, 0, 0, 0, _WHOLE_ROUTE)
    return head + attribute(_DESTINATION, address)


# No network is wider than this, in prefix length.
_SHORTEST = {Family.V4: 8, Family.V6: 16}


def is_attached(family: Family, block: bytes, start: int, end: int) -> bool:
    """Whether the route in the body of this message leads straight to a neighbour, by way of an interface and of no
    gateway. One that is as wide as no network is a way to everywhere."""
    if end - start < _ROUTE.size:
        return False
    _family, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(block, start)
    found = attributes(block, start + _ROUTE.size, end)
    straight = _DEVICE in found and not found.keys() & {_GATEWAY, _VIA, _MULTIPATH}
    return kind == _UNICAST and length >= _SHORTEST[family] and straight
