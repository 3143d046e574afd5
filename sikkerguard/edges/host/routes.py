"""The default routes of every table and family: by which gateways, or straight out of which interfaces, they lead."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.host import routes
from sikkerguard.core.host.netlink import attribute, payloads
from sikkerguard.core.host.surroundings import Gateway
from sikkerguard.core.net.family import Family
from sikkerguard.edges.host.netlink import NetlinkReader, route_listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CLONED, _DEAD = 0x200, 0x1
# struct rtnexthop: length, flags, hops, interface.
_HOP = struct.Struct("=HBBi")
# Attributes of a nexthop object (linux/nexthop.h).
_NHA_GROUP, _NHA_OIF, _NHA_GATEWAY = 2, 5, 6
# struct nexthop_grp: id, weight, and reserved bytes.
_MEMBER = struct.Struct("=IBBH")
_LOOPBACK = 1  # its index in every network namespace (linux/net.h)

# A full table takes a while to list: 100,000 routes 50 ms. Between two listings that no event asked for lies this many
# times what the last one cost, but no more than a minute.
_PAUSE_PER_COST = 200.0
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class DefaultRoutes:
    """The ways out, in the kernel's order, each once, and the numbers of the nexthop objects on which they depend."""

    gateways: tuple[Gateway, ...]
    nexthops: frozenset[int] = frozenset()


def default_routes() -> DefaultRoutes:
    """All default routes of now.

    Raises:
        KernelError: they can't be read.
    """
    found: dict[Gateway, None] = {}
    nexthops: set[int] = set()
    for family in Family:
        request = routes.ROUTE.pack(family.number, *[0] * 8)
        for message in route_listing("routes", routes.GET_ROUTE, request, only=(routes.DESTINATION_LENGTH, 0)):
            found.update(dict.fromkeys(_ways_out(family, message, nexthops)))
    return DefaultRoutes(tuple(found), frozenset(nexthops))


def gateways() -> tuple[Gateway, ...]:
    """The ways out of now, in the kernel's order, each once.

    Raises:
        KernelError: they can't be read.
    """
    return default_routes().gateways


def interface_name(index: int) -> str:
    """The name of an interface, or its number where it has none any more."""
    with suppress(OSError):
        return socket.if_indextoname(index)
    return str(index)


class Routes:
    """The default routes, read again when `forget` was called, and else as often as it is cheap.

    `look` is for one thread at a time; `forget` and `uses` may be called by another one. `clock` gives seconds, and
    `cost` the seconds of processor time that this thread took until now.
    """

    def __init__(
        self,
        read: Callable[[], DefaultRoutes] = default_routes,
        clock: Callable[[], float] = time.monotonic,
        cost: Callable[[], float] = time.thread_time,
    ) -> None:
        self._read = read
        self._clock = clock
        self._cost = cost
        self._known = DefaultRoutes(())
        self._again_at = 0.0
        self._forgotten = True

    def look(self) -> DefaultRoutes:
        """The default routes.

        Raises:
            KernelError: they can't be read.
        """
        if self._forgotten or self._clock() >= self._again_at:
            began = self._cost()
            # Before it is read: what changes meanwhile may not be in it.
            self._forgotten = False
            try:
                self._known = self._read()
            except BaseException:
                # Whatever ended it, nothing was read: the next look asks the kernel again.
                self._forgotten = True
                raise
            self._again_at = self._clock() + min((self._cost() - began) * _PAUSE_PER_COST, _LONGEST_PAUSE)
        return self._known

    def forget(self) -> None:
        """They changed."""
        self._forgotten = True

    def uses(self, nexthop: int) -> bool:
        """Whether a default route depends on this nexthop object."""
        return nexthop in self._known.nexthops


def _ways_out(family: Family, message: bytes, nexthops: set[int]) -> Iterator[Gateway]:
    """Where a default route leads; the nexthop objects on which it depends are added to `nexthops`."""
    numbers = routes.ROUTE.unpack_from(message)
    kind, flags = numbers[7], numbers[8]
    # An unreachable or blackhole route leads nowhere, and a cached one is of another route.
    if numbers[0] != family.number or kind != routes.UNICAST or flags & _CLONED:
        return
    parts = payloads(message, routes.ROUTE.size)
    if routes.NEXTHOP_ID in parts:
        # With net.ipv4.nexthop_compat_mode=0 it is all that there is.
        yield from _through(_number(parts[routes.NEXTHOP_ID]), nexthops)
    elif routes.MULTIPATH in parts:
        for interface, hop_flags, hop in _hops(parts[routes.MULTIPATH]):
            yield from _way_out(family, interface, hop_flags, hop.items())
    else:
        yield from _way_out(family, _number(parts.get(routes.INTERFACE, bytes(4))), flags, parts.items())


def _way_out(family: Family, interface: int, flags: int, parts: Iterable[tuple[int, bytes]]) -> Iterator[Gateway]:
    found = False
    for kind, value in parts:
        if kind == routes.GATEWAY:
            found = True
            yield _gateway(value, interface)
        elif kind == routes.VIA:
            # struct rtvia: an IPv4 route by way of an IPv6 neighbour, or the reverse (RFC 5549).
            found = True
            yield _gateway(value[2:], interface)
    if not found and interface not in (0, _LOOPBACK) and not flags & _DEAD:
        yield Gateway(family, "", interface)


def _hops(multipath: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """Interface, flags and attributes of each hop."""
    offset = 0
    while offset + _HOP.size <= len(multipath):
        length, flags, _, interface = _HOP.unpack_from(multipath, offset)
        if length < _HOP.size:
            return
        yield interface, flags, payloads(multipath[offset : offset + length], _HOP.size)
        offset += (length + 3) & ~3


def _through(nexthop: int, seen: set[int]) -> Iterator[Gateway]:
    """Where a nexthop object leads: itself, or each member of the group that it is."""
    seen.add(nexthop)
    request = routes.NEXTHOP.pack(0, 0, 0, 0, 0) + attribute(routes.NHA_ID, struct.pack("=I", nexthop))
    with NetlinkReader(socket.NETLINK_ROUTE, "nexthop objects") as reader:
        message = reader.ask(routes.GET_NEXTHOP, request)
    if message is None:
        return  # gone since, as its routes are
    family_number, *_, flags = routes.NEXTHOP.unpack_from(message)
    parts = payloads(message, routes.NEXTHOP.size)
    if _NHA_GROUP in parts:
        for member, *_ in _MEMBER.iter_unpack(parts[_NHA_GROUP]):
            yield from _through(member, seen)
        return
    # One by way of an interface alone serves both families; it is of the one by which it was made.
    family = Family.V6 if family_number == Family.V6.number else Family.V4
    hop = [(routes.GATEWAY, parts[_NHA_GATEWAY])] if _NHA_GATEWAY in parts else []
    yield from _way_out(family, _number(parts.get(_NHA_OIF, bytes(4))), flags, hop)


def _gateway(packed: bytes, interface: int) -> Gateway:
    family = Family.V4 if len(packed) == Family.V4.size else Family.V6
    return Gateway(family, socket.inet_ntop(family.number, packed), interface)


def _number(data: bytes) -> int:
    return int(struct.unpack("=I", data[:4])[0])
