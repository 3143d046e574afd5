"""Who this host is in contact with, and who began it: real connections, by every way to learn of them."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import HOST, HOST_LAN, HOST_V6, INNER, INNER_V6, ping
from scripts.laboratory.tools import wait_for
from sikkerguard.core.host.flows import Flow, NewlyCovered, newly_dropped, opened_since
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Prefix, Ranges
from sikkerguard.core.ports.protocols import TCP, UDP
from sikkerguard.edges.host import flows as edge
from sikkerguard.edges.host.connections import OutgoingWatch
from sikkerguard.edges.host.flows import read_flows
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scripts.laboratory.network import Laboratory, Namespace

PROJECT = Path(__file__).parents[2]
PEER, PEER_V6, OTHER, OTHER_V6 = "203.0.113.7", "2001:db8:7::7", "203.0.113.8", "2001:db8:7::8"
ICMP, ICMP_V6 = 1, 58
Address = tuple[str, int]
BOTH = pytest.mark.parametrize(("peer", "host"), [(PEER, HOST), (PEER_V6, HOST_V6)])
TRACKED = pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])


class Wires:
    """Makes sockets in the laboratory's namespaces, and closes them all at the end."""

    def __init__(self, lab: Laboratory, stack: ExitStack) -> None:
        self.lab = lab
        self._stack = stack

    def bound(
        self, place: Namespace, address: str, port: int = 0, kind: int = socket.SOCK_STREAM, *, dual: bool = False
    ) -> socket.socket:
        """A socket that is bound, with an empty address only to its port."""

        def make() -> socket.socket:
            family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
            made = self._stack.enter_context(closing(socket.socket(family, kind)))
            made.settimeout(5)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if dual:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if address or port:
                made.bind((address, port))
            return made

        return place.inside(make)

    def server(self, place: Namespace, address: str, port: int, *, dual: bool = False) -> socket.socket:
        """One that listens."""
        made = self.bound(place, address, port, dual=dual)
        made.listen()
        return made

    def call(self, place: Namespace, target: Address, source: str = "", port: int = 0) -> socket.socket:
        """A connection."""
        made = self.bound(place, source or ("::" if ":" in target[0] else ""), port)
        made.connect(target)
        return made

    def calling(self, place: Namespace, target: Address) -> socket.socket:
        """A connection that is not there yet."""
        made = self.bound(place, "::" if ":" in target[0] else "")
        made.setblocking(False)
        assert made.connect_ex(target) != 0
        return made

    def datagrams(
        self, place: Namespace, address: str = "", port: int = 0, peer: Address | None = None
    ) -> socket.socket:
        """A socket of UDP, with a peer or without."""
        made = self.bound(place, address or ("::" if peer and ":" in peer[0] else ""), port, socket.SOCK_DGRAM)
        if peer:
            made.connect(peer)
        return made

    def accepted(self, server: socket.socket) -> socket.socket:
        """The next connection that a server takes."""
        return self._stack.enter_context(closing(server.accept()[0]))


@pytest.fixture
def wires(lab: Laboratory) -> Iterator[Wires]:
    for address in (PEER, PEER_V6, OTHER, OTHER_V6):
        lab.own(address)
    with ExitStack() as stack:
        yield Wires(lab, stack)


def track(place: Namespace) -> None:
    """Have connection tracking in use, as a firewall that keeps states has it."""
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        place.run(tool, "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")


def drop(place: Namespace, *addresses: str) -> None:
    """Drop what comes from these, as our own rules do."""
    for address in addresses:
        tool = "ip6tables-legacy" if ":" in address else "iptables-legacy"
        place.run(tool, "-t", "raw", "-I", "PREROUTING", "-s", address, "-j", "DROP")


def read(lab: Laboratory, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
    found = lab.host.inside(lambda: read_flows(covers))
    assert len(found) == len(set(found))
    return found


def of(flows: Iterable[Flow], *peers: str) -> set[tuple[str, int, int, bool, bool, bool]]:
    """The flows with these peers, or with all, but for whether something is unanswered."""
    return {
        (flow.address, flow.protocol, flow.port, flow.outgoing, flow.opened_here, flow.established)
        for flow in flows
        if not peers or flow.address in peers
    }


def outgoing(
    peer: str, port: int, protocol: int = TCP, *, here: bool = True, established: bool = True
) -> tuple[str, int, int, bool, bool, bool]:
    return peer, protocol, port, True, here, established


def incoming(
    peer: str, port: int, protocol: int = TCP, *, here: bool = True, established: bool = True
) -> tuple[str, int, int, bool, bool, bool]:
    return peer, protocol, port, False, here, established


def listed(*texts: str) -> Blocklist:
    """A list of these addresses and ranges."""
    singles: dict[Family, list[bytes]] = {family: [] for family in Family}
    ranges: dict[Family, list[Prefix]] = {family: [] for family in Family}
    for text in texts:
        family, prefix = parse_prefix(text)
        if prefix.length == family.bits:
            singles[family].append(prefix.first.to_bytes(family.size, "big"))
        else:
            ranges[family].append(prefix)
    made = [
        Networks(family, b"".join(sorted(singles[family])), Ranges.of(family, sorted(ranges[family])))
        for family in Family
    ]
    return Blocklist(*made)


@TRACKED
@BOTH
def test_a_connection_that_the_host_opened_is_outgoing_and_one_to_it_is_incoming(
    wires: Wires, peer: str, host: str, tracked: bool
) -> None:
    lab = wires.lab
    if tracked:
        track(lab.host)
    wires.server(lab.internet, peer, 443)
    wires.server(lab.host, host, 22)
    wires.call(lab.host, (peer, 443))
    wires.call(lab.internet, (host, 22), source=peer)
    assert of(read(lab)) == {outgoing(peer, 443), incoming(peer, 22)}
    # The stock tools say the same.
    shown = lab.host.run("ss", "-Htan", "state", "established")
    assert len(re.findall(rf"{re.escape(peer)}\]?:443\b", shown)) == 1
    assert bool(re.findall(r"src=\S+ dst=\S+ sport=\d+ dport=443 ", tracking(lab))) == tracked


def tracking(lab: Laboratory) -> str:
    return lab.host.run("cat", "/proc/net/nf_conntrack")


@TRACKED
@BOTH
def test_an_attempt_is_told_from_a_connection(wires: Wires, peer: str, host: str, tracked: bool) -> None:
    lab = wires.lab
    if tracked:
        track(lab.host)
    wires.server(lab.internet, peer, 443)
    drop(lab.host, peer)
    wires.calling(lab.host, (peer, 443))
    (flow,) = read(lab)
    assert of([flow]) == {outgoing(peer, 443, established=False)}
    assert flow.unanswered


@TRACKED
@BOTH
def test_a_connection_whose_packets_are_dropped_from_now_on_is_unanswered(
    wires: Wires, peer: str, host: str, tracked: bool
) -> None:
    lab = wires.lab
    if tracked:
        track(lab.host)
    other = OTHER_V6 if ":" in peer else OTHER
    for address in (peer, other):
        wires.server(lab.internet, address, 853)
    connections = [wires.call(lab.host, (address, 853)) for address in (peer, other)]
    before = read(lab)
    assert of(before) == {outgoing(peer, 853), outgoing(other, 853)}
    assert opened_since(before, before) == ()
    drop(lab.host, peer)
    for connection in connections:
        connection.sendall(b"question")

    found = wait_for("a retransmission", lambda: opened_since(before, read(lab)))
    assert {flow.address for flow in found} == {peer}


@TRACKED
def test_a_listener_of_both_families_takes_ipv4_peers_as_what_they_are(wires: Wires, tracked: bool) -> None:
    lab = wires.lab
    if tracked:
        track(lab.host)
    wires.server(lab.host, "::", 40022, dual=True)
    wires.call(lab.internet, (HOST, 40022), source=PEER)
    wires.call(lab.internet, (HOST_V6, 40022), source=PEER_V6)
    assert of(read(lab)) == {incoming(PEER, 40022), incoming(PEER_V6, 40022)}


def test_a_caller_from_a_socket_of_both_families_is_outgoing(wires: Wires) -> None:
    lab = wires.lab
    wires.server(lab.internet, PEER, 443)
    wires.bound(lab.host, "::", dual=True).connect((f"::ffff:{PEER}", 443))
    assert of(read(lab)) == {outgoing(PEER, 443)}


def test_one_who_listens_on_another_address_does_not_make_a_caller_incoming(wires: Wires) -> None:
    lab = wires.lab
    wires.server(lab.internet, PEER, 443)
    wires.server(lab.host, HOST_LAN, 40022)
    wires.call(lab.host, (PEER, 443), source=HOST, port=40022)
    assert of(read(lab)) == {outgoing(PEER, 443)}


def test_a_server_that_listens_no_longer_makes_nobody_outgoing_by_a_low_port(wires: Wires) -> None:
    lab = wires.lab
    server = wires.server(lab.host, HOST, 22)
    wires.call(lab.internet, (HOST, 22), source=PEER)
    wires.accepted(server)
    server.close()
    assert of(read(lab)) == {incoming(PEER, 22)}


def test_connection_tracking_knows_better_than_a_port_who_called(wires: Wires) -> None:
    lab = wires.lab
    track(lab.host)
    server = wires.server(lab.host, HOST, 40022)
    wires.call(lab.internet, (HOST, 40022), source=PEER)
    wires.accepted(server)
    server.close()
    assert of(read(lab)) == {incoming(PEER, 40022)}


def test_what_tracking_picked_up_half_way_is_incoming_by_the_port_that_listens(wires: Wires) -> None:
    lab = wires.lab
    server = wires.server(lab.host, HOST, 22)
    wires.call(lab.internet, (HOST, 22), source=PEER)
    session = wires.accepted(server)
    track(lab.host)
    session.sendall(b"the first packet that is tracked")
    line = wait_for("an entry", lambda: tracking(lab))
    assert f"src={HOST} dst={PEER} sport=22 " in line
    assert {flow.outgoing for flow in read(lab)} == {False}


@TRACKED
@BOTH
def test_udp_with_one_peer_is_outgoing_unless_its_port_is_a_servers(
    wires: Wires, peer: str, host: str, tracked: bool
) -> None:
    lab = wires.lab
    if tracked:
        track(lab.host)
    other = OTHER_V6 if ":" in peer else OTHER
    wires.datagrams(lab.internet, peer, 53)
    client = wires.datagrams(lab.host, peer=(peer, 53))
    # A server with a socket for each of its clients beside the one that all begin with.
    first = wires.datagrams(lab.host, host, 40443)
    caller = wires.datagrams(lab.internet, other, 5000)
    caller.sendto(b"hello", (host, 40443))
    assert first.recvfrom(100)[1][:2] == (other, 5000)
    answering = wires.datagrams(lab.host, host, 40443, peer=(other, 5000))
    answering.send(b"hello yourself")
    client.send(b"question")
    found = {entry[:4] for entry in of(read(lab))}
    assert found == {outgoing(peer, 53, UDP)[:4], incoming(other, 40443, UDP)[:4]}


@BOTH
def test_udp_without_a_peer_is_seen_by_connection_tracking(wires: Wires, peer: str, host: str) -> None:
    lab = wires.lab
    track(lab.host)
    other = OTHER_V6 if ":" in peer else OTHER
    server = wires.datagrams(lab.internet, peer, 53)
    forwarder = wires.datagrams(lab.host, host)
    forwarder.sendto(b"question", (peer, 53))
    server.sendto(b"answer", server.recvfrom(100)[1])
    forwarder.recv(100)
    forwarder.sendto(b"question", (other, 51820))
    found = read(lab)
    assert of(found, peer, other) == {outgoing(peer, 53, UDP), outgoing(other, 51820, UDP, established=False)}
    assert {flow.address for flow in found if flow.unanswered and flow.outgoing and flow.protocol == UDP} == {other}


@pytest.mark.parametrize("masquerade", [False, True])
@pytest.mark.parametrize(("peer", "inner", "host"), [(PEER, INNER, HOST), (PEER_V6, INNER_V6, HOST_V6)])
def test_what_a_machine_behind_the_host_opened_is_outgoing_and_not_the_hosts_own(
    wires: Wires, peer: str, inner: str, host: str, masquerade: bool
) -> None:
    lab = wires.lab
    track(lab.host)
    tool = "ip6tables-legacy" if ":" in peer else "iptables-legacy"
    if masquerade:
        lab.host.run(tool, "-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
    server = wires.server(lab.internet, peer, 443)
    wires.call(lab.inner, (peer, 443))
    assert wires.accepted(server).getpeername()[0] == (host if masquerade else inner)
    assert of(read(lab), peer) == {outgoing(peer, 443, here=False)}


@pytest.mark.parametrize(("peer", "inner"), [(PEER, "198.51.100.129"), (PEER_V6, "2001:db8:2::2")])
def test_a_machine_behind_the_host_may_have_an_address_of_the_internet(wires: Wires, peer: str, inner: str) -> None:
    lab = wires.lab
    track(lab.host)
    length = 64 if ":" in inner else 25
    near = "2001:db8:2::1" if ":" in inner else "198.51.100.130"
    lab.host.run("ip", "addr", "add", f"{near}/{length}", "dev", "lan", *(("nodad",) if ":" in inner else ()))
    lab.inner.run("ip", "addr", "add", f"{inner}/{length}", "dev", "wan", *(("nodad",) if ":" in inner else ()))
    lab.internet.run("ip", "route", "add", inner, "via", HOST_V6 if ":" in inner else HOST)
    wires.server(lab.internet, peer, 443)
    wires.call(lab.inner, (peer, 443), source=inner)
    # Who calls it is incoming, and so is what it answers.
    wires.server(lab.inner, inner, 80)
    other = OTHER_V6 if ":" in peer else OTHER
    wires.call(lab.internet, (inner, 80), source=other)
    assert of(read(lab)) == {
        outgoing(peer, 443, here=False),
        incoming(inner, 443, here=False),
        incoming(other, 80, here=False),
        incoming(inner, 80, here=False),
    }


def test_the_peer_is_who_answers_and_not_who_was_called(wires: Wires) -> None:
    lab = wires.lab
    track(lab.host)
    for chain in ("OUTPUT", "PREROUTING"):
        lab.host.run(
            *("iptables-legacy", "-t", "nat", "-A", chain, "-d", "192.0.2.80", "-p", "tcp"),
            *("-j", "DNAT", "--to-destination", f"{PEER}:8080"),
        )
    wires.server(lab.internet, PEER, 8080)
    wires.call(lab.host, ("192.0.2.80", 80))
    wires.call(lab.inner, ("192.0.2.80", 80))
    assert of(read(lab), PEER, "192.0.2.80") == {outgoing(PEER, 8080), outgoing(PEER, 8080, here=False)}


def test_a_published_port_is_the_one_that_the_caller_named_and_its_callers_are_incoming(wires: Wires) -> None:
    lab = wires.lab
    track(lab.host)
    lab.host.run(
        *("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-d", HOST, "-p", "tcp", "--dport", "8443"),
        *("-j", "DNAT", "--to-destination", f"{INNER}:443"),
    )
    wires.server(lab.inner, INNER, 443)
    wires.call(lab.internet, (HOST, 8443), source=PEER)
    assert of(read(lab), PEER) == {incoming(PEER, 8443, here=False)}


def assail(wires: Wires, peer: str, host: str) -> None:
    """Packets of many kinds at the host, from someone to whom it sends nothing but what these call for."""
    lab = wires.lab
    for port in (53, 123, 40443):
        wires.datagrams(lab.internet, peer, port).sendto(b"knock", (host, port))
    wires.datagrams(lab.internet, peer).sendto(b"knock", (host, 9))
    wires.calling(lab.internet, (host, 9))
    wires.call(lab.internet, (host, 22), source=peer)
    assert lab.reaches(peer, host)


@TRACKED
@BOTH
def test_who_only_sends_packets_is_never_outgoing(wires: Wires, peer: str, host: str, tracked: bool) -> None:
    lab = wires.lab
    if tracked:
        track(lab.host)
    wires.server(lab.host, host, 22)
    early = wires.datagrams(lab.host, host, 53)
    watch = OutgoingWatch()
    lab.host.inside(watch.__enter__)
    with closing(Closed(watch)):
        assert watch.available
        before = read(lab)
        late = wires.datagrams(lab.host, host, 40443)
        assail(wires, peer, host)
        for server in (early, late):
            question, asker = server.recvfrom(100)
            server.sendto(question, asker)
        now = read(lab)
        seen = watch.seen()
    assert not [flow for flow in (*before, *now, *seen) if flow.outgoing and flow.address == peer]
    assert incoming(peer, 22)[:4] in {entry[:4] for entry in of(now, peer)}
    assert not [flow for flow in opened_since(before, now, seen) if flow.address == peer]


class Closed:
    """Ends a watch that was begun in another thread."""

    def __init__(self, watch: OutgoingWatch) -> None:
        self._watch = watch

    def close(self) -> None:
        self._watch.__exit__(None, None, None)


@pytest.fixture
def watch(wires: Wires) -> Iterator[OutgoingWatch]:
    """One that is under way in the host, with sockets that were there before."""
    made = OutgoingWatch()
    wires.lab.host.inside(made.__enter__)
    assert made.available
    with closing(Closed(made)):
        yield made


@BOTH
def test_the_watch_sees_whom_the_host_calls(wires: Wires, watch: OutgoingWatch, peer: str, host: str) -> None:
    lab = wires.lab
    other = OTHER_V6 if ":" in peer else OTHER
    server = wires.datagrams(lab.internet, peer, 53)
    forwarder = wires.datagrams(lab.host, host)
    forwarder.sendto(b"question", (peer, 53))
    server.sendto(b"answer", server.recvfrom(100)[1])
    forwarder.recv(100)
    drop(lab.host, other)
    wires.calling(lab.host, (other, 853))
    assert wires.lab.host.inside(lambda: answers(other)) is False
    number = ICMP_V6 if ":" in peer else ICMP
    wanted = {
        outgoing(peer, 53, UDP, established=False),
        outgoing(other, 853, established=False),
        outgoing(other, 0, number, established=False),
    }
    # The kernel looks for neighbours too; that is ICMP as well, but no echo request.
    assert of(watch.seen()) == wanted
    assert of(opened_since((), read(lab), watch.seen())) >= wanted


def answers(target: str) -> bool:
    """Whether one ping is answered."""
    return ping(HOST_V6 if ":" in target else HOST, target)


def test_the_watch_does_not_take_what_it_passes_on_or_says_to_itself_for_calls(
    wires: Wires, watch: OutgoingWatch
) -> None:
    lab = wires.lab
    taker = wires.datagrams(lab.internet, PEER, 53)
    wires.datagrams(lab.inner, INNER).sendto(b"question", (PEER, 53))
    taker.recv(100)
    itself = wires.datagrams(lab.host, HOST, 5353)
    wires.datagrams(lab.host, HOST).sendto(b"question", (HOST, 5353))
    itself.recv(100)
    wires.datagrams(lab.host, "127.0.0.1").sendto(b"question", ("127.0.0.53", 53))
    assert watch.seen() == frozenset()


def test_the_watch_knows_no_caller_among_those_it_answers_from_a_port_of_before(wires: Wires) -> None:
    lab = wires.lab
    server = wires.datagrams(lab.host, HOST, 53)
    client = wires.datagrams(lab.internet, PEER, 5000)
    client.sendto(b"question", (HOST, 53))
    question, asker = server.recvfrom(100)
    watch = OutgoingWatch()
    lab.host.inside(watch.__enter__)
    with closing(Closed(watch)):
        server.sendto(question, asker)
        client.recv(100)
        assert watch.seen() == frozenset()


def test_the_watch_says_nothing_of_udp_when_it_missed_packets(wires: Wires, watch: OutgoingWatch) -> None:
    lab = wires.lab
    client = wires.datagrams(lab.host, HOST)
    for _ in range(30_000):
        client.sendto(b"question", (PEER, 53))
    wires.server(lab.internet, OTHER, 443)
    first = watch.seen()
    wires.call(lab.host, (OTHER, 443))
    client.sendto(b"question", (OTHER, 53))
    assert of(first | watch.seen(), OTHER) == {outgoing(OTHER, 443, established=False)}


def test_only_peers_that_are_asked_for_are_given(wires: Wires) -> None:
    lab = wires.lab
    track(lab.host)
    wires.server(lab.internet, PEER, 443)
    wires.server(lab.internet, OTHER, 443)
    wires.call(lab.host, (PEER, 443))
    wires.call(lab.host, (OTHER, 443))
    candidate, committed = listed("203.0.113.0/29", OTHER, PEER_V6), listed("203.0.113.0/29")
    found = read(lab, NewlyCovered(candidate, committed))
    assert of(found) == {outgoing(OTHER, 443)}
    assert newly_dropped(read(lab), candidate, committed) == tuple(flow for flow in found if not flow.unanswered)


def test_reading_leaves_connection_tracking_where_it_is_not_in_use(wires: Wires) -> None:
    lab = wires.lab
    before = lab.everything()
    wires.server(lab.internet, PEER, 443)
    wires.call(lab.host, (PEER, 443))
    assert of(read(lab)) == {outgoing(PEER, 443)}
    wires.call(lab.host, (PEER, 443))
    assert lab.host.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").strip() == "0"
    assert lab.everything() == before


def test_what_one_way_does_not_tell_the_other_does(
    wires: Wires, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab = wires.lab
    wires.server(lab.internet, PEER, 443)
    track(lab.host)
    wires.call(lab.host, (PEER, 443))
    no_such_protocol = 31
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(edge, "_SOCK_DIAG", no_such_protocol)
        assert of(read(lab)) == {outgoing(PEER, 443)}
        patched.undo()
        patched.setattr(edge, "_NETFILTER", no_such_protocol)
        assert of(read(lab)) == {outgoing(PEER, 443)}
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "Some connections are not seen: sockets can't be read over netlink",
        "Some connections are not seen: connection tracking can't be read over netlink",
    ]
    monkeypatch.setattr(edge, "_SOCK_DIAG", no_such_protocol)
    monkeypatch.setattr(edge, "_NETFILTER", no_such_protocol)
    with pytest.raises(KernelError, match=r"connections can't be seen: sockets .*; connection tracking "):
        read(lab)


PROGRAM = """
from sikkerguard.edges.host.flows import read_flows
from sikkerguard.edges.host.connections import OutgoingWatch
with OutgoingWatch() as watch:
    for flow in read_flows():
        print(flow.address, flow.port, flow.outgoing)
    print(watch.available)
"""


@pytest.mark.parametrize("capabilities", ["+net_admin,+net_raw", "+net_admin"])
def test_an_ordinary_user_needs_one_capability_to_read_and_one_to_watch(wires: Wires, capabilities: str) -> None:
    lab = wires.lab
    track(lab.host)
    wires.datagrams(lab.host, HOST).sendto(b"question", (PEER, 53))
    rights = [f"--{kind}=-all,{capabilities}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    done = subprocess.run(
        [
            *("ip", "netns", "exec", lab.host.name, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *(*rights, "--no-new-privs", sys.executable, "-c", PROGRAM),
        ],
        cwd=PROJECT,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    assert done.stdout == f"{PEER} 53 True\n{'net_raw' in capabilities}\n"
