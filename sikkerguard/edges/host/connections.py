"""Whom this host calls while someone watches, where no connection tracking remembers it.

A forwarder of DNS sends its questions from sockets that name no peer, and the kernel's own tunnels have none that tell:
only their packets do.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING

from sikkerguard.core.host.openings import Openings, read_packet
from sikkerguard.core.host.socket_filter import FROM_US, SNAP, TO_US, first_packets
from sikkerguard.edges.host.addresses import addresses
from sikkerguard.edges.host.flows import bound_udp_ports, read_flows

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.net.family import Family

log = logging.getLogger(__name__)

# linux/if_packet.h, asm-generic/socket.h: options of the socket.
_PACKET_LEVEL, _STATISTICS = 263, 6
_ATTACH_FILTER, _BUFFER_FORCED = 26, 33
_EVERY_PROTOCOL = bytes([0, 3])
# For a few thousand packets, which the kernel counts with all that they carry.
_BUFFER = 4 << 20
# Packets taken in at a time, so that a flood holds nobody up.
_BATCH = 10_000


class Connections:
    """All that can be known of this host's connections. Blocks for some seconds at most: for a thread of its own."""

    def flows(self, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
        """See `read_flows`."""
        return read_flows(covers)

    def watch(self) -> OutgoingWatch:
        """See `OutgoingWatch`."""
        return OutgoingWatch()


class OutgoingWatch:
    """Sees the packets that leave, for as long as it is entered; see `Openings` for what it makes of them.

    `available` is false, and nothing is seen, where no such socket may be opened: without CAP_NET_RAW, and in the
    sandbox of our unit, which leaves AF_PACKET out of its RestrictAddressFamilies. It never blocks; `seen` is to be
    called every second or so, so that the buffer does not overflow.
    """

    def __init__(self) -> None:
        self.available = False
        self._socket: socket.socket | None = None
        self._openings = Openings(frozenset(), frozenset())

    def __enter__(self) -> OutgoingWatch:
        """Raises:
        KernelError: this host's addresses or sockets can't be read.
        """
        own = frozenset(addresses().own)
        known = bound_udp_ports()
        try:
            self._socket = _open(first_packets(own, known))
        except OSError as error:
            log.debug("outgoing packets are not watched: %s", error)
            return self
        # What was bound while the socket was opened is as old as what was before it.
        self._openings = Openings(own, known | bound_udp_ports())
        self.available = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def seen(self) -> frozenset[Flow]:
        """The far ends that this host called since it was entered."""
        if self._socket is not None:
            self._drain(self._socket)
        return self._openings.called()

    def _drain(self, watching: socket.socket) -> None:
        received = []
        for _ in range(_BATCH):
            try:
                octets, sender = watching.recvfrom(SNAP)
            except BlockingIOError:
                break
            except OSError as error:
                # An interface went down (ENETDOWN): its own packets may be gone, and those of others go on.
                log.debug("outgoing packets may have been missed: %s", error)
                self._openings.missed()
                continue
            received.append((octets, sender[2]))
        # Asked before any is judged: whatever was lost before one of these is in the number by now.
        _packets, dropped = struct.unpack("=II", watching.getsockopt(_PACKET_LEVEL, _STATISTICS, 8))
        if dropped:
            self._openings.missed()
        for octets, kind in received:
            packet = read_packet(octets)
            if packet is None:
                continue
            if kind == FROM_US:
                self._openings.left(packet)
            elif kind == TO_US:
                self._openings.came(packet)


def _open(program: bytes) -> socket.socket:
    """A socket that gets what the program lets through. Of packets that leave, only one for every protocol gets any;
    it is bound last, so that it gets none that the program has not seen."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCED, _BUFFER)
        # A sock_fprog: the number of instructions, and where they are.
        instructions = ctypes.create_string_buffer(program, len(program))
        place = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
        opened.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, place)
        # A sockaddr_ll: of any interface. Python's bind insists on the name of one.
        where = struct.pack("=H2siHBB8x", socket.AF_PACKET, _EVERY_PROTOCOL, 0, 0, 0, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(opened.fileno(), where, len(where)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError:
        opened.close()
        raise
    return opened
