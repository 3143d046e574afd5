"""What a kernel backend tells of dropped packets, and what is known of all of them, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sikkerguard.core.net.family import Family


class PacketCount(NamedTuple):
    """A number of packets, and the bytes in them, IP headers included."""

    packets: int
    bytes: int

    def plus(self, other: PacketCount) -> PacketCount:
        """The sum of both."""
        return PacketCount(self.packets + other.packets, self.bytes + other.bytes)

    def minus(self, other: PacketCount) -> PacketCount:
        """The difference, which may be negative."""
        return PacketCount(self.packets - other.packets, self.bytes - other.bytes)

    def is_below(self, other: PacketCount) -> bool:
        """Whether packets or bytes are fewer: of a counter that only grows, that it was set back in between."""
        return self.packets < other.packets or self.bytes < other.bytes


NOTHING = PacketCount(0, 0)


# Stands for the protocol and the port of packets whose source is known and no more: those of a source that sent to more
# ports than the kernel tells apart, and fragments, which name none.
UNATTRIBUTED = -1


# Whose packets they are: the source's packed address, the number of the IP protocol, and the port that was aimed at,
# which is type * 256 + code for ICMP and 0 where the protocol has none. Protocol and port may both be UNATTRIBUTED. Of
# replies the protocol is REPLY of `core.ports.protocols`, and the port the one that they came from, or UNATTRIBUTED.
FlowKey = tuple[bytes, int, int]


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """What was dropped from one reading of the kernel to the next.

    `dropped`: by the DROP rules. `counters`: what these read afterwards, for each family that was read.
    `flows`: the largest flows with their packets, some thousand at most.
    `attributed`: packets whose source is known, those of `flows` included; `replies`: how many of these are replies.
    `ports`: the attributed packets by (protocol, port), both as in `FlowKey`.
    `sources`: every source, packed. Unpacked from the kernel's answer each time one iterates; a source may come twice.

    A packet can be attributed one reading before it is counted as dropped, or after, so that the two numbers agree only
    over time.
    """

    dropped: PacketCount = NOTHING
    counters: Mapping[Family, PacketCount] = field(default_factory=dict)
    flows: tuple[tuple[FlowKey, int], ...] = ()
    attributed: int = 0
    replies: int = 0
    ports: Mapping[tuple[int, int], int] = field(default_factory=dict)
    sources: Collection[bytes] = ()


@dataclass(frozen=True, slots=True)
class DropEvent:
    """What one line of the kernel's log says of a dropped packet; `protocol` and `port` are as in `FlowKey`."""

    family: Family
    address: bytes
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """What the status shows of dropped packets.

    `dropped`, `dropped_today`: in all, over restarts too, and on this day in UTC. Of those in all, `unattributed` are
    from sources that the kernel had no room to remember, and `replies` are replies. `sources`: distinct ones today.
    `top_ports`: today's busiest ports as ((protocol, port), packets), the busiest first.
    """

    dropped: PacketCount = NOTHING
    dropped_today: PacketCount = NOTHING
    unattributed: int = 0
    sources: int = 0
    top_ports: tuple[tuple[tuple[int, int], int], ...] = ()
    replies: int = 0
