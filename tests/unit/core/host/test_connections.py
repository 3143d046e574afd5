"""What a list means for this host's connections."""

from __future__ import annotations

import socket

import pytest

from sikkerguard.core.host.connections import CONNECTIONS, MOST_LEFT_OUT, cut_connections, explain, hold_back
from sikkerguard.core.host.flows import Flow
from sikkerguard.core.lists.sources import LeftOut
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.selftest import Outcome, ProbeResult
from sikkerguard.errors import HeldBackError
from tests.unit.core.lists.test_admission import listing

INCOMING = False
FAILED = (ProbeResult("DNS by 127.0.0.1", Outcome.FAILED, "did not resolve in 3 tries"),)


def flow(
    peer: str,
    outgoing: bool = True,
    port: int = 443,
    *,
    here: bool = True,
    established: bool = True,
    unanswered: bool = False,
) -> Flow:
    family = Family.V6 if ":" in peer else Family.V4
    number = int.from_bytes(socket.inet_pton(family.number, peer), "big")
    return Flow(family, number, 6, port, outgoing, here, established, unanswered)


def own(count: int, first: int = 1) -> list[Flow]:
    """Connections that this host opened, to so many addresses."""
    return [flow(f"198.51.100.{number}") for number in range(first, first + count)]


def test_each_peer_that_is_newly_covered_is_named_once_with_the_way_of_its_connection() -> None:
    flows = [
        flow("203.0.113.5", INCOMING, 22, here=True),
        flow("203.0.113.6", port=25),
        flow("203.0.113.6", INCOMING, 80),
        flow("2001:db8:7::1", here=False),
        flow("203.0.113.7", established=False),
        flow("203.0.113.9"),
        flow("198.51.100.1"),
    ]
    cut = cut_connections(flows, listing("203.0.113.0/28", "2001:db8:7::/48"), listing("203.0.113.9"))
    assert cut.sentence() == (
        "The new list cuts connections to 3 addresses: 203.0.113.6 (opened from here, to its port 25), 2001:db8:7::1 "
        "(opened from behind this host, to its port 443), 203.0.113.5 (opened by it, to port 22 here)."
    )
    assert (cut.own, cut.own_cut()) == (3, 1)


def test_the_first_ten_are_named() -> None:
    cut = cut_connections(own(12), listing("198.51.100.0/28"), Blocklist())
    assert "12 addresses: 198.51.100.1 (" in cut.sentence()
    assert "198.51.100.10 (opened from here, to its port 443), and 2 more." in cut.sentence()


@pytest.mark.parametrize(
    ("cut", "in_all", "sessions", "held"),
    [(5, 49, 0, True), (5, 50, 0, False), (5, 48, 1, True), (5, 48, 2, False), (4, 4, 0, False), (12, 12, 3, True)],
)
def test_much_of_what_the_host_is_after_holds_a_list_back(cut: int, in_all: int, sessions: int, held: bool) -> None:
    flows = [*own(in_all), *(flow(f"203.0.113.{number}", INCOMING, 22) for number in range(200))]
    candidate = listing(*(f"198.51.100.{number}" for number in range(1, cut + 1)))
    found = cut_connections(flows, candidate, Blocklist())
    assert (found.own, found.own_cut()) == (in_all, cut)
    if not held:
        hold_back(found, sessions, frozenset({"halved"}))
        return
    with pytest.raises(HeldBackError, match=rf"to {cut} of the {in_all} addresses.*--accept") as refused:
        hold_back(found, sessions, frozenset({"halved"}))
    assert refused.value.suspicions == {"halved", CONNECTIONS}


def test_whoever_came_by_himself_holds_nothing_back() -> None:
    flows = [flow(f"203.0.113.{number}", INCOMING, 22) for number in range(200)]
    flows += [flow(f"198.51.100.{number}", here=False) for number in range(200)]
    found = cut_connections(flows, listing("203.0.113.0/24", "198.51.100.0/24"), Blocklist())
    assert len(found.peers) == 400
    hold_back(found, 0, frozenset())


def test_only_what_the_host_sent_first_explains_a_failure() -> None:
    incoming = [flow("203.0.113.66", INCOMING, 53), flow("203.0.113.67", INCOMING, 53, established=False)]
    assert explain(incoming, FAILED, ()) is None
    found = explain([*incoming, flow("203.0.113.53", port=53), flow("203.0.113.53", port=853)], FAILED, FAILED)
    assert found is not None
    assert found.left_out == (LeftOut(Family.V4, 0xCB007135, "DNS by 127.0.0.1"),)
    assert found.shown() == "203.0.113.53"
    assert found.before == FAILED


def test_what_goes_with_the_failed_test_comes_before_other_callers() -> None:
    upstream = flow("203.0.113.200", port=53)
    found = explain([*(flow(f"198.51.100.{number}", port=6667) for number in range(1, 13)), upstream], FAILED, ())
    assert found is not None
    assert str(found.left_out[0]) == "203.0.113.200"
    assert len(found.left_out) == MOST_LEFT_OUT
    few = explain([flow("198.51.100.1", port=6667), upstream], FAILED, (), 1)
    assert few is not None
    assert few.shown() == "203.0.113.200"
    assert explain([upstream], FAILED, (), 0) is None


def test_at_most_eight_addresses_are_left_out_the_first_ones() -> None:
    found = explain(own(12), FAILED, ())
    assert found is not None
    assert [str(each) for each in found.left_out] == [f"198.51.100.{number}" for number in range(1, MOST_LEFT_OUT + 1)]
    assert MOST_LEFT_OUT == 8
