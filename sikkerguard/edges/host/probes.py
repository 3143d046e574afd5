"""The self-test's eyes: does the gateway answer, does DNS resolve, does the API, or the proxy, take a connection?

Each probe sends its own packets and waits for the answer to just these: a cache can't answer for a resolver that was
cut off. What is done about a result is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import struct
from typing import TYPE_CHECKING

from sikkerguard.core.lists.allowlist import PROXY
from sikkerguard.core.net.family import Family
from sikkerguard.core.selftest import Outcome, ProbeResult
from sikkerguard.core.sikkerapi.endpoint import MAX_ADDRESSES
from sikkerguard.edges.host import neighbours
from sikkerguard.edges.host.routes import interface_name
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sikkerguard.core.host.surroundings import Gateway
    from sikkerguard.core.sikkerapi.endpoint import Endpoint
log = logging.getLogger(__name__)

# Three tries, so that one lost packet on a busy line is not taken for a lock-out.
_TRIES = 3
_ANSWER_SECONDS = 1.0
_CONNECT_SECONDS = 4.0

_ECHO = {Family.V4: (8, 0), Family.V6: (128, 129)}  # request and reply: RFC 792, RFC 4443
_DNS_PORT = 53
# Answers that show a working resolver: NOERROR and NXDOMAIN (RFC 1035, section 4.1.1).
_RESOLVED = (0, 3)
# The kernel waits five seconds before it asks a neighbour that it had not heard of for a while, and then asks it three
# times, a second apart (delay_first_probe_time, ucast_solicit and retrans_time_ms in arp(7) and ip-sysctl.rst): who is
# there has answered by then.
_NEIGHBOUR_SECONDS, _NEIGHBOUR_LOOK_SECONDS = 7.0, 0.2


class Probes:
    """Runs every probe at once. The callables say where to look at that moment; `endpoint` is what requests connect
    to."""

    def __init__(
        self,
        gateways: Callable[[], Iterable[Gateway]],
        resolvers: Callable[[], Iterable[str]],
        endpoint: Endpoint,
    ) -> None:
        self._gateways = gateways
        self._resolvers = resolvers
        self._endpoint = endpoint
        self._said: set[ProbeResult] = set()

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        """The findings, in a fixed order: gateways, resolvers, the API or the proxy, by the addresses at which requests
        find it."""
        gateways = await asyncio.to_thread(lambda: tuple(self._gateways()))
        checks: list[Awaitable[ProbeResult | tuple[ProbeResult, ...]]] = [
            *(_gateway(gateway) if gateway.address else self._no_gateway(gateway) for gateway in gateways),
            *(_query(resolver, self._endpoint.host) for resolver in self._resolvers()),
            _connect(self._endpoint, tuple(api_addresses)[:MAX_ADDRESSES]),
        ]
        results: list[ProbeResult] = []
        for found in await asyncio.gather(*checks):
            results += [found] if isinstance(found, ProbeResult) else found
        return tuple(results)

    async def _no_gateway(self, gateway: Gateway) -> ProbeResult:
        name = f"default route by {interface_name(gateway.interface)} ({gateway.family.label})"
        result = ProbeResult(name, Outcome.ABSENT, "names no gateway that could be asked")
        if result not in self._said:
            log.info("Self-test: %s.", result)
        self._said.add(result)
        return result


async def _gateway(gateway: Gateway) -> tuple[ProbeResult, ...]:
    """Its two witnesses: either may be silent where all is well, so it is lost where both say so."""
    ping = await _ping(gateway)
    # Asked behind the ping, which has made the kernel look for its neighbour.
    return ping, await _neighbour(gateway, _NEIGHBOUR_SECONDS if ping.outcome is Outcome.FAILED else 0.0)


async def _ping(gateway: Gateway) -> ProbeResult:
    name, subject = f"gateway {gateway.address} by ping", f"gateway {gateway.address}"
    try:
        connection = _ping_socket(gateway)
    except OSError as error:
        return ProbeResult(name, Outcome.ABSENT, f"can't be pinged: {error.strerror}", subject)
    loop = asyncio.get_running_loop()
    try:
        for sequence in range(_TRIES):
            token = secrets.token_bytes(16)
            request, reply = _ECHO[gateway.family]
            try:
                await loop.sock_sendall(connection, _echo(gateway.family, request, sequence, token))
                async with asyncio.timeout(_ANSWER_SECONDS):
                    while not _is_reply(gateway.family, await loop.sock_recv(connection, 2048), reply, token):
                        pass
            except (TimeoutError, OSError):
                continue
            return ProbeResult(name, Outcome.PASSED, "answered", subject)
    finally:
        connection.close()
    return ProbeResult(name, Outcome.FAILED, f"did not answer {_TRIES} pings", subject)


def _ping_socket(gateway: Gateway) -> socket.socket:
    """A socket for pings: the kind that needs no privilege where the host allows it, else a raw one."""
    protocol = socket.IPPROTO_ICMP if gateway.family is Family.V4 else socket.IPPROTO_ICMPV6
    try:
        connection = socket.socket(gateway.family.number, socket.SOCK_DGRAM, protocol)
    except PermissionError:
        connection = socket.socket(gateway.family.number, socket.SOCK_RAW, protocol)
    connection.setblocking(False)
    try:
        if gateway.family is Family.V4:
            connection.connect((gateway.address, 0))
        else:
            scope = gateway.interface if gateway.address.startswith("fe80:") else 0
            connection.connect((gateway.address, 0, 0, scope))
    except OSError:
        connection.close()
        raise
    return connection


def _echo(family: Family, kind: int, sequence: int, token: bytes) -> bytes:
    """An echo request. The kernel computes ICMPv6's checksum by itself, and ICMP's only on unprivileged sockets."""
    identifier = os.getpid() & 0xFFFF
    packet = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence) + token
    if family is Family.V6:
        return packet
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, identifier, sequence) + token


def _is_reply(family: Family, packet: bytes, kind: int, token: bytes) -> bool:
    # A raw IPv4 socket hands the IP header over too; unprivileged and IPv6 ones do not.
    offset = (packet[0] & 0x0F) * 4 if family is Family.V4 and packet[0] >> 4 == 4 else 0
    return len(packet) > offset and packet[offset] == kind and packet.endswith(token)


async def _neighbour(gateway: Gateway, seconds: float) -> ProbeResult:
    """What the kernel's neighbour table says of the gateway; where ICMP is filtered or limited this is the only word of
    it. An entry that is not decided yet is waited for, so many seconds at most."""
    name, subject = f"gateway {gateway.address} by neighbour table", f"gateway {gateway.address}"
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            states = await asyncio.to_thread(neighbours.states, gateway)
        except KernelError as error:
            return ProbeResult(name, Outcome.ABSENT, f"is not known: {error}", subject)
        if neighbours.REACHABLE in states:
            return ProbeResult(name, Outcome.PASSED, "is reachable", subject)
        if not neighbours.UNDECIDED.intersection(states) or loop.time() >= deadline:
            break
        await asyncio.sleep(_NEIGHBOUR_LOOK_SECONDS)
    # Of a permanent entry, or one of a link without addresses, the kernel never asks.
    if states and neighbours.LOST.issuperset(states):
        return ProbeResult(name, Outcome.FAILED, "is no longer reachable", subject)
    return ProbeResult(name, Outcome.ABSENT, "has no entry that tells", subject)


async def _query(resolver: str, host: str) -> ProbeResult:
    name = f"DNS by {resolver}"
    loop = asyncio.get_running_loop()
    family = Family.V6 if ":" in resolver else Family.V4
    if resolver.startswith("fe80:"):
        return ProbeResult(name, Outcome.ABSENT, "can't be asked: it is link-local, and its interface is not known")
    try:
        connection = socket.socket(family.number, socket.SOCK_DGRAM)
    except OSError as error:  # a resolver of a family that this kernel does not have
        return ProbeResult(name, Outcome.ABSENT, f"can't be asked: {error.strerror}")
    with connection:
        connection.setblocking(False)
        for _ in range(_TRIES):
            question = _question(host)
            try:
                connection.connect((resolver, _DNS_PORT))
                await loop.sock_sendall(connection, question)
                async with asyncio.timeout(_ANSWER_SECONDS):
                    while (code := _response_code(question, await loop.sock_recv(connection, 4096))) is None:
                        pass
            except (TimeoutError, OSError):
                continue
            if code in _RESOLVED:
                return ProbeResult(name, Outcome.PASSED, "resolves")
    return ProbeResult(name, Outcome.FAILED, f"did not resolve in {_TRIES} tries")


def _question(host: str) -> bytes:
    """A query for the address of a name that nobody asked for before (RFC 1035, section 4.1).

    A local cache would answer for the API's own name long after its upstream was cut off. An API given by its address
    has no domain; then the root's name servers are asked for.
    """
    header = struct.pack("!HHHHHH", secrets.randbits(16), 0x0100, 1, 0, 0, 0)
    labels = host.rstrip(".").split(".")
    if ":" in host or labels[-1].isdigit():
        return header + b"\0" + struct.pack("!HH", 2, 1)
    encoded = [label.encode("idna") for label in (f"probe-{secrets.token_hex(6)}", *labels)]
    return header + b"".join(bytes([len(label)]) + label for label in encoded) + b"\0" + struct.pack("!HH", 1, 1)


def _response_code(question: bytes, answer: bytes) -> int | None:
    """The response code of an answer to this question, or None for any other packet."""
    if len(answer) < 12 or answer[:2] != question[:2] or not answer[2] & 0x80:
        return None
    return answer[3] & 0x0F


async def _connect(endpoint: Endpoint, addresses: tuple[str, ...]) -> ProbeResult:
    name = f"proxy {endpoint.host} port {endpoint.port}" if endpoint.reason == PROXY else "API"
    if not addresses:
        return ProbeResult(name, Outcome.ABSENT, "has no address yet that is known to be genuine")
    attempts = [asyncio.ensure_future(_connects(address, endpoint.port)) for address in addresses]
    try:
        for attempt in asyncio.as_completed(attempts):
            if await attempt:
                return ProbeResult(name, Outcome.PASSED, "takes connections")
    finally:
        for pending in attempts:
            pending.cancel()
    where = ", ".join(addresses)
    return ProbeResult(name, Outcome.FAILED, f"does not take connections at {where} port {endpoint.port}")


async def _connects(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(address, port)
    except (TimeoutError, OSError):
        return False
    writer.close()
    return True
