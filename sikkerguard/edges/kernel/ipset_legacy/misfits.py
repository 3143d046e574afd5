"""Sets that have our names but are of another kind: an earlier version's, or another program's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.net.networks import Networks
from sikkerguard.edges.kernel.ipset_legacy.references import References
from sikkerguard.edges.kernel.ipset_legacy.set_contents import committed_contents
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import kind_of
from sikkerguard.errors import BusyError, KernelError, as_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.edges.kernel.ipset_legacy.counted_chains import CountedChains
    from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

log = logging.getLogger(__name__)


class Misfits:
    """Replaces them by sets of the right kind."""

    def __init__(self, sets: Sets, contents: SetContents, chains: CountedChains) -> None:
        self._sets = sets
        self._contents = contents
        self._chains = chains

    def replace(self, family: Family, name: str, committed: Blocklist) -> None:
        """Make this set be of its kind, with what it is to hold of the committed list; or, where two kinds can't be
        swapped, destroy it.

        For that our chains are removed only where it is certain that the set can be destroyed then. Otherwise nothing
        would block meanwhile, and if another program keeps the set, for good.

        Raises:
            BusyError: another program lists the set, or refers to it.
            KernelError: the kernel refused.
        """
        kind, entries = kind_of(family, name)
        wanted = {content.name: content.networks for content in committed_contents(family, committed)}
        try:
            self._contents.replace(name, kind, wanted.get(name, Networks(family)), entries)
        except BusyError:
            raise
        except KernelError as error:
            log.debug("%s; it is destroyed instead.", as_sentence(error))
        else:
            return
        header = self._sets.header(name)
        rules, _ = self._chains.read(family)
        if header is not None and header.references > _mentions(name, rules or ()):
            raise BusyError(
                f"the set {name} is of another kind, and {References(self._sets).sentence(name)}; rules are left as "
                "they are"
            )
        if header is not None and header.references:
            self._chains.remove(family)
        self._sets.destroy(name)


def _mentions(name: str, rules: Iterable[Rule]) -> int:
    """How often these rules refer to a set."""
    extensions = (each for rule in rules for each in (*rule.matches, rule.target))
    return sum(name in values for each in extensions for _, values in each.options)
