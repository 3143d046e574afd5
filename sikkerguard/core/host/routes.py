"""rtnetlink's numbers and layouts, and what is needed to tell who is behind this host.

They are those of the kernel's `include/uapi/linux/rtnetlink.h` and `nexthop.h`.
"""

from __future__ import annotations

import struct

from sikkerguard.core.host.netlink import attribute, payloads
from sikkerguard.core.net.family import Family

# The kinds of messages.
NEW_ADDRESS, DELETED_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DELETED_ROUTE, GET_ROUTE = 24, 25, 26
GET_NEIGHBOUR = 30
NEW_NEXTHOP, DELETED_NEXTHOP, GET_NEXTHOP = 104, 105, 106

# struct rtmsg: family, destination's length, source's length, TOS, table, protocol, scope, type; flags.
ROUTE = struct.Struct("=8BI")
# The place of the destination's length in it.
DESTINATION_LENGTH = 1
# Its type, and the kinds of its attributes.
UNICAST = 1
DESTINATION, INTERFACE, GATEWAY, MULTIPATH, VIA, NEXTHOP_ID = 1, 4, 5, 9, 18, 30
# RTM_F_FIB_MATCH: the answer is the route that was found, and not one for this address alone.
_WHOLE_ROUTE = 0x2000

# struct nhmsg: family, scope, protocol, reserved; flags. And the attribute with the object's number.
NEXTHOP = struct.Struct("=4BI")
NHA_ID = 1

# No network is wider than this, in prefix length.
_SHORTEST = {Family.V4: 8, Family.V6: 16}


def route_wish(family: Family, address: bytes) -> bytes:
    """The body of a request for the route to this address."""
    head = ROUTE.pack(family.number, family.bits, 0, 0, 0, 0, 0, 0, _WHOLE_ROUTE)
    return head + attribute(DESTINATION, address)


def is_attached(family: Family, route: bytes) -> bool:
    """Whether the route, the body of a message, leads straight to a neighbour, by way of an interface and of no
    gateway. One that is as wide as no network is a way to everywhere."""
    if len(route) < ROUTE.size:
        return False
    _family, length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(route)
    found = payloads(route, ROUTE.size)
    straight = INTERFACE in found and not found.keys() & {GATEWAY, VIA, MULTIPATH}
    return kind == UNICAST and length >= _SHORTEST[family] and straight
