"""Our chains, changed so that what they have counted is not lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.errors import KernelError, as_sentence

if TYPE_CHECKING:
    from sikkerguard.core.firewall.rules import Rule
    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.counters import CounterReader

log = logging.getLogger(__name__)


class CountedChains:
    """Reads the counters before a rule goes. Every method raises `KernelError` when the kernel refuses."""

    def __init__(self, chains: Chains, counters: CounterReader) -> None:
        self._chains = chains
        self._counters = counters

    def read(self, family: Family) -> tuple[tuple[Rule, ...] | None, tuple[int, ...]]:
        """As `Chains.read`."""
        return self._chains.read(family)

    def write(self, family: Family, rules: tuple[Rule, ...]) -> None:
        """Make our chains consist of these rules. The DROP rule goes on counting from its last reading."""
        self._collect()
        self._chains.write(family, rules, self._counters.reading(family))

    def place_jump(self, family: Family) -> None:
        """As `Chains.place_jump`."""
        self._chains.place_jump(family)

    def remove(self, family: Family) -> None:
        """Remove the jump, the rules and the chains."""
        self._collect()
        self._chains.remove(family)

    def _collect(self) -> None:
        """Keep what was counted until now. Blocking does not wait for it."""
        try:
            self._counters.collect()
        except KernelError as error:
            log.warning(
                "%s. Our rules are repaired all the same; whose packets were dropped in the last moments may stay "
                "unknown.",
                as_sentence(error),
            )
