"""`sikkerguard run` that kills itself in its first update, just before the change of a set that DIE_BEFORE names.

The change reads as `ipset` words it, such as `swap sikkerguard-v4`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from sikkerguard.cli import wiring
from sikkerguard.cli.adapters import SystemAdapters
from sikkerguard.config.settings import SettingsReader
from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets
from sikkerguard.edges.kernel.select import usable_families

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.edges.storage.store import Store


class MortalNetlink(NetlinkSets):
    """A socket that does not outlive one of its changes, once it is deadly."""

    deadly = False

    def add(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        """May be the last thing that does not happen."""
        self._die_before("add", name)
        super().add(name, family, batches)

    def flush(self, name: str) -> None:
        """May be the last thing that does not happen."""
        self._die_before("flush", name)
        super().flush(name)

    def swap(self, one: str, other: str) -> None:
        """May be the last thing that does not happen."""
        self._die_before("swap", one)
        super().swap(one, other)

    def _die_before(self, what: str, name: str) -> None:
        if self.deadly and os.environ["DIE_BEFORE"] == f"{what} {name}":
            os.kill(os.getpid(), signal.SIGKILL)


class MortalBackend(IpsetBackend):
    """A backend whose update is deadly."""

    def stage(self, blocklist: Blocklist) -> None:
        """From here on it is."""
        MortalNetlink.deadly = True
        super().stage(blocklist)


class MortalAdapters(SystemAdapters):
    """The edges, with that backend."""

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store)
        self.backend.close()
        self.backend = MortalBackend.build(usable_families(), MortalNetlink())


def main() -> int:
    """Run until the death that was asked for."""
    reader = SettingsReader(os.environ)
    wiring.run(reader.load(), reader, MortalAdapters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
