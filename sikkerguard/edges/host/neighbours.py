"""What the kernel knows of its neighbours on the link: of IPv4 by ARP, of IPv6 by neighbour discovery."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from sikkerguard.core.host.netlink import payloads
from sikkerguard.core.host.routes import GET_NEIGHBOUR
from sikkerguard.edges.host.netlink import route_listing

if TYPE_CHECKING:
    from sikkerguard.core.host.surroundings import Gateway

# linux/neighbour.h: the states of an entry.
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
# What the kernel is about to find out, and what says that nobody answered when asked.
UNDECIDED = frozenset({INCOMPLETE, STALE, DELAY, PROBE})
LOST = frozenset({INCOMPLETE, FAILED})
# struct ndmsg: family, padding, interface, state, flags, type; and its attribute with the address.
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_DESTINATION = 1


def states(gateway: Gateway) -> tuple[int, ...]:
    """The states of the entries of a gateway; without any, the kernel never spoke to it.

    Raises:
        KernelError: the table can't be read.
    """
    packed = socket.inet_pton(gateway.family.number, gateway.address)
    request = _NEIGHBOUR.pack(gateway.family.number, 0, 0, 0, 0)
    found = []
    for message in route_listing("neighbours", GET_NEIGHBOUR, request, only=(0, gateway.family.number)):
        _, interface, state, _, _ = _NEIGHBOUR.unpack_from(message)
        # Asked before the attributes are decoded: a busy link has a thousand neighbours.
        if (
            packed in message
            and interface == (gateway.interface or interface)
            and payloads(message, _NEIGHBOUR.size).get(_DESTINATION) == packed
        ):
            found.append(state)
    return tuple(found)
