"""What may be blocked: the ranges that never may, the allowlist, and how much a list may change at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.model import (
    Admission,
    AllowEntry,
    Allowlist,
    Blocklist,
    Family,
    Interval,
    Networks,
    parse_prefix,
)
from sikkerguard.core.ranges import cut, merge, subtract, touched
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fewer entries than this share of the last verified list are held back until a second pull says the same.
SMALLEST_SHARE = 0.1
_SHRUNK, _CUT_OFF = "shrunk", "cut off"

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
_GLOBAL_UNICAST_V6 = Interval(0x2 << 124, (0x4 << 124) - 1)

# What every host talks to and no list can know better about (design, section 4).
ALWAYS_ALLOWED = (
    ("loopback", "127.0.0.0/8"),
    ("loopback", "::1"),
    ("private network", "10.0.0.0/8"),
    ("private network", "172.16.0.0/12"),
    ("private network", "192.168.0.0/16"),
    ("link-local", "169.254.0.0/16"),
    ("link-local", "fe80::/10"),
    ("private network", "fc00::/7"),
)


def always_allowed() -> tuple[AllowEntry, ...]:
    """The ranges that are allowed on every host."""
    return tuple(AllowEntry(*parse_prefix(text), reason) for reason, text in ALWAYS_ALLOWED)


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
        for outside in (Interval(0, _GLOBAL_UNICAST_V6.first - 1), Interval(_GLOBAL_UNICAST_V6.last + 1, last_v6))
        for part in subtract(outside, named)
    ]
    return {family: {reason: merge(group) for reason, group in groups.items()} for family, groups in holes.items()}


_HOLES = _holes()
_ALL_HOLES = {family: merge(hole for group in groups.values() for hole in group) for family, groups in _HOLES.items()}


def admit(listed: Blocklist, allowlist: Allowlist) -> Admission:
    """Cut from a list what is never blocked and what is allowed, exactly, and count it by reason.

    An entry that is dropped or narrowed counts once for each reason that touched it; what is special counts as that,
    whether it is allowed or not.
    """
    removed: Counter[str] = Counter()
    networks: dict[Family, Networks] = {}
    for family in Family:
        found, special = listed.of(family), _ALL_HOLES[family]
        allowed = merge(Interval(prefix.first, prefix.last(family)) for prefix in allowlist.prefixes(family))
        for reason, holes in _HOLES[family].items():
            removed[reason] += touched(found, holes)
        removed["allowlisted"] += touched(found, [part for each in allowed for part in subtract(each, special)])
        networks[family] = cut(found, [*special, *allowed])
    return Admission(
        Blocklist(networks[Family.V4], networks[Family.V6]), {reason: n for reason, n in removed.items() if n}
    )


def describe_removed(removed: Mapping[str, int]) -> str:
    """`3 private, 1 allowlisted`, the most frequent reason first; empty where nothing was removed."""
    ordered = sorted(removed.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


class HeldBackError(ListError):
    """The list looks wrong, but might be right: if the next pull shows no other `signs`, it will be believed."""

    def __init__(self, message: str, signs: frozenset[str]) -> None:
        super().__init__(message)
        self.signs = signs


def allowed_though_listed(listed: Blocklist, allowlist: Allowlist) -> tuple[str, ...]:
    """A sentence for each of this host's own connections that the list would have cut."""
    always = {(family, prefix) for family, prefix in map(parse_prefix, (text for _, text in ALWAYS_ALLOWED))}
    return tuple(
        f"{entry} is on the list and stays allowed."
        for entry in allowlist.entries
        if (entry.family, entry.prefix) not in always
        and listed.of(entry.family).overlaps(entry.prefix.first, entry.prefix.last(entry.family))
    )


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a new list is measured against: of the last verified one its `size` in entries, the `fingerprint` of the
    query and custom list that it came from, and whether it was `terminated` by a newline; `held_back` has the
    signs for which the last pull was held back."""

    size: int
    fingerprint: str
    terminated: bool
    held_back: frozenset[str] = frozenset()


def guard(
    size: int, fingerprint: str, terminated: bool, baseline: Baseline | None, *, max_growth: float, accept: bool
) -> None:
    """Refuse a list that is empty, or that changed beyond belief against the last verified one (sizes in entries).

    A list that ends in the middle of a line where the last one ended with a newline was cut off, though the answer's
    stated length agreed with what came: half an address may be another address.

    `accept` waives all but emptiness once. The first list, and the first after the query or the custom list was
    changed, can't be compared with anything.

    Raises:
        ListError: the list is refused; the message says why and what to do. `HeldBackError` if the same, said again
            by the next pull, will be believed.
    """
    if not size:
        raise ListError(
            "nothing is left of the list once private, reserved and allowlisted addresses are cut out of it"
        )
    if accept or baseline is None or not baseline.size or baseline.fingerprint != fingerprint:
        return
    if size > baseline.size * max_growth:
        raise ListError(
            f"the list grew from {baseline.size} to {size} entries, more than {max_growth:g} times; if that is right, "
            "take it once with 'sikkerguard pull --accept' or raise SIKKER_MAX_GROWTH"
        )
    signs = {}
    if size < baseline.size * SMALLEST_SHARE:
        signs[_SHRUNK] = f"the list shrank from {baseline.size} to {size} entries, to less than a tenth"
    if baseline.terminated and not terminated:
        signs[_CUT_OFF] = "the list ends in the middle of a line, as one that was cut off does"
    if not signs.keys() <= baseline.held_back:
        raise HeldBackError(
            f"{', and '.join(signs.values())}; it is taken if the next pull says the same, or now with "
            "'sikkerguard pull --accept'",
            frozenset(signs),
        )
