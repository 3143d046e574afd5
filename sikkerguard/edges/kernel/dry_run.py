"""The backend that touches nothing and says what it would do. It needs no privilege."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.diff import diff
from sikkerguard.core.firewall.state import Inspection, ObservedFamily, desired_state
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

log = logging.getLogger(__name__)

# Entries of a list that are shown; of the others, their number is.
_MAX_SHOWN = 10


class DryRunBackend:
    """Does what `core.interfaces.FirewallBackend` says, to a kernel that has nothing of ours in it and stays so."""

    name = "dry-run"

    def __init__(self, families: Sequence[Family] = tuple(Family)) -> None:
        self._families = tuple(families)
        self._candidate = Blocklist()

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Say what would have to be done."""
        nothing = dict.fromkeys(self._families, ObservedFamily())
        operations = diff(desired_state(self._families, verified, allowlist), nothing)
        for operation in operations:
            log.info("Dry run: would %s", operation.describe())
        return operations

    def repair(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Nothing changes where nothing is."""
        return ()

    def read_committed(self) -> Blocklist:
        """Nothing is blocked."""
        return Blocklist()

    def allow(self, allowlist: Allowlist) -> None:
        """Say what would be allowed."""
        log.info("Dry run: would allow %s", ", ".join(str(entry) for entry in allowlist.entries))

    def stage(self, blocklist: Blocklist) -> None:
        """Show the beginning of what would be blocked."""
        self._candidate = blocklist
        for family in self._families:
            networks = blocklist.of(family)
            if len(networks):
                shown = list(islice(networks.texts(), _MAX_SHOWN))
                more = f" and {len(networks) - len(shown):,} more" if len(networks) > len(shown) else ""
                log.info("Dry run: would block %s%s", ", ".join(shown), more)

    def begin_trial(self) -> None:
        """No packet is dropped."""

    def renew_trial(self) -> None:
        """No packet is dropped."""

    def commit(self) -> None:
        """Say that the candidate would be in force."""
        log.info("Dry run: would commit %d entries", len(self._candidate))

    def rollback(self) -> None:
        """Forget the candidate."""
        self._candidate = Blocklist()

    def unhook(self) -> None:
        """There is no jump of ours."""

    def remove(self) -> None:
        """There is nothing of ours."""

    def hold_counters(self) -> None:
        """Nothing is counted."""

    def resume_counters(self, counters: Mapping[Family, PacketCount]) -> None:
        """Nothing is counted."""

    def read_traffic(self) -> tuple[TrafficSample, ...]:
        """Nothing is dropped."""
        return ()

    def inspect(self, family: Family, address: int) -> Inspection:
        """No rule meets a packet."""
        return Inspection(active=False, listed=False, allowed=False, packets=0)

    def has_state(self) -> bool:
        """There is nothing of ours."""
        return False

    def close(self) -> None:
        """There is nothing to close."""
