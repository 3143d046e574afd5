"""The ranges that no list may block, because no packet from outside may honestly come from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.net.address import Interval, parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import merge, subtract, to_prefixes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.net.packed import Prefix

# What no packet from outside may honestly bear as its source, by the IANA special-purpose registries for IPv4 and
# IPv6 (RFC 6890 and its updates), or what only ever is a neighbour. The documentation ranges are not among them:
# no host has such an address, so blocking one harms nobody, and laboratories use them.
_NEVER_BLOCKED = """
unspecified  0.0.0.0/8
private      10.0.0.0/8
private      100.64.0.0/10
loopback     127.0.0.0/8
link-local   169.254.0.0/16
private      172.16.0.0/12
reserved     192.0.0.0/24
private      192.168.0.0/16
reserved     198.18.0.0/15
multicast    224.0.0.0/4
reserved     240.0.0.0/4
unspecified  ::/128
loopback     ::1/128
private      fc00::/7
link-local   fe80::/10
private      fec0::/10
multicast    ff00::/8
"""
# Outside 2000::/3 no IPv6 address is global unicast (RFC 4291, section 2.4, and the IANA IPv6 address space), but
# for the translation prefixes of RFC 6052 and RFC 8215, which stand for the whole of IPv4 and so can't be blocked
# either. What the table above does not name there is "reserved".
GLOBAL_UNICAST_V6 = Interval(0x2 << 124, (0x4 << 124) - 1)


def _holes() -> dict[Family, dict[str, list[Interval]]]:
    """The special ranges by reason; none shares an address with another."""
    holes: dict[Family, dict[str, list[Interval]]] = {family: {} for family in Family}
    for line in _NEVER_BLOCKED.split("\n"):
        if line:
            reason, text = line.split()
            family, prefix = parse_prefix(text)
            holes[family].setdefault(reason, []).append(Interval(prefix.first, prefix.last(family)))
    named = merge(hole for group in holes[Family.V6].values() for hole in group)
    last_v6 = (1 << Family.V6.bits) - 1
    holes[Family.V6]["reserved"] = [
        part
        for outside in (Interval(0, GLOBAL_UNICAST_V6.first - 1), Interval(GLOBAL_UNICAST_V6.last + 1, last_v6))
        for part in subtract(outside, named)
    ]
    return {family: {reason: merge(group) for reason, group in groups.items()} for family, groups in holes.items()}


# By reason, and all of a family as one ascending sequence.
HOLES: Mapping[Family, Mapping[str, list[Interval]]] = _holes()
ALL_HOLES = {family: merge(hole for group in groups.values() for hole in group) for family, groups in HOLES.items()}


def is_shorter(family: Family, prefix: Prefix, floor: int) -> bool:
    """Whether a list's entry covers more at once than `floor`, the shortest prefix length that its source may block:
    judged by what is left of it without the special ranges, which nobody blocks anyway."""
    if prefix.length >= floor:
        return False
    left = subtract(Interval(prefix.first, prefix.last(family)), ALL_HOLES[family])
    return any(piece.length < floor for part in left for piece in to_prefixes(family, part))
