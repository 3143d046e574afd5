"""Sockets of TCP and UDP, as sock_diag sends them, and the flows that they stand for.

Layouts and numbers are those of the kernel's `include/uapi/linux/inet_diag.h` and `include/net/tcp_states.h`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.host.flows import flow_with
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import TCP

if TYPE_CHECKING:
    from collections.abc import Container

    from sikkerguard.core.host.flows import Flow

# SOCK_DIAG_BY_FAMILY of `include/uapi/linux/sock_diag.h`.
GET = 20

# Of UDP a connected socket is ESTABLISHED and any other CLOSED.
ESTABLISHED, SYN_SENT, SYN_RECEIVED, TIME_WAIT, CLOSED, LISTEN = 1, 2, 3, 6, 7, 10
ANYWHERE = b""

_REQUEST = struct.Struct("=BBBxI48x")
# inet_diag_msg up to the remote address: family, state, timer, retransmissions, ports, addresses of sixteen bytes.
_MESSAGE = struct.Struct(">BBBBHH16s16s")
_WHOLE = 72
_MAPPED = bytes(10) + b"\xff\xff"
# idiag_timer of a retransmission.
_RETRANSMITTING = 1


class Socket(NamedTuple):
    """A socket's state and ends. Addresses are packed, IPv4 within IPv6 as IPv4; one that is bound to no address has
    `ANYWHERE`. `retransmits` says that what was sent last has not been acknowledged in time."""

    state: int
    retransmits: bool
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int


def wish(family: Family, protocol: int, states: int) -> bytes:
    """The body of a request for all sockets of this family and protocol in these states (a bit for each)."""
    return _REQUEST.pack(family.number, protocol, 0, states)


def read_socket(block: bytes, start: int, end: int) -> Socket | None:
    """The socket in the body of one message; None for what is none of IPv4 or IPv6."""
    if end - start < _WHOLE:
        return None
    family, state, timer, retransmissions, local_port, remote_port, local, remote = _MESSAGE.unpack_from(block, start)
    if family == Family.V4.number:
        local, remote = local[:4], remote[:4]
    elif family == Family.V6.number:
        local, remote = _unmapped(local), _unmapped(remote)
    else:
        return None
    retransmits = timer == _RETRANSMITTING and retransmissions > 0
    return Socket(state, retransmits, local if local.strip(b"\0") else ANYWHERE, local_port, remote, remote_port)


def _unmapped(address: bytes) -> bytes:
    """An IPv4 address out of the form in which a socket for both families has it (RFC 4291, section 2.5.5.2)."""
    return address[12:] if address.startswith(_MAPPED) else address


def socket_flow(each: Socket, protocol: int, listens: bool, ephemeral: Container[int]) -> Flow:
    """The flow of a connected socket.

    The kernel does not tell who called. Outgoing is what is still calling, and what has a port that the kernel chose
    (`ephemeral`) on which nobody `listens`. A caller that chose its own low port, as NFS does, counts as incoming
    here; connection tracking knows better.
    """
    calling = protocol == TCP and each.state == SYN_SENT
    called = protocol == TCP and each.state == SYN_RECEIVED
    outgoing = calling or (not called and not listens and each.local_port in ephemeral)
    # UDP's sockets don't tell of answers.
    unanswered = calling or called or protocol != TCP or each.retransmits
    return flow_with(
        each.remote,
        protocol,
        each.remote_port if outgoing else each.local_port,
        outgoing=outgoing,
        here=True,
        established=not (calling or called),
        unanswered=unanswered,
    )
