"""Who this host is in contact with, and who began it.

A flow is seen from the raw table: its peer is the address whose packets arrive there, before anything is translated.
Only what this host, or something behind it, sent first is outgoing. Whoever sends packets to us can't make himself the
far end of an outgoing flow.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.net.networks import Blocklist, Networks


@dataclass(frozen=True, slots=True)
class Flow:
    """An exchange of packets with one peer.

    `peer` is the address whose packets arrive here: of an outgoing flow the one that answers, after all translation.
    `port` is the peer's service for an outgoing flow and ours for an incoming one, as the packets name it on arrival;
    0 where `protocol` (an IP protocol number) has none. `outgoing` says whether this host or something behind it sent
    the first packet, and not anybody else; `opened_here` whether this host itself is the end of it, and not a container
    or a machine behind it. `established` is false while one side alone has spoken, and
    `unanswered` is true where the last thing sent has had no answer, or nobody can say whether it had.
    """

    family: Family
    peer: int
    protocol: int
    port: int
    outgoing: bool
    opened_here: bool
    established: bool
    unanswered: bool

    @property
    def address(self) -> str:
        """The peer as text."""
        return to_text(self.family, Prefix(self.peer, self.family.bits))

    def rank(self) -> tuple[bool, bool, str, int, int, int]:
        """What flows are sorted by: outgoing ones first, of these the host's own, then by peer, protocol and port."""
        return (not self.outgoing, not self.opened_here, self.family.label, self.peer, self.protocol, self.port)


def flow_with(
    peer: bytes, protocol: int, port: int, *, outgoing: bool, here: bool, established: bool, unanswered: bool
) -> Flow:
    """The flow with this packed address, as `Flow` has it."""
    number = int.from_bytes(peer, "big")
    return Flow(family_of(peer), number, protocol, port, outgoing, here, established, unanswered)


class NewlyCovered:
    """Says of any address whether the candidate covers it and the committed list does not.

    Nearly every address that is asked for is on neither: that answer takes about a microsecond with a million entries,
    for which the first 32 bits of the candidate's IPv4 addresses, or 64 of its IPv6 addresses, are kept (4 and 8 bytes
    for a single, 8 and 16 for a range).
    """

    def __init__(self, candidate: Blocklist, committed: Blocklist) -> None:
        self._candidate = candidate
        self._committed = committed
        self._v4 = _Heads(candidate.v4, 32)
        self._v6 = _Heads(candidate.v6, 64)

    def __call__(self, family: Family, address: int) -> bool:
        """Whether this address would be dropped by the candidate alone."""
        heads = self._v4 if family is Family.V4 else self._v6
        return (
            heads.may_cover(address)
            and self._candidate.of(family).find(address) is not None
            and self._committed.of(family).find(address) is None
        )


class _Heads:
    """The first bits of all entries, to leave out quickly what can't be covered."""

    def __init__(self, networks: Networks, bits: int) -> None:
        code = "I" if bits == 32 else "Q"
        self._shift = shift = networks.family.bits - bits
        words = array(code, networks.singles)
        if (1).to_bytes(2, "little") == array("H", [1]).tobytes():
            words.byteswap()
        self._singles = words if not shift else words[::2]
        self._firsts, self._lasts = array(code), array(code)
        for prefix in networks.ranges:
            self._firsts.append(prefix.first >> shift)
            self._lasts.append(prefix.last(networks.family) >> shift)

    def may_cover(self, address: int) -> bool:
        head = address >> self._shift
        at = bisect_left(self._singles, head)
        if at < len(self._singles) and self._singles[at] == head:
            return True
        at = bisect_right(self._firsts, head) - 1
        return at >= 0 and self._lasts[at] >= head


def newly_dropped(flows: Iterable[Flow], candidate: Blocklist, committed: Blocklist) -> tuple[Flow, ...]:
    """The established flows whose peers the candidate covers and the committed list does not: each peer once, with an
    outgoing flow where it has one; outgoing before incoming."""
    covered = NewlyCovered(candidate, committed)
    peers: dict[tuple[Family, int], Flow] = {}
    for flow in sorted(flows, key=Flow.rank):
        if flow.established and (flow.family, flow.peer) not in peers and covered(flow.family, flow.peer):
            peers[flow.family, flow.peer] = flow
    return tuple(peers.values())


def opened_since(before: Iterable[Flow], now: Iterable[Flow], sent: Iterable[Flow] = ()) -> tuple[Flow, ...]:
    """The outgoing flows of `now` that were not there `before`, or of which something is unanswered now.

    `sent` is what was seen on the wire in between: it is weaker evidence, since it knows only that time. Where
    the others show the same peer, by this protocol, as one that came to us, they are right.
    """
    earlier, current = frozenset(before), frozenset(now)
    came = {(flow.family, flow.peer, flow.protocol) for flow in earlier | current if not flow.outgoing}
    opened = {flow for flow in current if flow.outgoing and (flow.unanswered or flow not in earlier)}
    opened.update(flow for flow in sent if flow.outgoing and (flow.family, flow.peer, flow.protocol) not in came)
    return tuple(sorted(opened, key=Flow.rank))
