"""The service as its owner sees it, while lists, answers and neighbours do their worst, one after the other.

Packets of listed and innocent sources come each millisecond, before, during and after: no listed one gets in, no
innocent one is lost, and in the end nothing of the service is left. And the same while what is ordinary on a host goes
wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
from typing import TYPE_CHECKING

from scripts.laboratory.network import API, GATEWAY
from scripts.laboratory.packets import ACK, RST, SYN, Wire, tcp
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from tests.kernel.conftest import SIKKERGUARD
from tests.kernel.listings import pager
from tests.kernel.test_control import impostor
from tests.kernel.test_disks import disk
from tests.kernel.test_hostile_lists import CROWD, EIGHTHS, LISTED, LISTED_V6, SIXTEENTHS, pull, serve, write
from tests.kernel.test_ordinary import manager
from tests.kernel.traffic import Traffic
from tests.standin.faults import Canned

if TYPE_CHECKING:
    from tests.kernel.conftest import Guard

INNOCENT, INNOCENT_V6 = "192.0.2.77", "2001:db8:9::9"
OWN_LISTED, SCANNER, SERVER = "203.0.113.201", "203.0.113.150", "203.0.113.151"
LIARS = [f"203.0.113.{number}" for number in range(1, 26) if number != 7]
LIST = [LISTED, LISTED_V6, SCANNER, SERVER, GATEWAY, *LIARS, *CROWD]
BLOCKED = len(LIST) - 1  # the gateway's address is cut out


def test_listed_sources_stay_out_and_innocent_ones_are_served_whatever_comes(guard: Guard, resolver: Resolver) -> None:
    guard.expected_errors += [
        " ERROR SikkerAPI",
        " ERROR 22[0-9] of 27",
        " ERROR .*SIKKER_CUSTOM_BLACKLIST",
        " ERROR .*mine.txt",
    ]
    lab = guard.lab
    # With a rule of somebody's in it, the table is there before and after.
    lab.host.run("iptables-legacy", "-t", "raw", "-A", "OUTPUT", "-d", "192.0.2.250", "-j", "ACCEPT")
    lab.host.run("ip6tables-legacy", "-t", "raw", "-A", "OUTPUT", "-d", "2001:db8::250", "-j", "ACCEPT")
    before = lab.everything()
    mine = guard.directory / "mine.txt"
    mine.write_text(f"{OWN_LISTED}\n")
    guard.environment |= {
        "SIKKER_API_URL": f"http://{Resolver.NAME}",
        "SIKKER_CUSTOM_BLACKLIST": str(mine),
        "SIKKER_REPORT_INTERVAL": "10s",
    }
    serve(guard, LIST)
    guard.start()
    guard.logged(f"Blocking {BLOCKED + 1} IPs")
    lab.own(SERVER)
    with Traffic(lab, innocent=(INNOCENT, INNOCENT_V6), listed=(LISTED, LISTED_V6, OWN_LISTED)) as traffic:
        # Lists that would cut off everybody, by wide ranges, by many ranges, and by what the owner wrote himself.
        for lines in ([*LIST, *EIGHTHS], [*LIST, *SIXTEENTHS], [LISTED, *CROWD[:200]], [*LIST, "0.0.0.0/0"]):
            serve(guard, lines)
            pull(guard)
            traffic.check()
        for text in ("", "<html>502</html>\n", "".join(f"{first}.0.0.0/8\n" for first in range(20, 40))):
            write(str(mine), text)
            wait_for("a word on the file", lambda: guard.status()["lists"][-1]["trouble"])
            traffic.check()
            write(str(mine), f"{OWN_LISTED}\n")
            wait_for("that all is well", lambda: guard.status()["lists"][-1]["trouble"] is None)
        serve(guard, LIST)
        assert pull(guard) == f"Blocking {BLOCKED + 1} IPs\n"

        # Names that lie, answers that fail, and a process that dies in the middle of it.
        resolver.answers = [*LIARS, API]
        assert pull(guard).startswith("Blocking ")
        for liar in LIARS[:3]:
            assert not lab.passes(liar), liar
        for status in (401, 429, 503):
            guard.standin.clear_faults()
            guard.standin.fault("blacklist", Canned(status=status), 1000)
            pull(guard)
            traffic.check()
        guard.kill()
        traffic.check()
        serve(guard, LIST)
        guard.start()
        guard.logged(rf"Blocking {BLOCKED + 1} IPs \(from the cache")
        traffic.check()

        # A host with thousands of addresses and routes, and one that changes.
        batch = "".join(f"addr add 198.18.{number >> 8}.{number & 255}/32 dev lo\n" for number in range(9000))
        batch += "".join(f"route add 198.19.{number >> 8}.{number & 255}/32 dev lo\n" for number in range(5000))
        lab.host.run("ip", "-batch", "-", text=batch)
        lab.host.run("ip", "addr", "add", "198.51.100.11/24", "dev", "wan")
        wait_for("the new address allowed", lambda: "sikkerguard-allow-v4 198.51.100.11" in lab.sets(), 5)
        traffic.check()
        assert pull(guard).startswith("Blocking ")
        traffic.check()

        # Who began it: a listed server that the host calls did not, nor did one whose RSTs and ACKs come.
        with contextlib.closing(lab.internet.inside(lambda: socket.create_server((SERVER, 443)))):
            assert lab.host.inside(lambda: refused(SERVER, 443))
        wire = Wire(lab)
        wire.send([tcp(SERVER, 50_000, flags) for flags in (ACK, RST, SYN | ACK) for _ in range(20)])
        wire.send([tcp(SCANNER, 22)] * 3)
        guard.logged("Reported 1 blocked IPs", seconds=30)
        assert {record.row.ip for record in guard.standin.record.reports} == {SCANNER}
        traffic.check()
        found = guard.status()
        assert (found["status"], found["reasons"], found["blockedIps"]) == ("active", [], BLOCKED + 1)
        assert found["droppedReplies"] >= 60
    lab.host.run("ip", "addr", "flush", "dev", "lo", "to", "198.18.0.0/15")
    lab.host.run("ip", "route", "flush", "dev", "lo", "to", "root", "198.19.0.0/16")
    lab.host.run("ip", "addr", "del", "198.51.100.11/24", "dev", "wan")
    guard.stop()
    assert lab.everything() == before


def refused(server: str, port: int) -> bool:
    """Whether a connection to it does not come about."""
    with socket.socket() as made:
        made.settimeout(1.5)
        try:
            made.connect((server, port))
        except TimeoutError:
            return True
    return False


def test_nothing_ordinary_ends_it_and_no_packet_notices(guard: Guard) -> None:
    guard.expected_errors += [
        "127.0.0.1 port 8080 can't be listened on",
        " ERROR SikkerAPI",
        "The new configuration is not used",
        "SIKKER_SCORE_MIN",
        "SIKKER_PORT_MAP",
        "Another program has held",
        "can't be written",
        "disk is full",
    ]
    lab = guard.lab
    for tool, address in (("iptables-legacy", "192.0.2.250"), ("ip6tables-legacy", "2001:db8::250")):
        lab.host.run(tool, "-t", "raw", "-A", "OUTPUT", "-d", address, "-j", "ACCEPT")
    before = lab.everything()
    place, lock, settings = (guard.directory / name for name in ("run", "xtables.lock", "sikkerguard.env"))
    place.mkdir(mode=0o755)
    guard.environment |= {
        "RUNTIME_DIRECTORY": str(place),
        "XTABLES_LOCKFILE": str(lock),
        # As containers, clusters and companies have it.
        "NO_PROXY": "localhost,127.0.0.0/8,fd00::/8,[::1],::1/128,10.96.0.0/12,.svc",
        "no_proxy": "[fd00::1]:443,*",
        "NOTIFY_SOCKET": str(guard.directory / "notify"),
    }
    settings.write_text("SIKKER_SCORE_MIN=60\nSIKKER_PORT_MAP=2222=my_ssh\n")
    run = (*SIKKERGUARD, "--config", str(settings), "run")
    # More than a pipe takes of a listing.
    crowd = [LISTED, LISTED_V6, *(f"11.0.{number >> 8}.{number & 255}" for number in range(20_000))]
    with disk(guard) as state, impostor(guard), manager(guard) as systemd:
        systemd.listen()
        serve(guard, crowd)
        guard.start(*run)
        guard.logged(f"Blocking {len(crowd)} IPs")
        wait_for("READY", lambda: systemd.said("READY"))
        with Traffic(lab, innocent=(INNOCENT, INNOCENT_V6), listed=(LISTED, LISTED_V6)) as traffic:
            # Another program has the port of the page, and a word for ports is no word.
            found = guard.status()
            assert found["status"] == "degraded"
            said = " ".join(found["reasons"])
            assert "port 8080 can't be listened on" in said
            assert "'my_ssh' is no name" in said
            assert guard.cli("health").stdout == "OK\n"
            settings.write_text("SIKKER_SCORE_MIN=60\nSIKKER_PORT_MAP=2222=my-ssh:ssh\n")
            traffic.check()

            # Answers that no library understands.
            for location in ("http://[bad", "//[::1]]/v1"):
                guard.standin.clear_faults()
                guard.standin.fault("blacklist", Canned(302, headers=(("Location", location),)), 1000)
                pull(guard)
                assert guard.status()["lastPullError"]
                traffic.check()

            # A pager that somebody left open on our set, and a program that keeps iptables' lock.
            serve(guard, [*crowd, SCANNER])
            with pager(lab, "sikkerguard-v4"):
                assert pull(guard).startswith("Blocking ")
                assert not lab.passes(SCANNER)
                traffic.check()
            with lock.open("r") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                lab.host.run("ip6tables-legacy", "-t", "raw", "-A", "SIKKERGUARD", "-s", "2001:db8::251")
                guard.logged("Another program has held")
                traffic.check()
            guard.logged("Another program changed our rules")

            # A disk that is full, one that takes nothing, and then is well again.
            state.fill()
            serve(guard, crowd)
            assert pull(guard) == f"Blocking {len(crowd)} IPs\n"
            wait_for("a word on the disk", lambda: _says(guard, "disk is full") or _says(guard, "can't be written"), 20)
            traffic.check()
            state.make_room()
            wait_for(
                "no word on the disk", lambda: not (_says(guard, "is full") or _says(guard, "can't be written")), 20
            )

            # A reload with a mistake, a death, and a start that meets the mistake.
            settings.write_text("SIKKER_SCORE_MIN=nonsense\n")
            pull(guard)
            guard.logged("The new configuration is not used")
            traffic.check()
            guard.kill()
            traffic.check()
            guard.start(*run)
            guard.logged("Blocking .*from the cache")
            assert _says(guard, "SIKKER_SCORE_MIN: 'nonsense'")
            settings.write_text("SIKKER_SCORE_MIN=60\n")
            guard.standin.clear_faults()
            serve(guard, crowd)
            wait_for("the corrected settings", lambda: not _says(guard, "SIKKER_SCORE_MIN"))
            traffic.check()
        guard.stop()
        assert systemd.said("STOPPING")
    assert "\x1b" not in guard.log()
    assert lab.everything() == before


def _says(guard: Guard, words: str) -> bool:
    """Whether this is among what status has to say."""
    return words in " ".join(guard.status()["reasons"])
