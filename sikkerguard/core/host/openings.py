"""Whom this host called, by the packets that it was seen to send."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.host.flows import flow_with
from sikkerguard.core.host.socket_filter import ECHO_REQUEST
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import ICMP, TCP, TUNNELS, UDP

if TYPE_CHECKING:
    from collections.abc import Container

    from sikkerguard.core.host.flows import Flow

_V6_HEADER = 40
_SYN, _FIN_SYN_RST_ACK = 0x02, 0x17
# Peers that are remembered: those that were called, and those that sent UDP to us.
_MOST_CALLED, _MOST_HEARD = 4096, 16384


class Packet(NamedTuple):
    """The ends of a packet. `opens` says whether it can only be the first of its exchange; ports are 0 where the
    protocol has none."""

    family: Family
    source: bytes
    target: bytes
    protocol: int
    source_port: int
    target_port: int
    opens: bool


def read_packet(octets: bytes) -> Packet | None:
    """A packet that begins with its IP header; None for what is cut short, a later fragment, or no IP."""
    version = octets[0] >> 4 if octets else 0
    if version == 4 and len(octets) >= 20:
        family, protocol, behind = Family.V4, octets[9], (octets[0] & 0x0F) * 4
        source, target = octets[12:16], octets[16:20]
        if behind < 20 or (octets[6] << 8 | octets[7]) & 0x1FFF:
            return None
    elif version == 6 and len(octets) >= _V6_HEADER:
        family, protocol, behind = Family.V6, octets[6], _V6_HEADER
        source, target = octets[8:24], octets[24:40]
    else:
        return None
    if protocol in (TCP, UDP):
        if len(octets) < behind + (14 if protocol == TCP else 4):
            return None
        source_port, target_port = struct.unpack_from(">HH", octets, behind)
        opens = protocol == TCP and octets[behind + 13] & _FIN_SYN_RST_ACK == _SYN
        return Packet(family, source, target, protocol, source_port, target_port, opens)
    if protocol == ICMP[family]:
        opens = len(octets) > behind and octets[behind] == ECHO_REQUEST[family]
    else:
        # Only what is set up as the far end of a tunnel is sent such packets.
        opens = protocol in TUNNELS
    return Packet(family, source, target, protocol, 0, 0, opens)


class Openings:
    """Gathers the packets of a while, in their order, and says whom this host called in it. Bounded: 4,096 peers.

    A packet of TCP that opens a connection, an echo request and a tunnel's packet say it by themselves. One of UDP
    says it only if its port was not `bound` before the while began, since from such a port an answer may go out to
    whoever asked earlier, and if its peer had sent us none before it. Where a packet may have been missed, or too many
    peers sent us some, none of UDP does from then on.
    """

    def __init__(self, own: Container[bytes], bound: Container[int]) -> None:
        self._own = own
        self._bound = bound
        self._called: dict[Flow, None] = {}
        self._heard: set[bytes] = set()
        self._unsure = False

    def missed(self) -> None:
        """Packets were lost from here on."""
        self._unsure = True

    def came(self, packet: Packet) -> None:
        """This packet was sent to us."""
        if packet.protocol != UDP:
            return
        if len(self._heard) < _MOST_HEARD:
            self._heard.add(packet.source)
        else:
            self._unsure = True

    def left(self, packet: Packet) -> None:
        """This packet was sent from here, by us or by what is behind us."""
        if packet.source not in self._own or packet.target in self._own:
            return
        opens = packet.opens or (
            packet.protocol == UDP
            and not self._unsure
            and packet.source_port not in self._bound
            and packet.target not in self._heard
        )
        if opens and len(self._called) < _MOST_CALLED:
            peer, protocol, port = packet.target, packet.protocol, packet.target_port
            flow = flow_with(peer, protocol, port, outgoing=True, here=True, established=False, unanswered=True)
            self._called[flow] = None

    def called(self) -> frozenset[Flow]:
        """The far ends, each with its port."""
        return frozenset(self._called)
