"""What is to be in the kernel, of a list and an allowlist."""

from __future__ import annotations

import ipaddress

from sikkerguard.core.firewall.state import Candidate, DesiredFamily, desired_state
from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix
from tests.unit.core.net.test_intervals import gather


def test_what_is_wanted_is_counted_from_the_list() -> None:
    v4 = gather(Family.V4, [b"\xc6\x33\x64\x07", b"\xc6\x33\x64\x09"], [Prefix(0xCB007100, 24)])
    allowlist = Allowlist(
        tuple(AllowEntry(*parse_prefix(text), "resolver") for text in ("198.51.100.1", "2001:db8::1"))
    )
    resolver_v4, resolver_v6 = (frozenset(allowlist.prefixes(family)) for family in Family)
    assert desired_state(tuple(Family), Blocklist(v4=v4), allowlist) == {
        Family.V4: DesiredFamily(2, 1, resolver_v4),
        Family.V6: DesiredFamily(0, 0, resolver_v6),
    }
    assert resolver_v4 == {Prefix(int(ipaddress.IPv4Address("198.51.100.1")), 32)}
    assert desired_state((Family.V4,), Blocklist(), Allowlist(), Candidate.STAGED) == {
        Family.V4: DesiredFamily(0, 0, frozenset(), Candidate.STAGED)
    }
