"""`sikkerguard run` with an allowlist that misses the host's own gateway, so that a test can have a list cut it off.

The ranges that are allowed on every host stay; nothing that was found out about this host does. In its gateway's stead
it takes another for one, since a host without any waits for its network. Nor does it know of any connection, so that
nothing explains a self-test that failed: what the trial does then is what is to be seen.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from sikkerguard.cli import wiring
from sikkerguard.cli.adapters import SystemAdapters
from sikkerguard.config.settings import SettingsReader
from sikkerguard.core.host.surroundings import Gateway, Surroundings
from sikkerguard.core.lists.allowlist import GATEWAY, AllowEntry
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.sikkerapi.endpoint import Endpoint
from sikkerguard.edges.host import probes, resolvers, routes
from sikkerguard.edges.host.connections import Connections, OutgoingWatch
from sikkerguard.edges.host.surroundings import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.config.settings import Config
    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.selftest import ProbeResult
    from sikkerguard.edges.storage.store import Store

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


class Blind(Observer):
    """Sees nothing of this host but a gateway that it does not have."""

    def observe(self, ssh_ports: Iterable[int], listed: Blocklist) -> Surroundings:
        """What is allowed for another reason than where this host stands."""
        return Surroundings((ELSEWHERE,), frozenset({Gateway(Family.V4, "192.0.2.254", 0)}))


class Elsewhere(Endpoint):
    """An endpoint in whose place another address is allowed."""

    @property
    def literal(self) -> str:
        """Not the address that requests go to."""
        return "192.0.2.254"


class Probes(probes.Probes):
    """The self-test, which connects to the real endpoint."""

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        """Test what there is; the addresses that are allowed say nothing."""
        return await super().run((self._endpoint.host,))


class Unprotected(SystemAdapters):
    """Edges that don't know what this host must never be cut off from."""

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store)
        self.observer = Blind()
        self.connections = NoConnections()

    def endpoint(self, config: Config) -> Endpoint:
        """As if another address were SikkerAPI's."""
        real = super().endpoint(config)
        return Elsewhere(real.reason, real.scheme, real.host, real.port)

    def probes(self, config: Config) -> Probes:
        """The self-test of this host as it is."""
        return Probes(routes.gateways, resolvers.resolvers, super().endpoint(config))


def main() -> int:
    """Run until a signal says stop."""
    reader = SettingsReader(os.environ)
    wiring.run(reader.load(), reader, Unprotected)
    return 0


if __name__ == "__main__":
    sys.exit(main())
