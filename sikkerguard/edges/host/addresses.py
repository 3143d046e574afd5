"""This host's own addresses, and the far ends of its point-to-point links."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sikkerguard.core.host.netlink import payloads
from sikkerguard.core.host.routes import GET_ADDRESS
from sikkerguard.core.net.family import Family
from sikkerguard.edges.host.netlink import route_listing

# struct ifaddrmsg: family, prefix length, flags, scope, interface.
ADDRESS = struct.Struct("=4BI")
# On a point-to-point link IFA_LOCAL is our end and IFA_ADDRESS the other one; on others both are ours, or there is only
# one (rtnetlink(7)).
_ADDRESS, _LOCAL = 1, 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """Packed addresses, in the kernel's order, each once: this host's `own`, and its `peers`."""

    own: tuple[bytes, ...]
    peers: tuple[bytes, ...]


def addresses() -> Addresses:
    """The addresses on every interface.

    Raises:
        KernelError: they can't be read.
    """
    own: dict[bytes, None] = {}
    peers: dict[bytes, None] = {}
    for family in Family:
        # A kernel without IPv6 answers with what it has of IPv4.
        request = ADDRESS.pack(family.number, 0, 0, 0, 0)
        for message in route_listing("addresses", GET_ADDRESS, request, only=(0, family.number)):
            local, peer = ends(message)
            if local:
                own[local] = None
            if peer and peer != local:
                peers[peer] = None
    return Addresses(tuple(own), tuple(peers))


def ends(message: bytes) -> tuple[bytes, bytes]:
    """Our end and the other one, packed, of a message about an address; equal where there is no other one."""
    parts = payloads(message, ADDRESS.size)
    other = parts.get(_ADDRESS, b"")
    return parts.get(_LOCAL, other), other
