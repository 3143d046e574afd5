"""The sets that decide whether the candidate blocks too: they hold all addresses while it does, with a timeout.

Every method raises `KernelError` when the kernel refuses.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import TRIAL_SECONDS
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import encode_batches
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets

# While something else takes long, a trial is renewed again this long after it was.
_RENEW_SECONDS = 1.0


class TrialSets:
    """Begins, renews and ends a trial of these families. The kernel ends by itself one that is not renewed."""

    def __init__(
        self, netlink: NetlinkSets, families: Sequence[Family], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._netlink = netlink
        self._families = families
        self._clock = clock
        self._renewed_at: float | None = None
        self._invalid = False
        # The family whose set a repair has armed, and when it last did.
        self._covered: tuple[Family, float] | None = None

    @property
    def runs(self) -> bool:
        """Whether a trial was begun and not ended."""
        return self._renewed_at is not None

    def begin(self) -> None:
        """Let the candidate block too."""
        self._invalid = False
        self._renewed_at = self._clock()
        self._arm(self._families)

    def renew(self) -> None:
        """Prolong the trial.

        Raises:
            KernelError: it had lapsed, or another program had ended it, so that what was tested meanwhile proves
                nothing.
        """
        if self._renewed_at is None or self._clock() - self._renewed_at >= TRIAL_SECONDS:
            raise KernelError(
                f"the trial lapsed: it was not renewed for {TRIAL_SECONDS} s, as happens on a host that was stopped "
                "or is overloaded. The list before it stays in force"
            )
        for family in self._families:
            if self._invalid or not self._is_armed(family):
                raise KernelError(
                    f"another program changed our rules or the set {set_names(family).trial} during the trial, so "
                    "that it proves nothing"
                )
        self._renewed_at = self._clock()
        self._arm(self._families)

    def invalidate(self) -> None:
        """Note that something was not as it should be: a trial that runs now proves nothing."""
        self._invalid = self._invalid or self.runs

    def end(self) -> None:
        """Stop renewing. The sets are emptied by `empty`, or by their timeout."""
        self._renewed_at = None

    def empty(self, family: Family) -> None:
        """Let the candidate of this family block no more."""
        self._netlink.flush(set_names(family).trial)

    @contextmanager
    def covering(self, family: Family) -> Iterator[None]:
        """Let what is in the candidate's sets block too, from here on until `empty`; inside the context that is kept
        up however long it takes."""
        self._arm((family,))
        self._covered = family, self._clock()
        try:
            yield
        finally:
            self._covered = None

    def keep_alive(self) -> None:
        """Call this while something takes long: what covers two lists must not lapse meanwhile. Whether the trial still
        proves anything is decided by the next `renew`."""
        now = self._clock()
        if self._covered is not None and now - self._covered[1] >= _RENEW_SECONDS:
            self._covered = self._covered[0], now
            self._arm(self._covered[:1])
        if self._renewed_at is not None and _RENEW_SECONDS <= now - self._renewed_at < TRIAL_SECONDS:
            self._renewed_at = now
            self._invalid = self._invalid or not all(map(self._is_armed, self._families))
            self._arm(self._families)

    def _is_armed(self, family: Family) -> bool:
        header = self._netlink.header(set_names(family).trial)
        return header is not None and header.entries == len(_halves(family))

    def _arm(self, families: Sequence[Family]) -> None:
        for family in families:
            batches = encode_batches(family, b"", _halves(family), TRIAL_SECONDS)
            self._netlink.add(set_names(family).trial, family, batches)


def _halves(family: Family) -> tuple[Prefix, Prefix]:
    """All addresses: a set of ranges can't hold the whole address space as one entry."""
    return Prefix(0, 1), Prefix(1 << (family.bits - 1), 1)
