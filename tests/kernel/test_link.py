"""What neighbours on the link send that no host can do without is let through, whoever is listed; and nothing else."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import HOST, HOST_V6, Laboratory
from scripts.laboratory.packets import Wire, packet
from scripts.laboratory.tools import wait_for
from tests.kernel.conftest import UNPROTECTED
from tests.kernel.test_counting import dropped, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Guard

# Of the link's own prefix, as a router has it, and of elsewhere.
NEIGHBOUR, LISTED, LISTED_V6 = "2001:db8:1::7", "203.0.113.7", "2001:db8:7::7"
SOLICITATION, ADVERTISEMENT = 135, 136


def begin(guard: Guard, *entries: str) -> Wire:
    """A service that blocks these, and allows nothing of its network."""
    guard.serve(*entries)
    guard.start(*UNPROTECTED)
    guard.logged(f"Blocking {len(entries)} IPs$")
    return Wire(guard.lab)


def neighbour_state(lab: Laboratory, of: str) -> str:
    """How the internet's side knows this address of the host, as `ip` prints it."""
    shown = lab.internet.run("ip", "-6", "neigh", "show", of, "dev", "lan").split()
    return shown[-1] if shown else ""


def test_a_listed_router_resolves_the_host_and_its_pings_are_dropped(guard: Guard) -> None:
    # Its first address is the gateway that the self-test asks, so that no such list would get through: the other one.
    lab = guard.lab
    lab.internet.run("ip", "addr", "add", f"{NEIGHBOUR}/64", "dev", "lan", "nodad")
    lab.owned.add(NEIGHBOUR)
    assert lab.reaches(NEIGHBOUR)
    begin(guard, NEIGHBOUR)
    lab.internet.run("ip", "-6", "neigh", "flush", "dev", "lan")
    assert neighbour_state(lab, HOST_V6) == ""
    before = dropped(guard)
    assert not lab.passes(NEIGHBOUR)
    # That ping had it ask for the host, from the same address.
    wait_for("the router's entry of the host", lambda: neighbour_state(lab, HOST_V6) == "REACHABLE", 5)
    assert dropped(guard) > before
    # The other way its advertisement has that address as its source.
    lab.host.run("ip", "-6", "neigh", "flush", "dev", "wan")
    with bound(lab, "::", 0, host=True) as asker:
        asker.sendto(b"", (NEIGHBOUR, 9))
    known = ("ip", "-6", "neigh", "show", NEIGHBOUR, "dev", "wan")
    wait_for("the host's entry of the router", lambda: "REACHABLE" in lab.host.run(*known), 5)
    assert not lab.passes(NEIGHBOUR)
    guard.logged(rf"BLOCKED {NEIGHBOUR} \(type 128 code 0\) proto=ICMPv6 x")


def neighbour_packet(kind: int, hops: int) -> bytes:
    body = struct.pack("!BBHI", kind, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, HOST_V6)
    return packet(NEIGHBOUR, socket.IPPROTO_ICMPV6, body, hops=hops)


def test_what_a_router_has_passed_on_is_no_neighbours(guard: Guard) -> None:
    wire = begin(guard, NEIGHBOUR)
    near = [neighbour_packet(kind, 255) for kind in (SOLICITATION, ADVERTISEMENT)]
    wire.send(near * 3)
    assert dropped(guard) == 0
    far = [neighbour_packet(kind, hops) for kind in (SOLICITATION, ADVERTISEMENT) for hops in (1, 64, 254)]
    # Other messages of the link's own hop limit: an echo, an error, a redirect.
    far += [neighbour_packet(kind, 255) for kind in (128, 1, 137)]
    wire.send(far)
    assert dropped(guard) == len(far)
    settle(guard, len(far))
    guard.logged(rf"BLOCKED {NEIGHBOUR} \(type 135 code 0\) proto=ICMPv6 x3")


def bound(lab: Laboratory, address: str, port: int, *, host: bool) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5)
        made.bind((address, port))
        return made

    return (lab.host if host else lab.internet).inside(make)


@pytest.fixture
def client(lab: Laboratory) -> Iterator[socket.socket]:
    with bound(lab, "0.0.0.0", 68, host=True) as made:
        yield made


@pytest.fixture
def client_v6(lab: Laboratory) -> Iterator[socket.socket]:
    with bound(lab, "::", 546, host=True) as made:
        yield made


def link_local(lab: Laboratory) -> str:
    """The host's own address of the link."""

    def found() -> str:
        shown = lab.host.run("ip", "-6", "-brief", "addr", "show", "dev", "wan", "scope", "link")
        return next((word.partition("/")[0] for word in shown.split() if word.startswith("fe80:")), "")

    return wait_for("the link-local address", found)


def test_dhcp_answers_of_a_listed_server_arrive_and_no_other_datagrams(
    guard: Guard, client: socket.socket, client_v6: socket.socket
) -> None:
    lab = guard.lab
    begin(guard, LISTED, LISTED_V6)
    lab.own(LISTED)
    lab.own(LISTED_V6)
    on_link = link_local(lab)
    index = lab.internet.inside(lambda: socket.if_nametoindex("lan"))
    sent = 0
    for source, target, server, port in (
        (LISTED, (HOST, 68), 67, 68),
        (LISTED_V6, (on_link, 546, 0, index), 547, 546),
    ):
        with bound(lab, source, server, host=False) as listed, bound(lab, source, server + 1000, host=False) as other:
            # These are dropped before the last one, which arrives alone.
            other.sendto(b"from another port", target)
            listed.sendto(b"to another port", (target[0], port + 1000, *target[2:]))
            sent += 2
            if ":" in source:
                listed.sendto(b"to another address", (HOST_V6, port))
                sent += 1
            listed.sendto(b"an answer", target)
        data, (came_from, *_) = (client_v6 if ":" in source else client).recvfrom(64)
        assert (data, came_from) == (b"an answer", source)
    assert dropped(guard) == sent
    settle(guard, sent)
