"""What the kernel counted of dropped packets, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sikkerguard.core.net.family import Family


class PacketCount(NamedTuple):
    """So many packets, and the bytes in them."""

    packets: int
    octets: int


NOTHING = PacketCount(0, 0)


# The protocol and the port of packets whose source is known and no more: of one that was after more ports than are
# told apart, and of fragments, which name none.
UNATTRIBUTED = -1


# A packed address, the number of its IP protocol, and the port that was aimed at: for ICMP the type times 256 plus the
# code, 0 where the protocol has none, or twice ANY. Of replies, REPLY of `core.protocols` and the port that they came
# from, or REPLY and ANY.
FlowKey = tuple[bytes, int, int]


Hit = tuple[bytes, int, int, int, int]


Source = tuple[bytes, int, int]


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """What the kernel counted since it was asked before.

    `dropped` is what the DROP rules took up to the moment before the sets were read, and `counters` is where they
    stood then. Of each family `hits` has a listing of (address, port, protocol, octets, packets), and `sources` one of
    (address, octets, packets) for those packets that met no entry of `hits`: the first of each entry, and all that were
    not told apart by port. `replies` and `repliers` are the same for what the sources did not begin, and the port is
    the one that it came from.
    """

    dropped: PacketCount = NOTHING
    counters: Mapping[Family, PacketCount] = field(default_factory=dict)
    hits: Sequence[Collection[Hit]] = ()
    sources: Sequence[Collection[Source]] = ()
    replies: Sequence[Collection[Hit]] = ()
    repliers: Sequence[Collection[Source]] = ()


@dataclass(frozen=True, slots=True)
class DropEvent:
    """What one line of the kernel's log says of a dropped packet. `port` is as in `FlowKey`."""

    family: Family
    address: bytes
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """What is known of all that was dropped: in all, and today (in UTC); how many of the packets in all are of sources
    that the kernel had no room to remember, and how many are replies; and of today the number of sources, and the
    busiest ports as ((protocol, port), packets)."""

    dropped: PacketCount = NOTHING
    dropped_today: PacketCount = NOTHING
    unnamed: int = 0
    sources: int = 0
    top_ports: tuple[tuple[tuple[int, int], int], ...] = ()
    replies: int = 0
