"""`sikkerguard run` that kills itself in its first update, just before the change of a set that DIE_BEFORE names.

The change reads as `ipset` words it, such as `swap sikkerguard-v4`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from sikkerguard.cli import run
from sikkerguard.cli.adapters import SystemAdapters
from sikkerguard.config.settings import SettingsReader
from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend
from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets
from sikkerguard.edges.kernel.ipset_legacy.sets import DESTROY_SECONDS, SetKind, Sets
from sikkerguard.edges.kernel.ipset_legacy.trial import TrialSets
from sikkerguard.edges.kernel.select import usable_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sikkerguard.config.settings import Config
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.edges.storage.store import Store

# Only from the first candidate on.
_deadly = False


class MortalNetlink(NetlinkSets):
    """Netlink that does not outlive one of its changes."""

    def flush(self, name: str) -> None:
        """May be the last thing that does not happen."""
        _die_before("flush", name)
        super().flush(name)

    def swap(self, one: str, other: str) -> None:
        """May be the last thing that does not happen."""
        _die_before("swap", one)
        super().swap(one, other)

    def add(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        """May be the last thing that does not happen."""
        _die_before("add", name)
        super().add(name, family, batches)


class MortalSets(Sets):
    """Sets that don't outlive being made or destroyed."""

    def create(self, name: str, kind: SetKind, family: Family, entries: int) -> None:
        """May be the last thing that does not happen."""
        _die_before("create", name)
        super().create(name, kind, family, entries)

    def destroy(self, name: str, seconds: float = DESTROY_SECONDS) -> None:
        """May be the last thing that does not happen."""
        _die_before("destroy", name)
        super().destroy(name, seconds)


class Mortal(IpsetBackend):
    """A backend whose update is deadly: its sets are mortal from the first candidate on."""

    @classmethod
    def build(cls, families: Sequence[Family], netlink: NetlinkSets | None = None) -> IpsetBackend:
        """The same parts, but for the sets."""
        netlink = netlink or MortalNetlink()
        trial = TrialSets(netlink, families)
        return cls(MortalSets(netlink, trial.keep_alive), trial, Chains(), families)

    def stage(self, blocklist: Blocklist) -> None:
        """From here on it is deadly."""
        global _deadly
        _deadly = True
        super().stage(blocklist)


def _die_before(what: str, name: str) -> None:
    if _deadly and os.environ["DIE_BEFORE"] == f"{what} {name}":
        os.kill(os.getpid(), signal.SIGKILL)


class MortalAdapters(SystemAdapters):
    """The edges, with that backend."""

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store)
        self.backend.close()
        self.backend = Mortal.build(usable_families())


def main() -> int:
    """Run until the death that was asked for."""
    reader = SettingsReader(os.environ)
    run.run(reader.load(), reader, MortalAdapters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
