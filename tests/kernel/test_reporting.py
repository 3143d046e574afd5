"""What was blocked is shown and reported by the running service: who, for what, once, and not where nobody wants it."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.machine import log_of_all_namespaces
from scripts.laboratory.packets import ACK, FIN, RST, SYN, Wire, tcp, udp
from scripts.laboratory.tools import wait_for
from sikkerguard.core.lists.lookup import Listing
from sikkerguard.core.reports.rows import row_of
from sikkerguard.core.reports.screen import Screen
from sikkerguard.core.traffic.records import PendingTraffic
from sikkerguard.core.traffic.totals import Totals, day_of
from sikkerguard.edges.storage.database import FILE, Database
from sikkerguard.edges.storage.outbox import Outbox
from sikkerguard.edges.storage.traffic import TrafficStore
from tests.kernel.conftest import SIKKERGUARD
from tests.kernel.test_counting import begin, dropped, lines, settle
from tests.records import records_of
from tests.standin.server import DEMO_KEY
from tests.standin.tiers import FREE, Key

if TYPE_CHECKING:
    from tests.kernel.conftest import Guard

SSH, WEB, SCAN, FORGEABLE, SSH_V6 = "203.0.113.7", "203.0.113.8", "203.0.113.9", "203.0.113.10", "2001:db8:7::7"
# Only the kernel may write lines of its own facility, 0; what a process writes gets another one, whatever it says.
_LINE = (
    "SIKKERGUARD IN=wan OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 SRC={source} DST=198.51.100.10 LEN=40 "
    "TOS=0x00 PREC=0x00 TTL=64 ID=1 PROTO=TCP SPT=40000 DPT=22 WINDOW=1024 RES=0x00 SYN URGP=0 "
)


def attack(wire: Wire) -> int:
    """Packets of every kind of source; the number of them."""
    return wire.send(
        [
            *[tcp(SSH, 22)] * 30,
            *[tcp(SSH, 80)] * 2,
            *[tcp(WEB, 443)] * 20,
            *[tcp(SCAN, port) for port in range(1000, 1100)],
            *[udp(FORGEABLE, 53)] * 500,
            *[tcp(SSH_V6, 22)] * 10,
        ]
    )


def requests(guard: Guard) -> list[str]:
    """The paths of all requests that reported something."""
    return [request.path for request in guard.standin.record.requests if "report" in request.path]


def intervals_pass(number: int) -> None:
    """Let so many intervals of ten seconds pass, and what they may vary by: that nothing is sent takes that long."""
    until = time.monotonic() + 10.6 * number + 1
    wait_for("the intervals", lambda: time.monotonic() > until, 10.6 * number + 5)


def reported(guard: Guard) -> dict[str, tuple[str, str | None]]:
    """What the stand-in took: category and protocol by address."""
    rows = [record.row for record in guard.standin.record.reports]
    found = {row.ip: (row.category, row.protocol) for row in rows}
    assert len(found) == len(rows), rows
    return found


def test_what_was_blocked_is_reported_once(guard: Guard) -> None:
    wire = begin(guard, SSH, WEB, SCAN, FORGEABLE, SSH_V6, SIKKER_REPORT_INTERVAL="10s")
    sent = attack(wire)
    guard.logged(r"INFO Reported 4 blocked IPs \(ssh: 2, ")
    assert reported(guard) == {
        SSH: ("brute_force", "ssh"),
        WEB: ("web_exploit", "https"),
        SCAN: ("port_scan", "tcp"),
        SSH_V6: ("brute_force", "ssh"),
    }
    # Nothing but what the service asks for leaves the host.
    assert {record.row.fields for record in guard.standin.record.reports} == {("category", "ip", "protocol")}
    status = wait_for("the status", lambda: (found := guard.status())["reports"]["sent"] and found)
    assert status["reports"] == {
        "sent": 4,
        "withheld": 1,
        "rejected": 0,
        "unanswered": 0,
        "waiting": 0,
        "quotaRemaining": 996,
        "dropped": 0,
        "trouble": "",
    }
    assert status["lastReport"] is not None
    # The same sources once more, on the same day: counted, and not reported again; after a restart neither.
    settle(guard, sent)
    guard.kill()
    guard.start(SIKKER_REPORT_INTERVAL="10s")
    guard.logged("Blocking 5 IPs", times=2)
    sent += attack(wire) + wire.send([tcp(SSH, 3306)] * 9)
    settle(guard, sent)
    intervals_pass(2)
    assert len(reported(guard)) == 4
    assert len(requests(guard)) == 1
    shown = guard.cli("status").stdout
    assert "Packets dropped:" in shown
    assert "Reports:          sent 4, withheld 1, " in shown


def call(guard: Guard, server: str) -> None:
    """Have the host itself call a server of the internet, which answers, and wait for an answer in vain."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    guard.lab.own(server)
    with guard.lab.internet.inside(lambda: socket.create_server((server, 443), family=family)):

        def connect() -> None:
            with socket.socket(family) as client:
                client.settimeout(1.5)
                with pytest.raises(TimeoutError):
                    client.connect((server, 443))

        guard.lab.host.inside(connect)


@pytest.mark.parametrize("spoofable", ["false", "true"])
def test_a_listed_server_that_the_host_called_is_not_reported_and_who_calls_the_host_is(
    guard: Guard, spoofable: str
) -> None:
    wire = begin(guard, SSH, WEB, SSH_V6, SIKKER_REPORT_INTERVAL="10s", SIKKER_REPORT_SPOOFABLE=spoofable)
    for server in (WEB, SSH_V6):
        call(guard, server)
        # A SYN of the host, and another a second later; the server repeats its answer to each.
        guard.logged(rf"BLOCKED {server} \(reply from port 443\) proto=TCP x")
    # All that is no first packet is no attack either: an ACK scan, a flood of RST, and what no stack sends.
    scan = [tcp(WEB, port, ACK) for port in range(1, 200)]
    strange = [tcp(WEB, 22, flags) for flags in (0, RST, FIN, SYN | ACK, SYN | RST, SYN | FIN, RST | ACK, FIN | ACK)]
    flood = [tcp(SSH_V6, 50_000, RST, origin=origin) for origin in range(1, 500)]
    wire.send([*scan, *strange, *flood])
    sent = dropped(guard)
    assert sent > len(scan) + len(strange) + len(flood)
    settle(guard, sent)
    status = guard.status()
    assert status["droppedReplies"] == sent
    assert status["topPorts"][0]["service"] in ("reply", "further replies")
    assert status["sources"] == 2
    intervals_pass(2)
    assert requests(guard) == []
    reports = guard.status()["reports"]
    assert (reports["sent"], reports["withheld"], reports["waiting"]) == (0, 0, 0)
    # Of the same source one packet that begins a connection makes a row, which is of that alone.
    sent += wire.send([tcp(WEB, 22)])
    guard.logged(r"INFO Reported 1 blocked IPs \(ssh: 1\)", seconds=25)
    assert reported(guard) == {WEB: ("brute_force", "ssh")}
    settle(guard, dropped(guard))
    assert guard.status()["droppedReplies"] == dropped(guard) - 1


def test_forgeable_sources_are_reported_where_that_is_asked_for(guard: Guard) -> None:
    wire = begin(guard, FORGEABLE, SIKKER_REPORT_INTERVAL="10s", SIKKER_REPORT_SPOOFABLE="true")
    wire.send([udp(FORGEABLE, 53)] * 5)
    guard.logged(r"INFO Reported 1 blocked IPs \(dns: 1\)")
    assert reported(guard) == {FORGEABLE: ("dns_abuse", "dns")}


def test_nothing_is_reported_where_that_is_switched_off(guard: Guard) -> None:
    wire = begin(guard, SSH, SIKKER_REPORT_INTERVAL="10s", SIKKER_REPORT_ENABLED="false")
    sent = wire.send([tcp(SSH, 22)] * 30)
    settle(guard, sent)
    intervals_pass(1)
    assert requests(guard) == []
    assert guard.status()["reports"]["waiting"] == 0


def records(guard: Guard) -> list[list[tuple[object, ...]]]:
    """All that is on disk of what was blocked and what is to be reported."""
    with records_of(guard.state) as connection:
        tables = ("totals", "blocked", "outbox", "meta")
        return [connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]


def test_a_dry_run_reports_nothing_of_what_waits_and_leaves_it_where_it_is(guard: Guard) -> None:
    guard.state.mkdir(0o700)
    database = Database(guard.state)
    today = day_of(time.time())
    for source in (SSH, WEB):
        # The one is a row that waits, the other is still to be made one.
        TrafficStore(database).save(PendingTraffic({(socket.inet_aton(source), 6, 22): 30}, totals=Totals(day=today)))
        if source == SSH:
            decide = partial(row_of, port_map={}, spoofable=False)
            Outbox(database).gather(
                today, decide, Screen((), lambda address: Listing("", frozenset({"SikkerAPI"})), custom=False)
            )
    database.close()
    before = records(guard)
    _, blocked, outbox, _ = before
    assert len(blocked) == len(outbox) == 1
    guard.serve(SSH, WEB)
    guard.start(SIKKER_DRY_RUN="true", SIKKER_REPORT_INTERVAL="10s")
    guard.logged("Dry run: would be blocking 2 IPs")
    attack(Wire(guard.lab))
    intervals_pass(1)
    guard.stop()
    assert requests(guard) == []
    assert records(guard) == before
    # What waited is reported by the next run that is none.
    guard.start(SIKKER_REPORT_INTERVAL="10s")
    guard.logged(r"INFO Reported 2 blocked IPs \(ssh: 2\)")
    assert reported(guard).keys() == {SSH, WEB}


def test_a_dry_run_keeps_nothing(guard: Guard) -> None:
    guard.serve(SSH)
    guard.start(SIKKER_DRY_RUN="true")
    guard.logged("Dry run: would be blocking 1 IPs")
    attack(Wire(guard.lab))
    until = time.monotonic() + 3
    wait_for("some rounds of counting", lambda: time.monotonic() > until, 5)
    guard.stop()
    assert requests(guard) == []
    assert not (guard.state / FILE).exists()


def test_who_is_allowed_from_now_on_is_not_reported_by_that(guard: Guard, tmp_path: Path) -> None:
    file = tmp_path / "sikkerguard.env"
    file.write_text("SIKKER_REPORT_INTERVAL=1h\n")
    guard.serve(SSH, WEB)
    guard.start(*SIKKERGUARD, "--config", str(file), "run")
    guard.logged("Blocking 2 IPs$")
    wire = Wire(guard.lab)
    settle(guard, wire.send([*[tcp(SSH, 22)] * 30, *[tcp(WEB, 443)] * 20]))
    file.write_text(f"SIKKER_REPORT_INTERVAL=1h\nSIKKER_WHITELIST={SSH}\n")
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)
    guard.logged(r"INFO Reported 1 blocked IPs \(https: 1\)")
    assert reported(guard).keys() == {WEB}
    assert guard.status()["reports"]["withheld"] == 1


def test_a_listed_range_leaves_the_quota_to_the_others(guard: Guard) -> None:
    others = [f"203.0.113.{number}" for number in range(1, 6)]
    guard.standin.set_keys([Key(DEMO_KEY, replace(FREE, reports=7))])
    wire = begin(guard, "2001:db8:7::/48", *others, SIKKER_REPORT_INTERVAL="10s")
    # Each of the range sends more than all others: 300 networks, and 200 hosts of one network.
    crowd = [tcp(f"2001:db8:7:{network:x}::{host:x}", 22) for network in range(300) for host in (1, 2)]
    crowd += [tcp(f"2001:db8:7:ffff::{host:x}", 22) for host in range(1, 201)]
    quiet = [tcp(source, 22) for source in others]
    settle(guard, wire.send([*crowd, *crowd, tcp("2001:db8:7:ffff::7", 22), *quiet]))
    guard.logged(r"INFO Reported 7 blocked IPs \(ssh: 7\)")
    found = reported(guard).keys()
    assert found > set(others)
    # The network with most packets, in the name of the host with most, and one that is next by size.
    assert "2001:db8:7:ffff::7" in found
    (last,) = found - set(others) - {"2001:db8:7:ffff::7"}
    assert last.startswith("2001:db8:7:")
    assert guard.status()["reports"]["waiting"] == 301 - 2
    # A network whose row has gone is not reported again by another of its addresses, and a restart forgets nothing.
    guard.kill()
    guard.standin.set_keys([Key(DEMO_KEY, replace(FREE, reports=1000))])
    with closing(sqlite3.connect(guard.state / FILE)) as connection, connection:
        connection.execute("DELETE FROM meta WHERE name = 'quota_remaining'")
    guard.start(SIKKER_REPORT_INTERVAL="10s")
    guard.logged("Blocking 6 IPs", times=2)
    wire.send([*[tcp("2001:db8:7:ffff::ffff", 22)] * 9, tcp("203.0.113.1", 22)])
    guard.logged(r"INFO Reported 299 blocked IPs \(ssh: 299\)")
    rows = [record.row.ip for record in guard.standin.record.reports]
    assert sorted(row for row in rows if ":ffff:" in row) == ["2001:db8:7:ffff::7"]
    assert len({ipaddress.ip_network(f"{row}/64", strict=False) for row in rows if ":" in row}) == 301
    assert len(rows) == 306


def test_what_only_the_custom_list_has_stays_at_home_unless_that_is_wanted(guard: Guard) -> None:
    own, both = "203.0.113.20", "203.0.113.21"
    custom = guard.directory / "custom"
    custom.write_text(f"{own}\n{both}\n2001:db8:8::/64\n")
    file = guard.directory / "sikkerguard.env"
    settings = f"SIKKER_REPORT_INTERVAL=10s\nSIKKER_CUSTOM_BLACKLIST={custom}\n"
    file.write_text(settings)
    guard.serve(SSH, both)
    guard.start(*SIKKERGUARD, "--config", str(file), "run")
    guard.logged("Blocking 4 IPs$")
    wire = Wire(guard.lab)
    attack = [tcp(source, 22) for source in (own, own, both, SSH, "2001:db8:8::1", "2001:db8:8::2")]
    sent = wire.send(attack)
    guard.logged(r"INFO Reported 2 blocked IPs \(ssh: 2\)")
    settle(guard, sent)
    assert reported(guard).keys() == {SSH, both}
    assert guard.status()["reports"]["withheld"] == 2
    # Nor does an address leave that was on it until now, nor one whose file is gone from the settings.
    sent += wire.send(attack)
    settle(guard, sent)
    custom.write_text(f"{both}\n")
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)
    guard.logged("Blocking 2 IPs$")
    intervals_pass(1)
    assert reported(guard).keys() == {SSH, both}
    custom.write_text(f"{own}\n2001:db8:8::/64\n")
    file.write_text(f"{settings}SIKKER_REPORT_CUSTOM=true\n")
    guard.process.send_signal(signal.SIGHUP)
    guard.logged("Blocking 4 IPs$", times=2)
    wire.send(attack)
    guard.logged(r"INFO Reported 2 blocked IPs \(ssh: 2\)", times=2)
    assert reported(guard).keys() == {SSH, both, own, "2001:db8:8::1"}


def test_who_is_allowed_while_rows_are_on_their_way_is_not_reported(guard: Guard) -> None:
    wire = begin(guard, SSH, WEB, SIKKER_REPORT_INTERVAL="10s")
    # SikkerAPI does not answer for a while, so that the request is made and does not get anywhere.
    deaf = ("INPUT", "-p", "tcp", "--dport", "80", "-j", "DROP")
    guard.lab.internet.run("iptables-legacy", "-I", *deaf)
    wire.send([*[tcp(SSH, 22)] * 30, *[tcp(WEB, 443)] * 20])

    def sending() -> bool:
        with records_of(guard.state) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM outbox WHERE state = 'sending'").fetchone()
        return bool(rows == 2)

    wait_for("rows on their way", sending, 20)
    # The host makes a name server of a listed source: nobody tells the service.
    with Path(f"/etc/netns/{guard.lab.host.name}/resolv.conf").open("a") as file:
        file.write(f"nameserver {SSH}\n")
    wait_for("the name server to be allowed", lambda: f"add sikkerguard-allow-v4 {SSH}" in guard.lab.sets(), 5)
    guard.lab.internet.run("iptables-legacy", "-D", *deaf)
    guard.logged(r"INFO Reported 1 blocked IPs \(https: 1\)", seconds=30)
    assert reported(guard).keys() == {WEB}
    assert guard.status()["reports"]["withheld"] == 1


def test_the_kernels_log_says_where_to_look_and_a_forged_line_counts_nowhere(guard: Guard) -> None:
    with log_of_all_namespaces():
        wire = begin(guard, SSH, WEB, SIKKER_LOG_SOURCE="kmsg")
        wait_for("the log source", lambda: guard.status()["logSource"] == "kmsg")
        device = Path("/dev/kmsg")
        for level in ("", "<0>", "<4>", "<6>", "<14>", "<30>"):
            device.write_text(level + _LINE.format(source=WEB))
        wire.send([tcp(SSH, 22)] * 7)
        guard.logged(rf"BLOCKED {SSH}:22 \(ssh\) proto=TCP x7$", seconds=1.5)
        settle(guard, dropped(guard))
        assert guard.status()["droppedPackets"] == 7
        assert lines(guard) == [f"{SSH}:22 (ssh) proto=TCP x7"]
        assert WEB not in guard.log()


def test_without_any_log_everything_is_counted_all_the_same(guard: Guard) -> None:
    # This log can't be read: the test's own file in the place of what a journal would be read by.
    wire = begin(guard, SSH, SIKKER_LOG_SOURCE="journald", PYTHONPATH=str(_without_journal(guard.directory)))
    guard.logged("WARNING SIKKER_LOG_SOURCE=journald can't be had")
    wire.send([tcp(SSH, 22)] * 3)
    guard.logged(rf"BLOCKED {SSH}:22 \(ssh\) proto=TCP x3$", seconds=2)
    assert guard.status()["logSource"] == "counters"


def _without_journal(directory: Path) -> Path:
    """A directory with a package `systemd` that has no journal, as on a minimal installation."""
    place = directory / "without-journal"
    (place / "systemd").mkdir(parents=True)
    (place / "systemd" / "__init__.py").write_text("")
    return place
