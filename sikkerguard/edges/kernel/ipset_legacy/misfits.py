"""Sets with a name of ours that are of another kind: an earlier version's, or what somebody put there.

For the thread that owns netfilter only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.networks import Networks
from sikkerguard.edges.kernel.ipset_legacy.references import References
from sikkerguard.edges.kernel.ipset_legacy.set_contents import only_ranges, only_singles
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import kind_of
from sikkerguard.errors import BusyError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

log = logging.getLogger(__name__)


class Misfits:
    """Puts the right kind in their place. `count_before` is called before rules are taken away."""

    def __init__(
        self, sets: Sets, contents: SetContents, chains: Chains, count_before: Callable[[], None] = lambda: None
    ) -> None:
        self._sets = sets
        self._contents = contents
        self._chains = chains
        self._count_before = count_before

    def replace(self, family: Family, name: str, committed: Networks) -> None:
        """Have this set be of its kind, with what it is to hold of the committed list.

        The chain is taken away only where it is known that the set can be: else nothing would block meanwhile, and if
        another program holds the set, for good.

        Raises:
            BusyError: another program lists the set, or refers to it.
            KernelError: the kernel refused.
        """
        kind, entries = kind_of(family, name)
        names = set_names(family)
        parts = {names.singles: only_singles(committed), names.ranges: only_ranges(committed)}
        try:
            self._contents.replace(name, kind, parts.get(name, Networks(family)), entries)
        except BusyError:
            raise
        except KernelError as error:
            log.debug("%s; it is taken away instead.", as_sentence(error))
        else:
            return
        header = self._sets.header(name)
        rules, _ = self._chains.read(family)
        if header is not None and header.references > _times_named(name, rules or ()):
            raise BusyError(
                f"the set {name} is of another kind, and {References(self._sets).sentence(name)}; rules are left as "
                "they are"
            )
        if header is not None and header.references:
            self._count_before()
            self._chains.remove(family)
        self._sets.destroy(name)


def _times_named(name: str, rules: Iterable[Rule]) -> int:
    """How often these rules refer to a set."""
    extensions = (each for rule in rules for each in (*rule.matches, rule.target))
    return sum(name in values for each in extensions for _, values in each.options)
