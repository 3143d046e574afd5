"""Removes everything of ours from the kernel, whatever other programs use of it.

What can't be removed is made harmless: a chain without rules, sets without entries.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import set_names
from sikkerguard.edges.kernel.ipset_legacy.references import References
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sikkerguard.core.net.family import Family
    from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

# How long to wait for the lock of iptables, and for programs that list sets: a stop has five seconds for everything.
_LOCK_SECONDS, _LISTED_SECONDS = 2.0, 1.0
_PAUSE_SECONDS = 0.01
_REMEDY = "'sikkerguard cleanup' removes it"


class Removal:
    """One removal."""

    def __init__(self, sets: Sets, chains: Chains, families: Sequence[Family]) -> None:
        self._sets = sets
        self._chains = chains
        self._families = families
        self._references = References(sets)
        self._failures: list[str] = []
        self._held: list[str] = []
        self._blocks = False

    def run(self) -> None:
        """Try each step, whatever became of the others.

        Raises:
            BusyError: another program keeps something from being removed, which blocks nobody.
            KernelError: something else failed, or our rules are still in their place.
        """
        in_use = self._remove_chains()
        try:
            names = self._sets.names()
        except KernelError as error:
            names, self._blocks = [], bool(in_use)
            self._failures.append(str(error))
        # First what blocks: if our rules stay, no allowed address is to be blocked.
        self._empty([name for name in names if name in in_use])
        self._destroy([name for name in names if name not in in_use])
        if not self._failures and not self._held:
            return
        what = "; ".join(dict.fromkeys((*self._failures, *self._held)))
        then = "What is left goes on blocking" if self._blocks else "Nobody is blocked any more"
        kind = KernelError if self._failures else BusyError
        raise kind(f"not everything could be removed: {what}. {then}; when it is let go, {_REMEDY}")

    def _remove_chains(self) -> set[str]:
        """Remove the chains. Returns the sets that rules of ours still use."""
        in_use: set[str] = set()
        until = time.monotonic() + _LOCK_SECONDS
        for family in self._families:
            try:
                kept = self._chains.remove(family, max(0.0, until - time.monotonic()))
            except KernelError as error:
                self._failures.append(str(error))
                in_use.update(set_names(family).all())
                continue
            for chain in kept:
                self._held.append(f"the chain {chain} stays, empty: {self._references.sentence_on_chain(chain)}")
        return in_use

    def _empty(self, names: Sequence[str]) -> None:
        """Let rules that are still there block nobody. Sets that count or allow are left as they are."""
        for family in self._families:
            known = set_names(family)
            for name in (known.trial, known.singles, known.ranges, known.new_singles, known.new_ranges):
                if name in names:
                    try:
                        self._sets.flush(name)
                    except KernelError as error:
                        self._blocks = True
                        self._failures.append(str(error))

    def _destroy(self, names: Sequence[str]) -> None:
        held = self._destroy_free(names)
        for name in held:
            try:
                self._sets.flush(name)
            except KernelError as error:
                self._failures.append(str(error))
        until = time.monotonic() + _LISTED_SECONDS
        while held := self._destroy_free(held):
            if time.monotonic() > until:
                break
            time.sleep(_PAUSE_SECONDS)
        for name in held:
            header = self._sets.header(name)
            if header is not None and header.references:
                self._held.append(f"the set {name} stays, empty: {self._references.sentence(name)}")
            else:
                self._held.append(f"the set {name} stays, empty: another program is listing it")

    def _destroy_free(self, names: Sequence[str]) -> list[str]:
        """Destroy what nobody uses. Returns the others."""
        held = []
        for name in names:
            try:
                self._sets.destroy(name, 0.0)
            except BusyError:
                held.append(name)
            except KernelError as error:
                # Another program may have destroyed it.
                if self._sets.header(name) is not None:
                    self._failures.append(str(error))
        return held
