"""What a list means for the connections of this host: which ones it would cut, and which explain a failed self-test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.host.flows import newly_dropped
from sikkerguard.core.lists.sources import LeftOut
from sikkerguard.core.ports.protocols import TCP, UDP
from sikkerguard.errors import HeldBackError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.selftest import ProbeResult

# The sign for which a list is held back once: it cuts too many connections that this host opened.
CONNECTIONS = "connections"
# At least so many of them, and more than this share.
_LEAST, _SHARE = 5, 0.1
_NAMED = 10
# More than so many addresses are no single mistake of a list.
MOST_LEFT_OUT = 8
# DNS, over TLS, and over HTTPS.
_DNS_PORTS = frozenset({53, 853, 443})


@dataclass(frozen=True, slots=True)
class CutConnections:
    """Established connections that a candidate would newly cut: one flow for each of the `peers`, those first to which
    this host opened them; and how many peers there are in all to which it did (`own`)."""

    peers: tuple[Flow, ...]
    own: int

    def own_cut(self) -> int:
        """How many of them this host opened."""
        return sum(_is_own(flow) for flow in self.peers)

    def sentence(self) -> str:
        """How many, and the first ten with the way in which each was opened."""
        named = [f"{flow.address} ({_way(flow)})" for flow in self.peers[:_NAMED]]
        if len(self.peers) > _NAMED:
            named.append(f"and {len(self.peers) - _NAMED} more")
        return (
            f"The new list cuts connections to {len(self.peers)} "
            f"address{'es' if len(self.peers) > 1 else ''}: {', '.join(named)}."
        )


def cut_connections(flows: Iterable[Flow], candidate: Blocklist, committed: Blocklist) -> CutConnections:
    """The established ones whose peers the candidate covers and the committed list does not."""
    known = tuple(flows)
    own = {(flow.family, flow.peer) for flow in known if flow.established and _is_own(flow)}
    return CutConnections(newly_dropped(known, candidate, committed), len(own))


def hold_back(cut: CutConnections, sessions: int, held_back: frozenset[str]) -> None:
    """Hold a list back once that cuts much of what the host itself is after. Peers that came by themselves do not
    count: they may be the attackers. `sessions` are people who are logged in, and allowed.

    Raises:
        HeldBackError: it cuts at least five connections that the host opened, and more than a tenth of these and the
            sessions. `held_back` are the signs of before, which are kept.
    """
    if cut.own_cut() < _LEAST or cut.own_cut() <= _SHARE * (cut.own + sessions):
        return
    raise HeldBackError(
        f"the list cuts connections to {cut.own_cut()} of the {cut.own} addresses to which this host has opened some; "
        "it is taken if the next pull says the same, or now with 'sikkerguard pull --accept'",
        held_back | {CONNECTIONS},
    )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Addresses of a candidate with which a self-test failed; `before` are the findings before the trial."""

    left_out: tuple[LeftOut, ...]
    before: tuple[ProbeResult, ...]

    def shown(self) -> str:
        """`192.0.2.7, 192.0.2.9`."""
        return ", ".join(map(str, self.left_out))


def explain(
    flows: Sequence[Flow], failed: Sequence[ProbeResult], before: tuple[ProbeResult, ...], most: int = MOST_LEFT_OUT
) -> Explanation | None:
    """The far ends of connections that this host opened, or tried to open, to addresses of the candidate while a
    self-test failed; None without any. At most eight, or `most` if that is less: first those at ports that go with what
    failed, then as they come in `flows`."""
    outgoing = sorted((flow for flow in flows if flow.outgoing), key=lambda flow: not _goes_with(flow, failed))
    ends = dict.fromkeys((flow.family, flow.peer) for flow in outgoing)
    if not ends or most <= 0:
        return None
    test = failed[0].name
    left_out = tuple(LeftOut(family, peer, test) for family, peer in list(ends)[:most])
    return Explanation(left_out, before)


def _goes_with(flow: Flow, failed: Sequence[ProbeResult]) -> bool:
    """Whether the flow may be what a self-test lacked: other programs of the host call listed addresses too."""
    return any(
        flow.port in _DNS_PORTS
        if result.name.startswith("DNS")
        else flow.protocol not in (TCP, UDP)
        if result.name.startswith("gateway")
        else flow.protocol == TCP
        for result in failed
    )


def _is_own(flow: Flow) -> bool:
    return flow.outgoing and flow.opened_here


def _way(flow: Flow) -> str:
    if not flow.outgoing:
        return f"opened by it, to port {flow.port} here"
    return f"opened {'from here' if flow.opened_here else 'from behind this host'}, to its port {flow.port}"
