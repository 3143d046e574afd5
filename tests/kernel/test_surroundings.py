"""What this host talks to is found out, let through though it is listed, and blocked again when it is gone."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API, GATEWAY, GATEWAY_V6, HOST, HOST_LAN, HOST_V6, RESOLVER
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from sikkerguard.core.net.address import packed_to_text
from sikkerguard.edges.host.addresses import addresses
from sikkerguard.edges.host.monitor import ChangeMonitor
from tests.kernel.conftest import SIKKERGUARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.laboratory.network import Laboratory
    from tests.kernel.conftest import Guard

IMPATIENT = (sys.executable, "-m", "tests.kernel.impatient")
TRUSTING = (sys.executable, "-m", "tests.kernel.trusting")
# As the product promises it.
SECONDS_TO_ALLOW = 2
ALLOWED_RANGES = 7  # loopback, link-local and private ranges that are allowed on every host


def allowed(lab: Laboratory) -> set[str]:
    """The entries of the allow sets."""
    return set(re.findall(r"^add sikkerguard-allow-v[46] (\S+)", lab.sets(), re.MULTILINE))


def assert_allowed(lab: Laboratory, *addresses: str) -> None:
    """These are allowed within the promised time."""
    wait_for(f"{addresses} in the allow sets", lambda: allowed(lab) >= set(addresses), SECONDS_TO_ALLOW)


def assert_let_in(lab: Laboratory, *addresses: str) -> None:
    """The same, and their packets pass."""
    assert_allowed(lab, *addresses)
    for address in addresses:
        assert lab.reaches(address), address


def assert_shut_out(guard: Guard, *addresses: str) -> None:
    """These are allowed no longer, and blocked again."""
    wait_for(f"{addresses} gone", lambda: allowed(guard.lab).isdisjoint(addresses), SECONDS_TO_ALLOW)
    wait_for(f"{addresses} blocked", lambda: guard.blocked() >= set(addresses))
    for address in addresses:
        assert not guard.lab.passes(address), address


class Files:
    """Of the service's own: an /etc where a test may write, with the machine's files where it does not, and a /run with
    nothing of the machine's."""

    def __init__(self, directory: Path) -> None:
        self.etc, self.run = directory / "etc", directory / "run"
        self._machines = directory / "machines-etc"
        for path in (self.etc, self.run, self._machines):
            path.mkdir()
        for entry in Path("/etc").iterdir():
            (self.etc / entry.name).symlink_to(self._machines / entry.name)

    def write(self, name: str, text: str) -> Path:
        """A file in /etc in place of the machine's; one that a test has written already is written anew in its
        place."""
        path = self.etc / name
        for part in (path.parent, path):
            if part.is_symlink():
                part.unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def have_logind(self) -> None:
        """What logind makes at its start."""
        for name in ("sessions", "seats"):
            (self.run / "systemd" / name).mkdir(parents=True)
        (self.run / "systemd/seats/seat0").write_text("# This is private data. Do not parse.\n")

    def log_in(self, host: str) -> Path:
        """The record of a session of someone, as logind puts it in its place."""
        path = self.run / "systemd/sessions/7"
        fresh = path.with_name(".#7")
        fresh.write_text(f"UID=0\nACTIVE=1\nSTATE=active\nREMOTE=1\nREMOTE_HOST={host}\nSERVICE=sshd\n")
        return fresh.rename(path)

    def start(self, guard: Guard, *words: str, **variables: str) -> None:
        """Start the service, or another program, with them. `ip netns exec` has made a mount namespace for it
        already."""
        # The lock of iptables is the machine's.
        (self.run / "xtables.lock").touch()
        mounts = (
            f"mount --bind /etc {self._machines}; mount --bind {self.etc} /etc; "
            f"mount --bind /run/xtables.lock {self.run}/xtables.lock; mount --rbind {self.run} /run"
        )
        program = " ".join(words or (*SIKKERGUARD, "run"))
        guard.start("sh", "-ec", f"touch /run/xtables.lock; {mounts}; exec {program}", **variables)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """With the laboratory's resolver, and a sshd that tells logind of each session."""
    made = Files(tmp_path)
    made.write("resolv.conf", resolv_conf(RESOLVER))
    made.write("ssh/sshd_config", "UsePAM yes\n")
    made.write("pam.d/sshd", "session optional pam_systemd.so\n")
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered into it is left at the end."""
    with ExitStack() as made:
        yield made


def resolv_conf(*addresses: str) -> str:
    """Its text with these name servers."""
    return "# a comment\nsearch example.net\n" + "".join(f"nameserver {address}\n" for address in addresses)


def own_nearby(lab: Laboratory, *addresses: str) -> None:
    """Have the internet answer to these addresses of the network between it and the host."""
    # Unlike ARP, IPv6 wants them on the interface that is asked.
    for address in addresses:
        words = (f"{address}/64", "dev", "lan", "nodad") if ":" in address else (f"{address}/32", "dev", "lo")
        lab.internet.run("ip", "addr", "add", *words)
        lab.owned.add(address)


def test_the_log_says_how_much_is_allowed(guard: Guard) -> None:
    guard.serve("203.0.113.7", API, "198.51.100.0/25")
    guard.start(SIKKER_WHITELIST="203.0.113.128/25, 2001:db8:5::5")
    guard.logged("Blocking ")
    links = json.loads(guard.lab.host.run("ip", "-j", "addr"))
    own = {entry["local"] for link in links for entry in link["addr_info"]}
    covered = {address for address in own if address.startswith(("10.", "127.", "fd77:", "fe80:")) or address == "::1"}
    expected = own | {GATEWAY, GATEWAY_V6, RESOLVER, API, "2001:db8:5::5"}
    line = guard.logged("Safety whitelist: ")
    assert line.endswith(f"Safety whitelist: {len(expected)} IPs + {ALLOWED_RANGES + 1} CIDR ranges")
    # What a range covers is allowed by it.
    assert {entry for entry in allowed(guard.lab) if "/" not in entry} == (expected - covered) | {"::1"}
    for address in (GATEWAY, RESOLVER, API, HOST):
        guard.logged(rf"WARNING {address} \(.*\) is on the list and stays allowed")


def test_what_becomes_a_gateway_or_an_own_address_is_let_in_for_as_long_as_it_is_one(guard: Guard) -> None:
    lab = guard.lab
    nearby = [f"198.51.100.{number}" for number in range(2, 8)] + ["2001:db8:1::2", "2001:db8:1::3"]
    own = ["198.51.100.11", "2001:db8:1::11"]
    own_nearby(lab, *nearby)
    guard.serve(*nearby, *own, "203.0.113.7")
    guard.start()
    guard.logged("Blocking 11 IPs")
    assert allowed(lab).isdisjoint(nearby)
    assert not lab.passes(nearby[0])
    changes = (
        "route {} default via 198.51.100.2 metric 500",
        "route {} default via 198.51.100.3 table 100",
        "route {} default table 101 nexthop via 198.51.100.4 dev wan nexthop via 198.51.100.5 dev wan",
        "route {} default via 198.51.100.6 src 198.51.100.10 table 102",
        "route {} default via inet6 2001:db8:1::3 dev wan table 103",
        "route {} default via 2001:db8:1::2 table 104",
        "addr {} 198.51.100.11/24 dev wan",
        "addr {} 2001:db8:1::11/64 dev lan",
    )
    for change in changes:
        lab.host.run("ip", *change.format("add").split())
        words = change.replace("/", " ").split()
        new = [address for address in (*nearby, *own) if address in words]
        assert new
        assert_allowed(lab, *new)
    gateways = [address for address in nearby if address != "198.51.100.7"]
    assert_let_in(lab, *gateways)
    # A route to somewhere else makes no gateway.
    lab.host.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.7")
    assert not lab.passes("198.51.100.7")

    # All at once: one that goes while the service tests whether it can do without another speaks against the list.
    lab.host.run("ip", "-batch", "-", text="".join(f"{change.format('del')}\n" for change in changes))
    assert_shut_out(guard, *gateways[:2], "2001:db8:1::2")
    wait_for("the rest blocked", lambda: guard.blocked() == {*nearby, *own, "203.0.113.7"})


def test_what_is_gone_is_blocked_again_though_the_first_self_test_failed(guard: Guard) -> None:
    lab = guard.lab
    own_nearby(lab, "198.51.100.2")
    guard.expected_errors.append("ERROR The self-test failed: DNS")
    guard.serve("198.51.100.2", "203.0.113.7")
    guard.start(*IMPATIENT)
    guard.logged("Blocking 2 IPs")
    route = ("default", "via", "198.51.100.2", "table", "100")
    lab.host.run("ip", "route", "add", *route)
    guard.logged("Blocking 1 IPs")
    # DNS works before the trial, and fails in it: of four questions the first is let through.
    lab.internet.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    first = ("-m", "statistic", "--mode", "nth", "--every", "4", "--packet", "0", "-j", "ACCEPT")
    for words in (first, ("-j", "REJECT")):
        lab.internet.run("iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "53", *words)
    lab.host.run("ip", "route", "del", *route)
    assert "next try in 1s" in guard.logged("ERROR The self-test failed: DNS")
    lab.internet.run("iptables-legacy", "-F", "INPUT")
    assert_shut_out(guard, "198.51.100.2")


def test_a_new_resolver_is_let_in_however_its_file_is_written(guard: Guard, files: Files, stack: ExitStack) -> None:
    lab = guard.lab
    servers = ["198.51.100.54", "198.51.100.55", "198.51.100.56"]
    own_nearby(lab, *servers, "2001:db8:1::53")
    for server in servers:
        stack.enter_context(Resolver(lab.internet, server))
    guard.serve(*servers, "2001:db8:1::53")
    files.start(guard)
    guard.logged("Blocking 4 IPs")

    path = files.write("resolv.conf", resolv_conf(RESOLVER, "198.51.100.54", "2001:db8:1::53"))
    assert_let_in(lab, "198.51.100.54", "2001:db8:1::53")
    # What is asked for before a trial and is no resolver any more in it speaks against the list, so: one by one.
    guard.logged("Blocking 2 IPs")

    files.write("resolv.conf.new", resolv_conf("198.51.100.55", RESOLVER)).rename(path)
    assert_let_in(lab, "198.51.100.55")
    assert_shut_out(guard, "198.51.100.54", "2001:db8:1::53")

    path.unlink()
    files.write("elsewhere", resolv_conf("198.51.100.56"))
    path.symlink_to("elsewhere")
    assert_let_in(lab, "198.51.100.56")
    assert_shut_out(guard, "198.51.100.55")

    path.unlink()
    path.write_text(resolv_conf(RESOLVER))
    assert_shut_out(guard, "198.51.100.56")


def test_a_new_resolver_is_let_in_where_its_file_is_mounted_by_itself(guard: Guard) -> None:
    # As in a container; `ip netns exec` does the same. What changes lies in another directory then.
    lab = guard.lab
    own_nearby(lab, "198.51.100.54")
    guard.serve("198.51.100.54")
    guard.start()
    guard.logged("Blocking 1 IPs")
    with Path(f"/etc/netns/{lab.host.name}/resolv.conf").open("a") as file:
        file.write("nameserver 198.51.100.54\n")
    assert_let_in(lab, "198.51.100.54")


@contextmanager
def connected(lab: Laboratory, peer: str, port: int = 22) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the server's of a connection to this port, where one socket listens for both families."""

    def listen() -> socket.socket:
        made = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=8)
        made.settimeout(5)
        return made

    lab.own(peer)
    target = HOST_V6 if ":" in peer else HOST
    with (
        lab.host.inside(listen) as server,
        lab.internet.inside(lambda: socket.create_connection((target, port), 5, source_address=(peer, 0))) as client,
    ):
        accepted, _ = server.accept()
        # Closed before others listen there.
        server.close()
        with accepted:
            accepted.settimeout(5)
            yield client, accepted


def assert_alive(ends: tuple[socket.socket, socket.socket]) -> None:
    """What one end sends the other one gets, both ways."""
    for end, other in (ends, ends[::-1]):
        end.sendall(b"still here")
        assert other.recv(64) == b"still here"


def reload(guard: Guard, *addresses: str, blocked: int) -> None:
    """Have the service pull this list, of which it blocks so many, as it did of none before."""
    assert guard.process is not None
    guard.serve(*addresses)
    guard.process.send_signal(signal.SIGHUP)
    guard.logged(f"Blocking {blocked} IPs")


@pytest.mark.parametrize("peer", ["203.0.113.22", "2001:db8:22::22"])
def test_who_logind_records_stays_allowed_until_the_session_ends_and_nobody_else_is(
    guard: Guard, files: Files, peer: str
) -> None:
    lab = guard.lab
    guessing = "203.0.113.66"
    files.have_logind()
    guard.serve("203.0.113.7")
    files.start(guard, SIKKER_MAX_GROWTH="10")
    guard.logged("Blocking 1 IPs")
    # On a port that sshd's configuration does not name.
    with connected(lab, guessing), connected(lab, peer, 60022) as session:
        # Each right behind a look, so that no other one comes by in time.
        files.log_in(peer).unlink()
        for _ in range(2):
            record = files.log_in(peer)
            assert_allowed(lab, peer)
            record.unlink()
            wait_for("that it is no longer allowed", lambda: peer not in allowed(lab), SECONDS_TO_ALLOW)
        record = files.log_in(peer)
        assert_allowed(lab, peer)
        reload(guard, "203.0.113.7", peer, guessing, blocked=2)
        guard.logged(rf"WARNING {peer} \(SSH session\) is on the list and stays allowed")
        assert_alive(session)
        assert lab.reaches(peer)
        assert guessing not in allowed(lab)
        assert not lab.passes(guessing)
    record.unlink()
    assert_shut_out(guard, peer)
    # Nobody is logged in: that is an answer, and whoever is connected is as blocked as before.
    with pytest.raises(TimeoutError), connected(lab, guessing):
        pass
    assert guessing not in allowed(lab)


def test_without_logind_who_stands_long_is_let_in_and_who_is_listed_or_comes_anew_is_not(
    guard: Guard, files: Files
) -> None:
    lab = guard.lab
    # The directories that Docker makes where there is no systemd.
    for name in ("sessions", "seats"):
        (files.run / "systemd" / name).mkdir(parents=True)
    standing, guessing, listed = "203.0.113.22", "203.0.113.66", "203.0.113.67"
    port = 60022
    lab.own(guessing)
    with connected(lab, listed, port):
        guard.serve(listed)
        files.start(guard, *TRUSTING, SIKKER_SSH_PORTS=str(port), SIKKER_MAX_GROWTH="10")
        guard.logged(f"a connection to port 22, {port} counts as one once it has stood for 3 s")
        guard.logged("Blocking 1 IPs")
        with connected(lab, standing, port) as session:
            deadline = time.monotonic() + 10
            while standing not in allowed(lab):
                assert time.monotonic() < deadline
                with connected(lab, guessing, port):
                    assert guessing not in allowed(lab)
            reload(guard, listed, standing, guessing, blocked=2)
            assert_alive(session)
            assert lab.reaches(standing)
            assert not lab.passes(guessing)
            assert not lab.passes(listed)
            assert allowed(lab).isdisjoint({guessing, listed})
        # No event tells that a connection ended; a look does.
        wait_for("that the peer is blocked", lambda: standing in guard.blocked())
        assert standing not in allowed(lab)
        assert not lab.passes(standing)


# Ways out without a gateway's address


@contextmanager
def tunnel(lab: Laboratory, name: str = "tun7") -> Iterator[None]:
    """A TUN device of the host's that is up: it stands for ppp, WireGuard and others that have no gateway."""

    def make() -> int:
        handle = os.open("/dev/net/tun", os.O_RDWR)
        # linux/if_tun.h: TUNSETIFF with IFF_TUN and IFF_NO_PI.
        fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH", name.encode(), 0x1001))
        return handle

    handle = lab.host.inside(make)
    try:
        lab.host.run("ip", "link", "set", name, "up")
        yield
    finally:
        os.close(handle)


@pytest.mark.parametrize("by", ["default dev tun7", "default nhid 7"])
def test_a_default_route_straight_out_of_a_device_is_a_way_out(guard: Guard, by: str) -> None:
    lab = guard.lab
    lab.host.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0")
    for family in ("-4", "-6"):
        lab.host.run("ip", family, "route", "del", "default")
    with tunnel(lab):
        lab.host.run("ip", "addr", "add", "10.9.9.1", "peer", "203.0.113.9", "dev", "tun7")
        lab.host.run("ip", "nexthop", "add", "id", "7", "dev", "tun7")
        lab.host.run("ip", "route", "add", *by.split())
        guard.serve("203.0.113.7", "203.0.113.9")
        guard.start()
        # Long before the half minute that a pull waits for a way out.
        guard.logged("Blocking 1 IPs", seconds=8)
        guard.logged(r"Self-test: default route by tun7 \(v4\) names no gateway that could be asked")
        guard.logged(r"WARNING 203\.0\.113\.9 \(point-to-point peer\) is on the list and stays allowed")
        assert allowed(lab) >= {"203.0.113.9"}
        assert "WARNING Self-test" not in guard.log()


def test_gateways_of_nexthop_objects_are_let_in_and_followed(guard: Guard) -> None:
    lab = guard.lab
    nearby = [f"198.51.100.{number}" for number in range(2, 8)] + ["2001:db8:1::2"]
    own_nearby(lab, *nearby)
    lab.host.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0")
    commands = (
        "nexthop add id 1 via 198.51.100.2 dev wan",
        "nexthop add id 2 via 198.51.100.3 dev wan",
        "nexthop add id 3 via 198.51.100.4 dev wan",
        "nexthop add id 10 group 2/3",
        "nexthop add id 4 via inet6 2001:db8:1::2 dev wan",
        # Of no default route.
        "nexthop add id 5 via 198.51.100.7 dev wan",
        "route add default nhid 1 metric 500",
        "route add default nhid 10 table 100",
        "route add default nhid 4 table 101",
        "route add 203.0.113.128/25 nhid 5",
    )
    lab.host.run("ip", "-batch", "-", text="".join(f"{each}\n" for each in commands))
    assert "via" not in lab.host.run("ip", "-4", "route", "show", "table", "100")
    guard.serve(*nearby, "203.0.113.7")
    guard.start()
    guard.logged("Blocking 4 IPs")
    for gateway in ("198.51.100.2", "198.51.100.3", "198.51.100.4", "2001:db8:1::2"):
        assert gateway in allowed(lab)
        assert lab.reaches(gateway)
    assert not lab.passes("198.51.100.7")

    # The routes stay what they are; the objects change.
    lab.host.run("ip", "nexthop", "replace", "id", "1", "via", "198.51.100.5", "dev", "wan")
    assert_let_in(lab, "198.51.100.5")
    lab.host.run("ip", "nexthop", "add", "id", "6", "via", "198.51.100.6", "dev", "wan")
    lab.host.run("ip", "nexthop", "replace", "id", "10", "group", "2/6")
    assert_let_in(lab, "198.51.100.6")
    assert_shut_out(guard, "198.51.100.2", "198.51.100.4")


# Many of them


def routes_to(first: str, count: int) -> str:
    """Lines for `ip -batch` that route so many single addresses by the gateway."""
    network = first.rpartition(".")[0].rpartition(".")[0]
    return "".join(f"route add {network}.{number >> 8}.{number & 255} via {GATEWAY}\n" for number in range(count))


def test_many_routes_keep_nobody_from_an_update_or_from_allowing_what_is_new(guard: Guard) -> None:
    lab = guard.lab
    own_nearby(lab, "198.51.100.2")
    lab.host.run("ip", "-batch", "-", text=routes_to("100.64.0.0", 20_000))
    guard.serve("198.51.100.2", "198.51.100.11", "203.0.113.7")
    guard.start(SIKKER_MAX_GROWTH="1000")
    guard.logged("Blocking 3 IPs", seconds=5)
    lab.host.run("ip", "addr", "add", "198.51.100.11/24", "dev", "wan")
    assert_allowed(lab, "198.51.100.11")
    lab.host.run("ip", "route", "add", "default", "via", "198.51.100.2", "metric", "500")
    assert_let_in(lab, "198.51.100.2")
    # While others come and go all the time.
    lines = f"route add 100.127.255.1 via {GATEWAY}\nroute del 100.127.255.1 via {GATEWAY}\n" * 2000
    churning = lab.host.start(["ip", "-batch", "-"], os.environ, stdin=subprocess.PIPE)
    assert churning.stdin is not None
    churning.stdin.write(lines.encode())
    others = [f"203.0.113.{number}" for number in range(7, 12)]
    reload(guard, *others, blocked=5)
    assert guard.blocked() == set(others)
    lab.host.run("ip", "route", "del", "default", "via", "198.51.100.2", "metric", "500")
    wait_for("the old gateway gone", lambda: "198.51.100.2" not in allowed(lab), SECONDS_TO_ALLOW)
    churning.stdin.close()
    assert churning.wait(30) == 0


def number_allowed(lab: Laboratory) -> int:
    """The number of entries of the IPv4 allow set."""
    header = lab.host.run("ipset", "list", "-t", "sikkerguard-allow-v4")
    return int(re.findall(r"^Number of entries: (\d+)$", header, re.MULTILINE)[0])


def test_more_own_addresses_than_the_set_had_room_for_are_allowed_all_the_same(guard: Guard) -> None:
    lab = guard.lab
    guard.serve("203.0.113.7", "100.65.0.1", "100.65.35.1")
    # Has the kernel make the empty table, which is not taken away again.
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        lab.host.run(tool, "-t", "raw", "-L")
    before = lab.everything()
    guard.start()
    guard.logged("Blocking ")
    many = [f"100.65.{number >> 8}.{number & 255}" for number in range(1, 9001)]
    lines = "".join(f"addr add {address}/32 dev lan\n" for address in many)
    lab.host.run("ip", "-batch", "-", text=lines, timeout=120)
    # Beside those that a range of the allowlist covers already, none of which takes an entry of its own.
    lab.host.run("ip", "addr", "add", "10.77.9.9/32", "dev", "lan")
    # Not by the set's entries: while these are listed, the kernel refuses to put another set in its place.
    wait_for("all of them allowed", lambda: number_allowed(lab) >= len(many), 10)
    assert allowed(lab) >= set(many)
    assert allowed(lab).isdisjoint({"10.77.9.9", HOST_LAN, "127.0.0.1"})
    # The rules refer to the larger set as they did to the other.
    references = re.findall(r"^References: (\d+)$", lab.host.run("ipset", "list", "-t", "sikkerguard-allow-v4"), re.M)
    assert references == ["1"]
    assert not lab.passes("203.0.113.7")
    assert lab.reaches(GATEWAY)
    guard.logged("INFO Safety whitelist: 90")
    guard.kill()
    # A start with all of them there at once, and no set yet.
    assert guard.cli("cleanup").returncode == 0
    guard.start()
    guard.logged(r"Blocking \d+ IPs \(from the cache", seconds=10)
    assert allowed(lab) >= set(many)
    lab.host.run("ip", "-batch", "-", text=lines.replace("addr add", "addr del"), timeout=120)
    wait_for("none of them allowed", lambda: number_allowed(lab) < 20, 10)
    guard.stop()
    assert lab.everything() == before


def test_an_address_is_found_however_many_come_and_go_meanwhile(lab: Laboratory) -> None:
    stable = [f"100.65.{number >> 8}.{number & 255}" for number in range(1, 1001)]
    lab.host.run("ip", "-batch", "-", text="".join(f"addr add {address}/32 dev lan\n" for address in stable))
    lines = "addr add 100.66.0.1/32 dev lan\naddr del 100.66.0.1/32 dev lan\n" * 5000
    churning = lab.host.start(["ip", "-batch", "-"], os.environ, stdin=subprocess.PIPE)

    def look() -> int:
        looks = 0
        while churning.poll() is None:
            assert set(stable) <= set(map(packed_to_text, addresses().own))
            looks += 1
        return looks

    writing = threading.Thread(target=churning.communicate, args=(lines.encode(),))
    writing.start()
    assert lab.host.inside(look) > 10
    writing.join()
    assert churning.returncode == 0


def test_only_what_concerns_us_is_an_event(lab: Laboratory) -> None:
    fences, seen = itertools.count(100), set[int]()
    events = 0

    def changed() -> None:
        nonlocal events
        events += 1

    def uses(nexthop: int) -> bool:
        seen.add(nexthop)
        return nexthop == 7

    async def heard(lines: list[str]) -> bool:
        """Whether any of these commands of `ip` was an event. The last one is none, and shows that all are through."""
        nonlocal events
        events, fence = 0, next(fences)
        text = "".join(f"{line}\n" for line in (*lines, f"nexthop add id {fence} via {GATEWAY} dev wan"))
        await asyncio.to_thread(lab.host.run, "ip", "-batch", "-", text=text)
        deadline = time.monotonic() + 5
        while fence not in seen:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        return bool(events)

    async def run() -> None:
        watch = ChangeMonitor(changed, uses=uses)
        watch.start()
        assert events == 1
        try:
            for lines, matters in (
                ([f"route add 100.64.0.{number} via {GATEWAY}" for number in range(250)], False),
                ([f"route del 100.64.0.{number} via {GATEWAY}" for number in range(250)], False),
                ([f"route add 2001:db8:9::/64 via {GATEWAY_V6}"], False),
                ([f"route add default via {GATEWAY} metric 700"], True),
                ([f"route del default via {GATEWAY} metric 700"], True),
                ([f"route add default via {GATEWAY_V6} metric 700"], True),
                (["nexthop add id 5 via 198.51.100.1 dev wan"], False),
                (["nexthop add id 7 via 198.51.100.1 dev wan"], True),
                (["nexthop del id 7"], True),
                (["addr add 100.67.0.1/32 dev lan valid_lft 1000 preferred_lft 1000"], True),
                # Prolonged, as each of a router's advertisements may do.
                (["addr change 100.67.0.1/32 dev lan valid_lft 900 preferred_lft 900"] * 10, False),
                (["addr del 100.67.0.1/32 dev lan"], True),
                (["addr add 100.67.0.1/32 dev lan"], True),
                (["link set lan mtu 1400"], False),
            ):
                assert await heard(lines) == matters, lines
        finally:
            watch.stop()

    lab.host.inside(lambda: asyncio.run(run()))
