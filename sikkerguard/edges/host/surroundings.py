"""What this host must never be cut off from: gateways, resolvers, its own addresses, the peers of SSH sessions.

And word that any of it changed.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.host.surroundings import Surroundings
from sikkerguard.core.lists.allowlist import GATEWAY, RESOLVER, SSH, AllowEntry
from sikkerguard.core.net.address import packed_to_text, parse_address
from sikkerguard.core.net.packed import Prefix
from sikkerguard.edges.host.addresses import addresses
from sikkerguard.edges.host.monitor import ChangeMonitor
from sikkerguard.edges.host.resolvers import RESOLVER_FILES, resolvers
from sikkerguard.edges.host.routes import Routes
from sikkerguard.edges.host.ssh_sessions import SESSIONS, SshPeers
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.core.interfaces import Signal
    from sikkerguard.core.net.networks import Blocklist


class Observer:
    """Finds out what this host is connected by, and has it watched. `observe` is for one thread at a time.

    `root` is where /run, /etc and /proc lie for SSH sessions, and `clock` gives seconds that never go back.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._routes = Routes(clock=clock)
        self._ssh = SshPeers(root, clock)

    def observe(self, ssh_ports: Iterable[int], listed: Blocklist) -> Surroundings:
        """Gateways, resolvers, own addresses, and peers of SSH sessions. `ssh_ports` are further ports of sshd, and
        `listed` is the list in force before the allowlist was cut out of it.

        Raises:
            KernelError: routes, addresses or SSH sessions can't be read; then nothing new may be blocked.
        """
        try:
            return self._observed(ssh_ports, listed)
        except OSError as error:
            raise KernelError(f"where this host stands can't be found out: {error}") from error

    def _observed(self, ssh_ports: Iterable[int], listed: Blocklist) -> Surroundings:
        routes = self._routes.look()
        on_links = addresses()
        texts = [
            *((gateway.address, GATEWAY) for gateway in routes.gateways if gateway.address),
            *((address, RESOLVER) for address in resolvers() if not address.startswith(("127.", "::1"))),
            *((packed_to_text(packed), "own address") for packed in on_links.own),
            *((packed_to_text(packed), "point-to-point peer") for packed in on_links.peers),
            *((address, SSH) for address in self._ssh.look(ssh_ports, listed)),
        ]
        entries: dict[AllowEntry, None] = {}
        for text, reason in texts:
            with suppress(ValueError):  # what is no address can't be blocked either
                family, number = parse_address(text)
                entries[AllowEntry(family, Prefix(number, family.bits), reason)] = None
        return Surroundings(tuple(entries), frozenset(routes.gateways))

    def monitor(self, signal: Signal) -> ChangeMonitor:
        """What sets this signal, in the event loop, soon after any of it changed, once it is started."""

        def changed() -> None:
            self._routes.forget()
            signal.set()

        return ChangeMonitor(changed, RESOLVER_FILES, (SESSIONS,), self._routes.uses)
