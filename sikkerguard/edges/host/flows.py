"""Established and attempted connections, from connection tracking where it is in use, and from the sockets.

Everything is read over netlink and nothing is changed: no hook is registered, and connection tracking that is not in
use is not asked for, since the question alone would load it.
"""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.host import conntrack, routes, sockets
from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.ports.protocols import TCP, UDP
from sikkerguard.edges.host.addresses import addresses
from sikkerguard.edges.host.netlink import NetlinkReader
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sikkerguard.core.host.flows import Flow

log = logging.getLogger(__name__)

_SOCK_DIAG, _NETFILTER = 4, 12
# How many entries connection tracking has in this network namespace; not there where it is not loaded.
_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_DEFAULT = range(32768, 61000)  # net/ipv4/af_inet.c
_LOOPBACK = 127
# A table of 262,144 entries takes about a second of a slow core; of one that has millions, as much as this allows.
_SECONDS = 5.0
# Flows of each direction, each some 200 bytes: whoever opens many to us does not push out our own.
_MOST = 10_000
# Routes that are asked for, one for each caller that something was passed on for.
_MOST_LOOKUPS = 1_000
# The addresses to which the internet knows no way.
_PRIVATE = {
    family: [(entry.prefix.first, entry.prefix.last(family)) for entry in ALWAYS_ALLOWED if entry.family is family]
    for family in Family
}
_CONNECTED = ~(1 << sockets.TIME_WAIT | 1 << sockets.CLOSED | 1 << sockets.LISTEN) & 0xFFF


def read_flows(covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
    """The flows of this network namespace with peers that it `covers`, each once; of all peers if it is None.

    Peers on the host itself are left out. Of each direction there are 10,000 at most, and it takes five seconds at
    most; what is left out by that is said in the log. 200,000 tracked entries take about a second of a core. It needs
    CAP_NET_ADMIN for connection tracking, and nothing for sockets.

    Raises:
        KernelError: neither connection tracking nor sockets can be read, or this host's addresses can't.
    """
    reading = _Reading(frozenset(addresses().own), covers)
    failures: list[KernelError] = []
    # Sockets come first: where both know a connection, connection tracking knows who opened it.
    try:
        reading.read_sockets()
    except KernelError as error:
        failures.append(error)
    tracked = False
    try:
        tracked = reading.read_tracked()
    except KernelError as error:
        failures.append(error)
    if failures and not (tracked or reading.sockets_read):
        raise KernelError(f"connections can't be seen: {'; '.join(map(str, failures))}")
    for failure in failures:
        log.warning("Some connections are not seen: %s.", failure)
    return reading.flows()


def bound_udp_ports() -> frozenset[int]:
    """The local ports of all UDP sockets, also of those that talk to one peer only.

    Raises:
        KernelError: they can't be read.
    """
    with NetlinkReader(_SOCK_DIAG, "sockets", time.monotonic() + _SECONDS) as reader:
        return frozenset(each.local_port for family in Family for each in _sockets(reader, family, UDP, 0xFFF))


def _sockets(reader: NetlinkReader, family: Family, protocol: int, states: int) -> Iterator[sockets.Socket]:
    for body in reader.dump(sockets.GET, sockets.wish(family, protocol, states)):
        each = sockets.read_socket(*body)
        if each is not None:
            yield each


def _ephemeral() -> range:
    """The local ports that the kernel chooses from for callers."""
    try:
        first, last = map(int, _EPHEMERAL.read_text("ascii").split())
    except (OSError, ValueError):
        return _EPHEMERAL_DEFAULT
    return range(first, last + 1)


class _Reading:
    """One look at everything."""

    def __init__(self, own: frozenset[bytes], covers: Callable[[Family, int], bool] | None) -> None:
        self.sockets_read = False
        self._own = own
        self._covers = covers
        self._deadline = time.monotonic() + _SECONDS
        self._listening: set[tuple[int, int, bytes]] = set()
        # Where only its port says that a socket was the caller: by protocol, and address and port of both ends.
        self._presumed: dict[tuple[int, bytes, int, bytes, int], Flow] = {}
        # By whether they are outgoing.
        self._found: dict[bool, dict[Flow, None]] = {True: {}, False: {}}
        self._full = False
        self._attached: dict[bytes, bool] = {}

    def flows(self) -> tuple[Flow, ...]:
        """All that was found."""
        for flow in self._presumed.values():
            self._add(flow)
        if self._full:
            log.warning("There are more connections than the %d of each direction that were looked at.", _MOST)
        return (*self._found[True], *self._found[False])

    def read_sockets(self) -> None:
        """TCP and UDP, both families."""
        ephemeral = _ephemeral()
        with NetlinkReader(_SOCK_DIAG, "sockets", self._deadline) as reader:
            for protocol, listening in ((TCP, 1 << sockets.LISTEN), (UDP, 1 << sockets.CLOSED)):
                # An IPv6 socket may take IPv4 connections: what listens is known of both before any is judged.
                for family in Family:
                    self._listening.update(
                        (protocol, each.local_port, each.local)
                        for each in _sockets(reader, family, protocol, listening)
                    )
                states = _CONNECTED if protocol == TCP else 1 << sockets.ESTABLISHED
                for family in Family:
                    for each in _sockets(reader, family, protocol, states):
                        if each.remote not in self._own and self._wanted(each.remote):
                            self._add_socket(each, protocol, ephemeral)
        self.sockets_read = True

    def read_tracked(self) -> bool:
        """Connection tracking's entries; whether it is in use at all."""
        try:
            if not int(_TRACKED.read_text("ascii")):
                return False
        except (OSError, ValueError):
            return False
        own, wanted, listens, behind = self._own, self._wanted, self._listens_tcp, self._is_behind
        with NetlinkReader(_NETFILTER, "connection tracking", self._deadline) as reader:
            # An nfgenmsg of no family asks for both.
            for body in reader.dump(conntrack.GET, bytes(4)):
                entry = conntrack.read_entry(*body)
                if entry is None:
                    continue
                if entry.target != entry.answering:
                    # The socket knows whom it called, and not who answers in his place.
                    self._presumed.pop(
                        (entry.protocol, entry.source, entry.source_port, entry.target, entry.target_port), None
                    )
                found = conntrack.flows_of(entry, own, wanted, listens, behind)
                for flow in found:
                    self._add(flow)
                if found and not found[0].outgoing:
                    here = (entry.answering, entry.answering_port)
                    self._presumed.pop((entry.protocol, *here, entry.answered, entry.answered_port), None)
        return True

    def _add_socket(self, each: sockets.Socket, protocol: int, ephemeral: range) -> None:
        flow = sockets.socket_flow(each, protocol, self._listens(protocol, each.local, each.local_port), ephemeral)
        if flow.outgoing and flow.established:
            key = (protocol, each.local, each.local_port, each.remote, each.remote_port)
            if len(self._presumed) < _MOST:
                self._presumed[key] = flow
            else:
                self._full = True
        else:
            self._add(flow)

    def _add(self, flow: Flow) -> None:
        found = self._found[flow.outgoing]
        if len(found) < _MOST:
            found[flow] = None
        elif flow not in found:
            self._full = True

    def _wanted(self, address: bytes) -> bool:
        family = family_of(address)
        if self._covers is None:
            # Every address of 127.0.0.0/8 is this host's, and an interface has one of them.
            return family is Family.V6 or address[0] != _LOOPBACK
        return self._covers(family, int.from_bytes(address, "big"))

    def _listens(self, protocol: int, address: bytes, port: int) -> bool:
        return (protocol, port, sockets.ANYWHERE) in self._listening or (protocol, port, address) in self._listening

    def _listens_tcp(self, address: bytes, port: int) -> bool:
        return self._listens(TCP, address, port)

    def _is_behind(self, address: bytes) -> bool:
        """Whether something with this address is behind this host: its address is one to which the internet knows
        no way, or the route to it leads straight to a network that this host is in."""
        family, number = family_of(address), int.from_bytes(address, "big")
        if any(first <= number <= last for first, last in _PRIVATE[family]):
            return True
        if address not in self._attached and len(self._attached) < _MOST_LOOKUPS:
            with NetlinkReader(socket.NETLINK_ROUTE, "routes", self._deadline) as reader:
                route = reader.ask(routes.GET_ROUTE, routes.route_wish(family, address))
                self._attached[address] = route is not None and routes.is_attached(family, route)
        return self._attached.get(address, False)
