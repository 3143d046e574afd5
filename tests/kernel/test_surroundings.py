"""What this host talks to is found out, let through though it is listed, and blocked again when it is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.edges.surroundings import ssh_peers
from tests.kernel.conftest import SIKKERGUARD
from tests.laboratory import API, GATEWAY, GATEWAY_V6, HOST, HOST_V6, RESOLVER, Resolver, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Guard
    from tests.laboratory import Laboratory

IMPATIENT = (sys.executable, "-m", "tests.kernel.impatient")
# As the product promises it (design, section 4).
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


class Etc:
    """An /etc of the service's own, where a test may write; what it does not write is the machine's."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "etc"
        self._machines = directory / "machines-etc"
        self.path.mkdir()
        self._machines.mkdir()
        for entry in Path("/etc").iterdir():
            (self.path / entry.name).symlink_to(self._machines / entry.name)

    def write(self, name: str, text: str) -> Path:
        """A file in place of the machine's; one that a test has written already is written anew in its place."""
        path = self.path / name
        for part in (path.parent, path):
            if part.is_symlink():
                part.unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def start(self, guard: Guard) -> None:
        """Start the service with it. `ip netns exec` has made a mount namespace for it already."""
        mounts = f"mount --bind /etc {self._machines}; mount --bind {self.path} /etc"
        guard.start("sh", "-ec", f"{mounts}; exec {' '.join(SIKKERGUARD)} run")


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    """With the laboratory's resolver, and a sshd on port 22 that tells logind nothing."""
    made = Etc(tmp_path)
    made.write("resolv.conf", resolv_conf(RESOLVER))
    made.write("ssh/sshd_config", "PasswordAuthentication no\n")
    made.write("pam.d/sshd", "session required pam_unix.so\n")
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
    expected = own | {GATEWAY, GATEWAY_V6, RESOLVER, API, "2001:db8:5::5"}
    line = guard.logged("Safety whitelist: ")
    assert line.endswith(f"Safety whitelist: {len(expected)} IPs + {ALLOWED_RANGES + 1} CIDR ranges")
    assert {entry for entry in allowed(guard.lab) if "/" not in entry} == expected
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


def test_a_new_resolver_is_let_in_however_its_file_is_written(guard: Guard, etc: Etc, stack: ExitStack) -> None:
    lab = guard.lab
    servers = ["198.51.100.54", "198.51.100.55", "198.51.100.56"]
    own_nearby(lab, *servers, "2001:db8:1::53")
    for server in servers:
        stack.enter_context(Resolver(lab.internet, server))
    guard.serve(*servers, "2001:db8:1::53")
    etc.start(guard)
    guard.logged("Blocking 4 IPs")

    path = etc.write("resolv.conf", resolv_conf(RESOLVER, "198.51.100.54", "2001:db8:1::53"))
    assert_let_in(lab, "198.51.100.54", "2001:db8:1::53")
    # What is asked for before a trial and is no resolver any more in it speaks against the list, so: one by one.
    guard.logged("Blocking 2 IPs")

    etc.write("resolv.conf.new", resolv_conf("198.51.100.55", RESOLVER)).rename(path)
    assert_let_in(lab, "198.51.100.55")
    assert_shut_out(guard, "198.51.100.54", "2001:db8:1::53")

    path.unlink()
    etc.write("elsewhere", resolv_conf("198.51.100.56"))
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
def ssh_session(lab: Laboratory, peer: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the server's of a connection to port 22, where one socket listens for both families."""

    def listen() -> socket.socket:
        made = socket.create_server(("::", 22), family=socket.AF_INET6, dualstack_ipv6=True)
        made.settimeout(5)
        return made

    lab.own(peer)
    server = lab.host.inside(listen)
    target = HOST_V6 if ":" in peer else HOST
    client = lab.internet.inside(lambda: socket.create_connection((target, 22), 5, source_address=(peer, 0)))
    with server, client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            yield client, accepted


@pytest.mark.parametrize("peer", ["203.0.113.22", "2001:db8:22::22"])
def test_the_peer_of_an_ssh_session_stays_allowed_until_it_ends(guard: Guard, etc: Etc, peer: str) -> None:
    lab = guard.lab
    guard.serve("203.0.113.7")
    etc.start(guard)
    guard.logged("Blocking 1 IPs")
    with ssh_session(lab, peer) as (client, server):
        guard.serve("203.0.113.7", peer)
        assert guard.process is not None
        guard.process.send_signal(signal.SIGHUP)
        guard.logged("Blocking 1 IPs", times=2)
        guard.logged(rf"WARNING {peer} \(SSH session\) is on the list and stays allowed")
        for end, other in ((client, server), (server, client)):
            end.sendall(b"still here")
            assert other.recv(64) == b"still here"
        assert allowed(lab) >= {peer}
        assert lab.reaches(peer)
    # A look at the host finds that the session is over.
    lab.host.run("ip", "route", "add", "198.51.100.192/28", "dev", "lan")
    wait_for("that the peer is blocked", lambda: peer in guard.blocked())
    assert peer not in allowed(lab)
    assert not lab.passes(peer)


ESTABLISHED, TIME_WAIT, LISTEN = "01", "06", "0A"


class Root:
    """A root directory with what the search for SSH sessions reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[tuple[int, str, str]] = []
        self.sessions = 0

    def write(self, name: str, text: str) -> None:
        """A file, with its directories."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def connect(self, port: int, peer: str, state: str = ESTABLISHED) -> None:
        """A line in the table of connections, as proc_net_tcp(5) has it."""
        self.connections.append((port, peer, state))
        tables: dict[str, list[str]] = {"tcp": [], "tcp6": []}
        for number, (local_port, address, known_state) in enumerate(self.connections):
            packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
            words = struct.unpack(f"={len(packed) // 4}I", packed)
            digits = "".join(f"{word:08X}" for word in words)
            tables["tcp6" if ":" in address else "tcp"].append(
                f"{number:4}: {'0' * len(digits)}:{local_port:04X} {digits}:D431 {known_state} "
                "00000000:00000000 00:00000000 00000000     0        0 12345 1 0000000000000000 20 4 30 10 -1\n"
            )
        for name, lines in tables.items():
            head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
            self.write(f"proc/self/net/{name}", head + "".join(lines))

    def log_in(self, host: str, remote: int = 1) -> None:
        """A session that logind knows."""
        fields = f"# a comment\nUID=0\nUSER=root\nACTIVE=1\nREMOTE={remote}\nREMOTE_HOST={host}\nSERVICE=sshd\n"
        self.sessions += 1
        self.write(f"run/systemd/sessions/{self.sessions}", fields)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """With nothing in it."""
    return Root(tmp_path / "root")


def test_only_established_connections_to_sshd_count(root: Root) -> None:
    assert ssh_peers(root.path) == ()
    root.connect(22, "203.0.113.1")
    root.connect(22, "203.0.113.2", TIME_WAIT)
    root.connect(22, "203.0.113.3", LISTEN)
    root.connect(23, "203.0.113.4")
    root.connect(22, "2001:db8::5")
    root.connect(22, "::ffff:203.0.113.6")
    root.connect(22, "203.0.113.1")
    assert ssh_peers(root.path) == ("2001:db8::5", "203.0.113.1", "203.0.113.6")


@pytest.mark.parametrize(
    ("config", "ports"),
    [
        ("", [22]),
        ("#Port 2222\n", [22]),
        ("Port 2222\n", [2222]),
        ("Port 22\nPort 2222\n", [22, 2222]),
        ("  port\t2222 # why\n", [2222]),
        ("Port=2222\n", [2222]),
        ('Port "2222"\n', [2222]),
        ("ListenAddress 198.51.100.10\n", [22]),
        ("ListenAddress 198.51.100.10:2022\nListenAddress [2001:db8::1]:2023\n", [2022, 2023]),
        ("Port 2222\nListenAddress 2001:db8::1\n", [2222]),
        ("Port 2222\nListenAddress ssh.example.net:2022\n", [2022, 2222]),
        ("PortForwarding 77\nPermitOpen 192.0.2.1:25\n", [22]),
    ],
)
def test_the_ports_of_sshd_are_those_of_its_configuration(root: Root, config: str, ports: list[int]) -> None:
    root.write("etc/ssh/sshd_config", config)
    for number, port in enumerate((22, 25, 77, 2022, 2023, 2222), start=1):
        root.connect(port, f"203.0.113.{number}")
    peers = {22: 1, 25: 2, 77: 3, 2022: 4, 2023: 5, 2222: 6}
    assert ssh_peers(root.path) == tuple(f"203.0.113.{peers[port]}" for port in ports)


def test_what_sshd_includes_counts_too(root: Root) -> None:
    root.write("etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
    root.write("etc/ssh/sshd_config.d/port.conf", "Port 2222\n")
    root.write("etc/ssh/sshd_config.d/port.conf.bak", "Port 2022\n")
    root.connect(2222, "203.0.113.1")
    root.connect(2022, "203.0.113.2")
    assert ssh_peers(root.path) == ("203.0.113.1",)


PAM, NO_PAM = "session optional pam_systemd.so\n", "session required pam_unix.so\n"


def test_one_who_is_still_guessing_passwords_is_no_peer_where_logind_knows_who_is_logged_in(root: Root) -> None:
    root.write("etc/ssh/sshd_config", "UsePAM yes\n")
    root.write("etc/pam.d/sshd", "@include common-session\n")
    root.write("etc/pam.d/common-session", PAM)
    root.connect(22, "203.0.113.1")
    root.connect(22, "2001:db8::2")
    root.connect(22, "203.0.113.66")
    root.log_in("203.0.113.1")
    root.log_in("2001:db8::2")
    root.log_in("203.0.113.200")  # logged in, but not connected: a session that lingers
    root.log_in("", remote=0)
    # logind keeps one beside each record; whoever opens it waits for the end of the session.
    os.mkfifo(root.path / "run/systemd/sessions/1.ref")
    assert ssh_peers(root.path) == ("2001:db8::2", "203.0.113.1")


@pytest.mark.parametrize(
    ("pam", "sshd", "more_sshd", "host"),
    [
        pytest.param(NO_PAM, "UsePAM yes\n", "", "203.0.113.1", id="PAM does not tell logind"),
        pytest.param(f"# {PAM}", "UsePAM yes\n", "", "203.0.113.1", id="nor does a comment"),
        pytest.param(PAM, "", "", "203.0.113.1", id="sshd does not use PAM unless told"),
        pytest.param(PAM, "UsePAM no\nUsePAM yes\n", "", "203.0.113.1", id="the first word counts"),
        # Debian's sshd_config begins with the line that includes the others.
        pytest.param(PAM, "UsePAM yes\n", "UsePAM no\n", "203.0.113.1", id="what is included first counts"),
        pytest.param(PAM, "UsePAM yes\n", "", "client.example.net", id="logind has a name instead of an address"),
    ],
)
def test_every_connection_counts_where_logind_can_not_tell(
    root: Root, pam: str, sshd: str, more_sshd: str, host: str
) -> None:
    root.write("etc/pam.d/sshd", pam)
    root.write("etc/ssh/sshd_config", f"Include /etc/ssh/sshd_config.d/*.conf\n{sshd}")
    root.write("etc/ssh/sshd_config.d/more.conf", more_sshd)
    root.connect(22, "203.0.113.1")
    root.connect(22, "203.0.113.66")
    root.log_in(host)
    assert ssh_peers(root.path) == ("203.0.113.1", "203.0.113.66")


def test_every_connection_counts_without_logind(root: Root) -> None:
    root.write("etc/ssh/sshd_config", "UsePAM yes\n")
    root.write("etc/pam.d/sshd", PAM)
    root.connect(22, "203.0.113.66")
    assert ssh_peers(root.path) == ("203.0.113.66",)


def test_where_sshd_has_no_configuration_within_reach_logind_says_who_is_logged_in(root: Root) -> None:
    # As in a container, which sees of the host the connections and the records.
    root.connect(2222, "203.0.113.1")
    root.connect(2222, "203.0.113.66")
    root.connect(22, "203.0.113.67")
    assert ssh_peers(root.path) == ("203.0.113.67",)
    root.log_in("203.0.113.1")
    root.log_in("203.0.113.200")
    assert ssh_peers(root.path) == ("203.0.113.1",)
