"""Names of sets."""

from __future__ import annotations

from sikkerguard.core.firewall.names import loading_names, set_names
from sikkerguard.core.net.family import Family
from tests.unit.core.firewall.netfilter import in_rules

# The longest name of a set that the kernel takes: IPSET_MAXNAMELEN of linux/netfilter/ipset/ip_set.h less its end.
LONGEST_NAME = 31


def test_names_are_ours_and_fit_into_the_kernel() -> None:
    names = [name for family in Family for name in set_names(family).all()]
    names += [loading for name in names for loading in loading_names(name)]
    assert len(names) == len(set(names)) == 2 * 14 * (1 + 3)
    assert all(name.startswith("sikkerguard") and len(name) <= LONGEST_NAME for name in names)


def test_rules_refer_to_every_set_but_those_that_are_swapped_in_to_be_read() -> None:
    for family in Family:
        names = set_names(family)
        swapped_in = {
            each
            for counting in (names.counting_begun(), names.counting_replies())
            for each in (counting.old_by_port, counting.old_by_source)
        }
        assert len(swapped_in) == 4
        assert set(names.all()) - set(in_rules(family)) == swapped_in
