"""What a list means for this host's own connections: said before it blocks, and no reason to refuse it for ever."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import HOST, Laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from tests.kernel.test_hostile_lists import LISTED, assert_protected, pull, serve, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.conftest import Guard

PEERS = [f"192.0.2.{number}" for number in range(10, 22)]
UPSTREAM, SENDER = "203.0.113.53", "203.0.113.54"


@contextlib.contextmanager
def connected(lab: Laboratory, peers: list[str], *, from_here: bool) -> Iterator[None]:
    """Established connections between the host and these addresses, all to port 443 of the one that was called."""
    lab.own_many(peers)
    with contextlib.ExitStack() as stack:

        def listen(address: str) -> socket.socket:
            return stack.enter_context(socket.create_server((address, 443), backlog=64))

        if from_here:
            servers = {peer: lab.internet.inside(lambda peer=peer: listen(peer)) for peer in peers}  # type: ignore[misc]
        else:
            servers = dict.fromkeys(peers, lab.host.inside(lambda: listen(HOST)))
        for peer in peers:
            caller, target = (lab.host, (peer, 443)) if from_here else (lab.internet, (HOST, 443))
            source = None if from_here else (peer, 0)
            stack.enter_context(
                caller.inside(
                    lambda target=target, source=source: socket.create_connection(target, 5, source_address=source)  # type: ignore[misc]
                )
            )
            stack.enter_context(servers[peer].accept()[0])
        yield


def test_a_list_that_cuts_what_the_host_is_after_is_held_back_once(guard: Guard) -> None:
    guard.expected_errors.append(" ERROR The list cuts connections .*next try in 1[0-5]m")
    lab = guard.lab
    with connected(lab, PEERS[:4], from_here=True), connected(lab, PEERS[4:], from_here=False):
        start(guard, [LISTED, *PEERS[:1]])
        # A first list is never held back for this, and says it all the same.
        guard.logged(
            rf"WARNING The new list cuts connections to 1 address: {PEERS[0]} \(opened from here, to its port 443"
        )
        # Whoever came by himself holds nothing back, and nor do few.
        serve(guard, [LISTED, *PEERS])
        assert pull(guard, "--accept").startswith("Blocking 13 IPs")
        line = guard.logged("WARNING The new list cuts connections to 11 addresses: ")
        assert line.index(PEERS[1]) < line.index(PEERS[4])
        assert f"{PEERS[4]} (opened by it, to port 443 here)" in line
        assert line.endswith("and 1 more.")
    serve(guard, [LISTED, "45.0.0.1", "45.0.0.2", "45.0.0.3", "45.0.0.4", "45.0.0.5"])
    assert pull(guard, "--accept") == "Blocking 6 IPs\n"
    with connected(lab, PEERS[:6], from_here=True), connected(lab, PEERS[6:], from_here=False):
        serve(guard, [LISTED, *PEERS])
        assert "the list cuts connections to 6 of the 6 addresses to which this host has opened" in pull(guard)
        for peer in PEERS:
            assert lab.reaches(peer), peer
        assert not lab.passes(LISTED)
        # Said again, it is believed.
        assert pull(guard) == "Blocking 13 IPs\n"
        for peer in PEERS:
            assert not lab.passes(peer), peer


class Forwarder:
    """A name server on the host's own 127.0.0.1, which asks another one: each time from another port, by a socket that
    names no peer."""

    def __init__(self, lab: Laboratory, upstream: str) -> None:
        self._upstream = upstream
        self._asked = lab.host.inside(self._bound)
        self._thread = threading.Thread(target=lambda: lab.host.inside(self._serve), daemon=True)

    @staticmethod
    def _bound() -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind(("127.0.0.1", 53))
        return bound

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._asked.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._asked.close()

    def _serve(self) -> None:
        while True:
            try:
                question, asker = self._asked.recvfrom(2048)
            except OSError:
                return
            if not question:
                return
            # An upstream that does not answer, or that nothing may be sent to, is not answered for.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
                asking.settimeout(0.4)
                asking.sendto(question, (self._upstream, 53))
                self._asked.sendto(asking.recv(2048), asker)


@contextlib.contextmanager
def sending(lab: Laboratory, source: str) -> Iterator[None]:
    """Somebody who sends packets to the host without end, to port 53 among others."""
    lab.own(source)
    done = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind((source, 53))
            while not done.wait(0.02):
                for port in (53, 4053, 5353):
                    with contextlib.suppress(OSError):
                        made.sendto(b"here I am", (HOST, port))

    thread = threading.Thread(target=lambda: lab.internet.inside(send))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("tracked", [True, False], ids=["with connection tracking", "without"])
def test_a_forwarder_s_upstream_on_the_list_does_not_refuse_it(guard: Guard, tracked: bool) -> None:
    lab = guard.lab
    lab.own(UPSTREAM)
    resolv_conf = _resolv_conf(lab)
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    if tracked:
        for chain in ("INPUT", "OUTPUT"):
            lab.host.run("iptables", "-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT")
    with Resolver(lab.internet, UPSTREAM) as upstream, Forwarder(lab, UPSTREAM), sending(lab, SENDER):
        start(guard, [LISTED, "2001:db8:7::7"])
        assert_protected(guard)
        serve(guard, [LISTED, "2001:db8:7::7", UPSTREAM, SENDER])
        assert pull(guard) == "Blocking 3 IPs\n"
        line = guard.logged("WARNING The new list is tried once more without ")
        assert f"without {UPSTREAM}: the self-test failed: DNS by 127.0.0.1 did not resolve in 3 tries" in line
        assert "it dropped packets of " in line
        assert SENDER in line.partition("it dropped packets of ")[2]
        # Whoever sends packets is blocked all the same.
        assert not lab.passes(SENDER)
        assert lab.reaches(UPSTREAM)
        assert_protected(guard)
        assert guard.status()["leftOut"] == [UPSTREAM]
        done = guard.cli("check", UPSTREAM)
        assert done.returncode == 0
        assert "is not blocked." in done.stdout
        assert "Listed by SikkerAPI" in done.stdout
        assert "It is left out of the list: with it, 'DNS by 127.0.0.1' failed in the trial." in done.stdout
        assert json.loads(guard.cli("check", UPSTREAM, "--json").stdout)["left_out"] == "DNS by 127.0.0.1"

        # It stays so over a restart, and each pull tests it again.
        guard.kill()
        guard.start()
        guard.logged(r"Blocking 3 IPs \(from the cache")
        assert guard.status()["leftOut"] == [UPSTREAM]
        guard.logged("is tried once more without", times=2, seconds=30)
        guard.logged("Blocking 3 IPs$", times=2, seconds=30)
        assert upstream.questions
        # Once nobody asks it any more, it is blocked like any other.
        resolv_conf.write_text("nameserver 198.51.100.53\n")
        wait_for("the new resolver", lambda: "198.51.100.53" in lab.sets())
        assert pull(guard) == "Blocking 4 IPs\n"
        assert not lab.passes(UPSTREAM)
        assert guard.status()["leftOut"] == []


def test_whoever_only_sends_packets_is_not_left_out(guard: Guard) -> None:
    guard.expected_errors.append(" ERROR The self-test failed: DNS by 127.0.0.1")
    lab = guard.lab
    lab.own(UPSTREAM)
    _resolv_conf(lab).write_text("nameserver 127.0.0.1\n")
    with Resolver(lab.internet, UPSTREAM), Forwarder(lab, UPSTREAM), sending(lab, SENDER):
        start(guard, [LISTED, "2001:db8:7::7"])
        # The way to the upstream is cut by nobody's list, but at the moment of the trial.
        serve(guard, [LISTED, "2001:db8:7::7", SENDER])
        lost = ("-p", "udp", "-d", UPSTREAM, "-m", "statistic", "--mode", "nth", "--every", "5", "--packet", "0")
        lab.host.run("iptables", "-A", "OUTPUT", *lost, "-j", "ACCEPT")
        lab.host.run("iptables", "-A", "OUTPUT", "-p", "udp", "-d", UPSTREAM, "-j", "DROP")
        assert "the self-test failed: DNS by 127.0.0.1" in pull(guard)
        assert "tried once more" not in guard.log()
        assert guard.blocked() == {LISTED, "2001:db8:7::7"}
        assert lab.reaches(SENDER)


def _resolv_conf(lab: Laboratory) -> Path:
    from pathlib import Path

    return Path(f"/etc/netns/{lab.host.name}/resolv.conf")
