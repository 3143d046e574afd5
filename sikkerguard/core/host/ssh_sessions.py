"""Which connections to sshd are let through where nobody records who is logged in: those that stand long enough.

Someone who guesses passwords has an established connection too. sshd ends one that nobody logs in by within
`LoginGraceTime`, two minutes unless told otherwise (sshd_config(5)): what we have seen for that long is a session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sikkerguard.core.net.family import Family

# Seconds for which a connection was seen before its peer is allowed.
STANDING_SECONDS = 120.0
# Peers that are allowed at most, whoever tells of them.
MOST_PEERS = 64


class Connection(NamedTuple):
    """An established connection: its peer, and all that tells it apart from any other: both ends' addresses and ports,
    and the number of the socket, by which one that was made anew between the same ports is another one."""

    family: Family
    peer: int
    identity: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The connections that are known: `since` when each was seen, on the clock of `follow`, and those `trusted`."""

    since: Mapping[Connection, float] = field(default_factory=dict)
    trusted: frozenset[Connection] = frozenset()


def follow(
    before: Standing, established: Iterable[Connection], now: float, listed: Callable[[Family, int], bool]
) -> Standing:
    """What is known when these connections are established at `now` (seconds on a clock that is never put back).

    A connection is trusted once it was seen in every look for `STANDING_SECONDS`, unless its peer is on the list at
    that moment. One that is trusted stays so until it ends, also if its peer is listed later: who is at work must not
    be cut off by the next list.
    """
    since = {connection: before.since.get(connection, now) for connection in established}
    trusted = {
        connection
        for connection, seen in since.items()
        if connection in before.trusted
        or (now - seen >= STANDING_SECONDS and not listed(connection.family, connection.peer))
    }
    return Standing(since, frozenset(trusted))


def peers(standing: Standing) -> tuple[tuple[Family, int], ...]:
    """The peers of trusted connections, each once, those first that are known longest; at most `MOST_PEERS`."""
    ordered = sorted(standing.trusted, key=lambda connection: (standing.since[connection], connection.identity))
    distinct = dict.fromkeys((connection.family, connection.peer) for connection in ordered)
    return tuple(distinct)[:MOST_PEERS]
