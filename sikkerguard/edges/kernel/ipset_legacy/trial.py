"""The sets that say whether the candidate blocks too: all addresses while it does, with a time limit, and else none.

For the thread that owns netfilter only. Every method raises `KernelError` when the kernel refuses.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.kernel.ipset_legacy.set_kinds import TRIAL_SECONDS
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

# So long after it was renewed a trial is renewed once more while something else takes long.
_RENEW_SECONDS = 1.0


class TrialSets:
    """Begins, renews and ends a trial of these families. The kernel ends one by itself that is not renewed."""

    def __init__(self, sets: Sets, families: Sequence[Family], clock: Callable[[], float]) -> None:
        self._sets = sets
        self._families = families
        self._clock = clock
        self._renewed_at: float | None = None
        self._disturbed = False
        # The families for which a repair has armed their sets, and when it last did.
        self._covered: tuple[Sequence[Family], float] | None = None

    @property
    def runs(self) -> bool:
        """Whether one was begun and not ended."""
        return self._renewed_at is not None

    def begin(self) -> None:
        """Have the candidate block too."""
        self._disturbed = False
        self._renewed_at = self._clock()
        self._arm(self._families)

    def renew(self) -> None:
        """Prolong it.

        Raises:
            KernelError: it had lapsed in between, or another program had ended it, so that what was tested meanwhile
                proves nothing.
        """
        if self._renewed_at is None or self._clock() - self._renewed_at >= TRIAL_SECONDS:
            raise KernelError(
                f"the trial lapsed: it was not renewed for {TRIAL_SECONDS} s, as happens on a host that was stopped "
                "or is overloaded. The list before it stays in force"
            )
        for family in self._families:
            if self._disturbed or not self._is_armed(family):
                raise KernelError(
                    f"another program changed our rules or the set {set_names(family).trial} during the trial, so "
                    "that it proves nothing"
                )
        self._renewed_at = self._clock()
        self._arm(self._families)

    def disturb(self) -> None:
        """Something was not as it should be while it ran: it proves nothing."""
        self._disturbed = self._disturbed or self.runs

    def end(self) -> None:
        """Renew it no more. The sets are emptied by `release`, or by themselves."""
        self._renewed_at = None

    def release(self, families: Sequence[Family]) -> None:
        """Have the candidate of these families block no more."""
        for family in families:
            self._sets.flush(set_names(family).trial)

    @contextmanager
    def covering(self, family: Family) -> Iterator[None]:
        """Have what lies in the candidate's place block too, for as long as this lasts and until `release`."""
        self._arm((family,))
        self._covered = (family,), self._clock()
        try:
            yield
        finally:
            self._covered = None

    def keep(self) -> None:
        """To be called while something takes long: what covers two lists must not lapse meanwhile. Whether the trial
        still proves anything is asked when it is renewed in earnest."""
        now = self._clock()
        if self._covered is not None and now - self._covered[1] >= _RENEW_SECONDS:
            self._covered = self._covered[0], now
            self._arm(self._covered[0])
        if self._renewed_at is not None and _RENEW_SECONDS <= now - self._renewed_at < TRIAL_SECONDS:
            self._renewed_at = now
            self._disturbed = self._disturbed or not all(map(self._is_armed, self._families))
            self._arm(self._families)

    def _is_armed(self, family: Family) -> bool:
        header = self._sets.header(set_names(family).trial)
        return header is not None and header.entries == len(_halves(family))

    def _arm(self, families: Sequence[Family]) -> None:
        for family in families:
            self._sets.add(set_names(family).trial, family, ranges=_halves(family), timeout=TRIAL_SECONDS)


def _halves(family: Family) -> tuple[Prefix, Prefix]:
    """All addresses: a set of ranges can't hold the whole address space as one entry."""
    return Prefix(0, 1), Prefix(1 << (family.bits - 1), 1)
