"""`sikkerguard run` that kills itself in its first update, just before the change of a set that DIE_BEFORE names.

The change reads as `ipset` words it, such as `swap sikkerguard-v4`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sikkerguard.cli import run
from sikkerguard.config.settings import SettingsReader
from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend
from sikkerguard.edges.kernel.ipset_legacy.set_contents import SetContents
from sikkerguard.edges.kernel.ipset_legacy.sets import DESTROY_SECONDS, SWAP_SECONDS, SetKind, Sets
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.service.adapters import Adapters


class MortalSets(Sets):
    """Sets that don't outlive one of their changes."""

    def create(self, name: str, kind: SetKind, family: Family, entries: int) -> None:
        """May be the last thing that does not happen."""
        _die_before("create", name)
        super().create(name, kind, family, entries)

    def destroy(self, name: str, seconds: float = DESTROY_SECONDS) -> None:
        """May be the last thing that does not happen."""
        _die_before("destroy", name)
        super().destroy(name, seconds)

    def flush(self, name: str) -> None:
        """May be the last thing that does not happen."""
        _die_before("flush", name)
        super().flush(name)

    def swap(self, one: str, other: str, seconds: float = SWAP_SECONDS) -> None:
        """May be the last thing that does not happen."""
        _die_before("swap", one)
        super().swap(one, other, seconds)

    def add(self, name: str, *entries: Any, **options: Any) -> None:
        """May be the last thing that does not happen."""
        _die_before("add", name)
        super().add(name, *entries, **options)


class MortalKernel(IpsetBackend):
    """A kernel edge whose update is deadly."""

    def stage(self, blocklist: Blocklist) -> None:
        """From here on it is."""
        self._sets.close()
        self._sets = MortalSets()
        self._contents = SetContents(self._sets)
        self._trial = TrialSets(self._sets, self.families, time.monotonic)
        super().stage(blocklist)


def _die_before(what: str, name: str) -> None:
    if os.environ["DIE_BEFORE"] == f"{what} {name}":
        os.kill(os.getpid(), signal.SIGKILL)


def _with_mortal_kernel(edges: Adapters) -> Adapters:
    edges.kernel.close()
    return replace(edges, kernel=MortalKernel())


def main() -> int:
    """Run until the death that was asked for."""
    reader = SettingsReader(os.environ)
    run.run(reader.load(), reader, adjust=_with_mortal_kernel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
