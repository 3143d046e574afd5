"""Who counts as logged in by SSH: by logind's records, and where there are none by connections that stand for long."""

from __future__ import annotations

import logging
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.host.ssh_sessions import MOST_PEERS, STANDING_SECONDS, Connection, Standing, follow, peers
from sikkerguard.core.net.family import Family
from sikkerguard.edges.host.ssh_sessions import SshPeers
from tests.unit.core.lists.test_admission import listing

if TYPE_CHECKING:
    from collections.abc import Collection

ESTABLISHED, TIME_WAIT, LISTEN = "01", "06", "0A"
PAM, NO_PAM = "session optional pam_systemd.so\n", "session required pam_unix.so\n"


class Root:
    """A root directory with what the search for SSH sessions reads, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.listed: set[str] = set()
        self.connections: list[tuple[int, str, str, int]] = []
        self.inode = 10000
        self.sessions = 0
        self.peers = SshPeers(path, lambda: self.now)

    def write(self, name: str, text: str) -> None:
        """A file, with its directories."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def connect(self, port: int, peer: str, state: str = ESTABLISHED) -> None:
        """A line in the table of connections."""
        self.inode += 1
        self.connections.append((port, peer, state, self.inode))
        self.write_tables()

    def disconnect(self, peer: str) -> None:
        """Without those of this peer."""
        self.connections = [each for each in self.connections if each[1] != peer]
        self.write_tables()

    def write_tables(self) -> None:
        """The connections as proc_net_tcp(5) has them."""
        tables: dict[str, list[str]] = {"tcp": [], "tcp6": []}
        for number, (local_port, address, state, inode) in enumerate(self.connections):
            packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
            words = struct.unpack(f"={len(packed) // 4}I", packed)
            digits = "".join(f"{word:08X}" for word in words)
            tables["tcp6" if ":" in address else "tcp"].append(
                f"{number:4}: {'0' * len(digits)}:{local_port:04X} {digits}:D431 {state} "
                f"00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0000000000000000 20 4 30 10 -1\n"
            )
        for name, lines in tables.items():
            head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
            self.write(f"proc/self/net/{name}", head + "".join(lines))

    def have_logind(self) -> None:
        """What logind makes at its start."""
        (self.path / "run/systemd/sessions").mkdir(parents=True)
        self.write("run/systemd/seats/seat0", "# This is private data. Do not parse.\nCAN_GRAPHICAL=0\n")

    def log_in(self, host: str, remote: int = 1, state: str = "active", began: int = 0) -> None:
        """A session that logind knows."""
        self.sessions += 1
        self.write(
            f"run/systemd/sessions/{self.sessions}",
            f"# a comment\nUID=0\nUSER=root\nACTIVE=1\nSTATE={state}\nREMOTE={remote}\nREMOTE_HOST={host}\n"
            f"SERVICE=sshd\nREALTIME={began}\n",
        )

    def look(self, *ports: int) -> tuple[str, ...]:
        """Who counts now."""
        return self.peers.look(ports, listing(*self.listed))

    def look_when_all_stand(self, *ports: int) -> tuple[str, ...]:
        """Who counts when every connection of now was seen for two minutes."""
        self.look(*ports)
        self.now += STANDING_SECONDS
        return self.look(*ports)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """With nothing in it."""
    return Root(tmp_path / "root")


# Where logind records who is logged in


def test_who_has_a_record_and_a_connection_counts_on_whatever_port(root: Root) -> None:
    root.have_logind()
    root.connect(22, "203.0.113.1")
    root.connect(60022, "2001:db8::2")
    root.connect(22, "::ffff:203.0.113.3")
    root.connect(2222, "203.0.113.4")
    root.connect(22, "203.0.113.66")
    for host in ("203.0.113.1", "2001:db8::2", "203.0.113.3", "::ffff:203.0.113.4"):
        root.log_in(host)
    assert root.look_when_all_stand() == ("203.0.113.1", "2001:db8::2", "203.0.113.3", "203.0.113.4")


def test_who_is_still_guessing_passwords_never_counts_also_where_nobody_is_logged_in(root: Root) -> None:
    root.have_logind()
    root.connect(22, "203.0.113.66")
    assert root.look_when_all_stand() == ()
    root.log_in("", remote=0)
    assert root.look_when_all_stand() == ()


def test_a_session_without_a_connection_and_one_that_is_closing_do_not_count(root: Root) -> None:
    root.have_logind()
    root.log_in("203.0.113.200")
    root.log_in("203.0.113.201", state="closing")  # what its user left running keeps the record
    root.connect(80, "203.0.113.201")
    root.log_in("203.0.113.202", state="online")
    root.connect(22, "203.0.113.202")
    root.log_in("203.0.113.203")
    root.connect(22, "203.0.113.203", TIME_WAIT)
    # logind keeps one beside each record; whoever opens it waits for the end of the session.
    os.mkfifo(root.path / "run/systemd/sessions/1.ref")
    assert root.look() == ("203.0.113.202",)
    root.disconnect("203.0.113.202")
    assert root.look() == ()


def test_a_record_with_a_name_is_left_out_alone_and_said_once(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    root.have_logind()
    for host in ("client.example.net", "203.0.113.0/24", "203.0.113.1"):
        root.log_in(host)
    root.connect(22, "203.0.113.1")
    root.connect(22, "203.0.113.66")
    assert root.look_when_all_stand() == ("203.0.113.1",)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "'client.example.net'" in caplog.text
    assert "UseDNS no" in caplog.text


def test_of_many_sessions_those_that_began_first_count(root: Root) -> None:
    root.have_logind()
    for number in range(100):
        root.connect(22, f"203.0.113.{number}")
        root.log_in(f"203.0.113.{number}", began=10**15 - number)
    assert root.look() == tuple(f"203.0.113.{number}" for number in range(99, 99 - MOST_PEERS, -1))


# Where it does not


def test_a_connection_counts_once_it_was_seen_for_two_minutes(root: Root) -> None:
    assert root.look() == ()
    for peer in ("203.0.113.1", "2001:db8::5", "::ffff:203.0.113.6"):
        root.connect(22, peer)
    root.connect(22, "203.0.113.2", TIME_WAIT)
    root.connect(22, "203.0.113.3", LISTEN)
    root.connect(23, "203.0.113.4")
    assert root.look() == ()
    root.now += STANDING_SECONDS - 1
    assert root.look() == ()
    root.now += 1
    assert set(root.look()) == {"203.0.113.1", "2001:db8::5", "203.0.113.6"}
    root.disconnect("203.0.113.1")
    assert set(root.look()) == {"2001:db8::5", "203.0.113.6"}


def test_a_source_that_connects_anew_all_the_time_never_counts(root: Root) -> None:
    # Also where it uses the same port each time: it is another socket.
    for _ in range(20):
        root.connect(22, "203.0.113.66")
        assert root.look() == ()
        root.disconnect("203.0.113.66")
        root.now += STANDING_SECONDS / 4


def test_who_is_listed_does_not_begin_to_count_and_who_counts_goes_on_when_listed(root: Root) -> None:
    root.connect(22, "203.0.113.1")
    assert root.look_when_all_stand() == ("203.0.113.1",)
    root.connect(22, "203.0.113.66")
    root.listed = {"203.0.113.1", "203.0.113.66"}
    assert root.look_when_all_stand() == ("203.0.113.1",)
    # For as long as that connection lives.
    root.disconnect("203.0.113.1")
    root.connect(22, "203.0.113.1")
    assert root.look_when_all_stand() == ()
    root.listed = set()
    assert set(root.look()) == {"203.0.113.1", "203.0.113.66"}


def test_a_new_start_knows_nothing(root: Root) -> None:
    root.connect(22, "203.0.113.1")
    assert root.look_when_all_stand() == ("203.0.113.1",)
    root.peers = SshPeers(root.path, lambda: root.now)
    assert root.look() == ()


@pytest.mark.parametrize(
    ("config", "setting", "ports"),
    [
        ("", [], [22]),
        ("", [2022, 77], [22, 77, 2022]),
        ("Port 2222\n", [77], [22, 77, 2222]),
        ("#Port 2222\n", [], [22]),
        ("Port 2222\n", [], [22, 2222]),
        ("Port 22\nPort 2222\n", [], [22, 2222]),
        ("  port\t2222 # why\n", [], [22, 2222]),
        ("Port=2222\n", [], [22, 2222]),
        ('Port "2222"\n', [], [22, 2222]),
        ("ListenAddress 198.51.100.10\n", [], [22]),
        ("ListenAddress 198.51.100.10:2022\nListenAddress [2001:db8::1]:2023\n", [], [22, 2022, 2023]),
        ("Port 2222\nListenAddress 2001:db8::1\n", [], [22, 2222]),
        ("Port 2222\nListenAddress ssh.example.net:2022\n", [], [22, 2022, 2222]),
        ("PortForwarding 77\nPermitOpen 192.0.2.1:25\n", [], [22]),
    ],
)
def test_the_ports_are_22_those_of_sshd_and_those_of_the_setting(
    root: Root, config: str, setting: list[int], ports: list[int]
) -> None:
    root.write("etc/ssh/sshd_config", config)
    for number, port in enumerate((22, 25, 77, 2022, 2023, 2222), start=1):
        root.connect(port, f"203.0.113.{number}")
    numbers = {22: 1, 25: 2, 77: 3, 2022: 4, 2023: 5, 2222: 6}
    assert set(root.look_when_all_stand(*setting)) == {f"203.0.113.{numbers[port]}" for port in ports}


def test_what_sshd_includes_counts_too(root: Root) -> None:
    root.write("etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
    root.write("etc/ssh/sshd_config.d/port.conf", "Port 2222\n")
    root.write("etc/ssh/sshd_config.d/port.conf.bak", "Port 2022\n")
    root.connect(2222, "203.0.113.1")
    root.connect(2022, "203.0.113.2")
    assert root.look_when_all_stand() == ("203.0.113.1",)


# Which of the two it is


@pytest.mark.parametrize("seats", [False, True], ids=["no seats", "empty seats"])
def test_directories_that_docker_made_to_mount_them_are_no_records(root: Root, seats: bool) -> None:
    (root.path / "run/systemd/sessions").mkdir(parents=True)
    if seats:
        (root.path / "run/systemd/seats").mkdir()
    root.connect(22, "203.0.113.1")
    assert root.look_when_all_stand() == ("203.0.113.1",)
    # logind came after us, or its seats are not mounted: a record speaks for itself.
    root.log_in("203.0.113.2")
    assert root.look() == ()


@pytest.mark.parametrize(
    ("pam", "sshd", "more_sshd"),
    [
        pytest.param(NO_PAM, "UsePAM yes\n", "", id="PAM does not tell logind"),
        pytest.param(f"# {PAM}", "UsePAM yes\n", "", id="nor does a comment"),
        pytest.param(PAM, "PermitRootLogin no\n", "", id="sshd does not use PAM unless told"),
        pytest.param(PAM, "UsePAM no\nUsePAM yes\n", "", id="the first word counts"),
        # Debian's sshd_config begins with the line that includes the others.
        pytest.param(PAM, "UsePAM yes\n", "UsePAM no\n", id="what is included first counts"),
    ],
)
def test_where_sshd_tells_logind_nothing_connections_count_beside_the_records(
    root: Root, pam: str, sshd: str, more_sshd: str
) -> None:
    root.have_logind()
    root.write("etc/pam.d/sshd", pam)
    root.write("etc/ssh/sshd_config", f"Include /etc/ssh/sshd_config.d/*.conf\n{sshd}")
    root.write("etc/ssh/sshd_config.d/more.conf", more_sshd)
    root.connect(22, "203.0.113.1")
    root.connect(60022, "203.0.113.2")
    root.log_in("203.0.113.2")
    assert root.look() == ("203.0.113.2",)
    assert root.look_when_all_stand() == ("203.0.113.2", "203.0.113.1")


def test_where_sshd_tells_logind_of_each_session_only_records_count(root: Root) -> None:
    root.have_logind()
    root.write("etc/ssh/sshd_config", "UsePAM yes\n")
    root.write("etc/pam.d/sshd", "@include common-session\n")
    root.write("etc/pam.d/common-session", PAM)
    root.connect(22, "203.0.113.66")
    assert root.look_when_all_stand() == ()


def test_it_is_said_once_how_sessions_are_known_where_logind_does_not_tell(
    root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        root.look(2222)
    (message,) = caplog.messages
    assert "a connection to port 22, 2222 counts as one once it has stood for 120 s" in message
    root.have_logind()
    root.look(2222)
    assert len(caplog.messages) == 1


# The core

connections = st.builds(
    Connection, st.sampled_from(Family), st.integers(0, 5), st.integers(0, 8).map(lambda number: f"connection {number}")
)
looks = st.lists(
    st.tuples(st.floats(0, 200), st.frozensets(connections, max_size=8), st.frozensets(st.integers(0, 5), max_size=3)),
    max_size=12,
)


def followed(steps: Collection[tuple[float, frozenset[Connection], frozenset[int]]]) -> list[tuple[float, Standing]]:
    """The clock, and what is known, after each step."""
    now, known, found = 0.0, Standing(), []
    for pause, established, listed in steps:
        now += pause
        known = follow(known, established, now, lambda _, peer, listed=listed: peer in listed)  # type: ignore[misc]
        found.append((now, known))
    return found


@given(looks)
def test_only_who_was_there_in_every_look_for_two_minutes_is_trusted(
    steps: list[tuple[float, frozenset[Connection], frozenset[int]]],
) -> None:
    found = followed(steps)
    for last, (now, known) in enumerate(found):
        for connection in known.trusted:
            first = last
            while first and connection in steps[first - 1][1]:
                first -= 1
            # It was there without a break for long enough, and not listed when it was, or later.
            assert now - found[first][0] >= STANDING_SECONDS
            assert any(
                at - found[first][0] >= STANDING_SECONDS and connection.peer not in steps[step][2]
                for step, (at, _) in enumerate(found)
                if first <= step <= last
            )


@given(looks)
def test_who_is_trusted_stays_so_until_the_connection_ends(
    steps: list[tuple[float, frozenset[Connection], frozenset[int]]],
) -> None:
    before: frozenset[Connection] = frozenset()
    for (_, established, _), (_, known) in zip(steps, followed(steps), strict=True):
        assert before & established <= known.trusted <= established
        before = known.trusted


@given(st.frozensets(st.builds(Connection, st.sampled_from(Family), st.integers(0, 200), st.text(max_size=3))))
def test_a_peer_is_named_once_and_at_most_64_are(established: frozenset[Connection]) -> None:
    never = follow(Standing(), established, 0.0, lambda *_: True)
    known = follow(never, established, STANDING_SECONDS, lambda *_: False)
    found = peers(known)
    everyone = {(connection.family, connection.peer) for connection in established}
    assert len(found) == len(set(found)) == min(len(everyone), MOST_PEERS)
    assert set(found) <= everyone


def test_those_who_stand_longest_are_named_first() -> None:
    early, late = Connection(Family.V4, 1, "a"), Connection(Family.V4, 2, "b")
    known = Standing({late: 5.0, early: 4.0}, frozenset({early, late}))
    assert peers(known) == ((Family.V4, 1), (Family.V4, 2))


def test_of_a_configuration_that_may_not_be_read_nothing_is_said() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Root(Path(directory))
        root.path.chmod(0o755)
        root.have_logind()
        root.connect(22, "203.0.113.66")
        root.write("etc/pam.d/sshd", PAM)
        root.write("etc/ssh/sshd_config.d/50.conf", "PermitRootLogin no\n")
        root.write("etc/ssh/sshd_config", "UsePAM yes\n")
        (root.path / "etc/ssh/sshd_config").chmod(0)
        try:
            if os.getuid() == 0:
                os.seteuid(65534)
            # Nobody is logged in by the records, which are believed.
            assert root.look_when_all_stand() == ()
        finally:
            os.seteuid(os.getuid())


def test_directories_that_may_not_be_entered_are_out_of_reach() -> None:
    # Not below pytest's own directory, which is another user's than the one that looks.
    with tempfile.TemporaryDirectory() as directory:
        root = Root(Path(directory))
        root.path.chmod(0o755)
        root.have_logind()
        root.log_in("203.0.113.1")
        root.connect(22, "203.0.113.1")
        root.write("etc/pam.d/sshd", PAM)
        root.write("etc/ssh/sshd_config", "UsePAM yes\n")
        shut = [root.path / "etc/pam.d", root.path / "etc/ssh"]
        for place in shut:
            place.chmod(0)
        try:
            if os.getuid() == 0:
                os.seteuid(65534)
            assert root.look() == ("203.0.113.1",)
        finally:
            os.seteuid(os.getuid())
            for place in shut:
                place.chmod(0o700)
