"""The kernel edge's twin that touches nothing and says what it would do; needs no privilege."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.diff import diff
from sikkerguard.core.firewall.state import ObservedFamily, desired_state
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

log = logging.getLogger(__name__)

# Entries shown of a list that would be blocked; the rest is summed.
_SHOWN = 10
_NOTHING = ObservedFamily(sets={}, allow=frozenset(), rules=None, jumps=())


class DryRunBackend:
    """The same face as `Kernel`. It starts from a kernel with nothing of ours in it."""

    def __init__(self, families: Sequence[Family] = tuple(Family)) -> None:
        self.families = tuple(families)
        self._candidate = Blocklist()

    def close(self) -> None:
        """Nothing to let go of."""

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Say what would have to be done to a kernel with nothing of ours in it."""
        operations = diff(desired_state(self.families, verified, allowlist), dict.fromkeys(self.families, _NOTHING))
        for operation in operations:
            log.info("Dry run: would %s", operation.describe())
        return operations

    def settle(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Nothing drifts where nothing is."""
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
        for family in self.families:
            networks = blocklist.of(family)
            if len(networks):
                shown = [text for _, text in zip(range(_SHOWN), networks.texts(), strict=False)]
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

    def remove(self) -> None:
        """There is nothing of ours."""

    def await_resume(self) -> None:
        """Nothing is counted."""

    def resume(self, counters: Mapping[Family, PacketCount]) -> None:
        """Nothing was counted before."""

    def drain(self) -> list[TrafficSample]:
        """Nothing is dropped."""
        return []

    def unhook(self) -> None:
        """There is no jump of ours."""
