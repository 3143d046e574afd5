"""`sikkerguard run` with an allowlist that misses the host's own gateway, so that a test can have a list cut it off.

The ranges that are allowed on every host stay; nothing that was found out about this host does. In its gateway's stead
it takes another for one, since a host without any waits for its network. Nor does it know of any connection, so that
nothing explains a self-test that failed: what the trial does then is what is to be seen.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from sikkerguard.cli import run
from sikkerguard.config.settings import SettingsReader
from sikkerguard.core.host.surroundings import Gateway, Surroundings
from sikkerguard.core.lists.allowlist import GATEWAY, AllowEntry
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.edges.host.connections import Connections, OutgoingWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.core.host.flows import Flow

ELSEWHERE = AllowEntry(*parse_prefix("192.0.2.254"), GATEWAY)


class NoConnections(Connections):
    """Connections of a host that has none."""

    def flows(self, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
        """None."""
        return ()

    def watch(self) -> Unseen:
        """A watch that sees no packet."""
        return Unseen()


class Unseen(OutgoingWatch):
    """Sees nothing."""

    def __enter__(self) -> Unseen:
        return self


def detect(whitelist: Iterable[AllowEntry], *_: object) -> Surroundings:
    """What is allowed for another reason than where this host stands."""
    return Surroundings((ELSEWHERE, *whitelist), frozenset({Gateway(Family.V4, "192.0.2.254", 0)}))


def main() -> int:
    """Run until a signal says stop."""
    reader = SettingsReader(os.environ)
    run.run(reader.load(), reader, adjust=lambda edges: replace(edges, detect=detect, connections=NoConnections()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
