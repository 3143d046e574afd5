"""The Debian package in the hands of an administrator: what he does to it, and what gets through meanwhile."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import command, wait_for
from tests.host.base import SUITES
from tests.host.installed import install
from tests.host.pings import Pings
from tests.host.service import KEY_FILE, SETTINGS_FILE
from tests.kernel.traffic import Traffic
from tests.standin.server import DEMO_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.guest import Guest
    from tests.host.service import Service

LISTED, LISTED_V6 = "203.0.113.201", "2001:db8:201::7"
INNOCENT, INNOCENT_V6 = "203.0.113.209", "2001:db8:209::9"
SOURCES = {"innocent": (INNOCENT, INNOCENT_V6), "listed": (LISTED, LISTED_V6)}
SPARED = "203.0.113.208"
OLDER = "0.0.1"
# The last good settings.
KEPT = "/var/lib/sikkerguard/settings.json"
# The service, but for a defect: told to by a signal, its loop does nothing more.
HANGING = """\
import signal, sys, time
from sikkerguard.__main__ import main
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))
sys.exit(main())
"""
# With a shorter time until that is noticed.
WITH_DEFECT = """\
[Service]
ExecStart=
ExecStart=/usr/bin/python3 /usr/local/lib/hanging.py run
WatchdogSec=12s
"""


@pytest.fixture
def older(package: Path, tmp_path: Path) -> Path:
    """The package as it was in a lower version, with its units in /lib, as 0.1.0 had them."""
    command("dpkg-deb", "--raw-extract", str(package), str(tmp_path / "older"))
    (tmp_path / "older/lib").mkdir()
    (tmp_path / "older/usr/lib/systemd").rename(tmp_path / "older/lib/systemd")
    control = tmp_path / "older/DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*$", f"Version: {OLDER}", control.read_text()))
    command("dpkg-deb", "--build", "--root-owner-group", str(tmp_path / "older"), str(tmp_path / "older.deb"))
    return tmp_path / "older.deb"


@pytest.mark.parametrize("suite", SUITES)
def test_it_waits_for_its_key_and_then_begins_by_itself(service: Service) -> None:
    host = service.host
    service.serve(LISTED, LISTED_V6)
    service.configure()
    assert host.run("systemctl", "is-enabled", "sikkerguard").strip() == "enabled"
    sentence = f"Waiting for a key, and starting by itself once there is one: put yours into {KEY_FILE}."
    wait_for(sentence, lambda: f'Status: "{sentence}"' in host.run("systemctl", "status", "sikkerguard", check=False))
    # Not failed, and not started again and again: once with the package, and once for what was written since.
    wait_for("the condition", lambda: (service.state(), service.property("Result")) == ("inactive", "exec-condition"))
    assert service.property("NRestarts") == "0"
    assert len(service.shown("Starting sikkerguard.service")) <= 3
    assert "SIKKERGUARD" not in service.rules()
    # A key that its user may not read is as good as none, and he is told so.
    host.run("sh", "-c", f"umask 077; echo {DEMO_KEY} >{KEY_FILE}")
    wait_for("the sentence", lambda: "can't be read (Permission denied)" in service.property("StatusText"))
    host.run("sh", "-c", f"rm {KEY_FILE}; echo {DEMO_KEY} >{KEY_FILE}")
    service.wait_until_active()
    # READY means that the rules are live.
    assert not service.lab.passes(LISTED)
    assert not service.lab.passes(LISTED_V6)
    assert service.lab.reaches(INNOCENT)
    assert service.lab.reaches(INNOCENT_V6)
    assert re.match(
        r"Blocking 2 addresses; list of \d+s ago; next pull in \d+h; \d+ packets dropped today$",
        service.property("StatusText"),
    )


@pytest.mark.parametrize("suite", SUITES)
def test_it_runs_with_little_and_shows_what_it_blocks(service: Service, suite: str) -> None:
    host = service.host
    service.start(LISTED, LISTED_V6)
    number = service.property("MainPID")
    fields = dict(
        line.split(":\t", 1) for line in host.run("cat", f"/proc/{number}/status").splitlines() if ":\t" in line
    )
    # CAP_NET_ADMIN is 12 and CAP_NET_RAW 13 (linux/capability.h).
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0000000000003000"}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Uid"].split() == [host.run("id", "-u", "sikkerguard").strip()] * 4
    for unit in ("sikkerguard.service", "sikkerguard-restore.service"):
        exposure = host.run("systemd-analyze", "security", "--no-pager", unit)
        found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", exposure)
        assert found is not None, exposure
        assert float(found[1]) <= 1.7, exposure
    # Debian 12's systemd does not know the other one.
    kind = "notify" if suite == "bookworm" else "notify-reload"
    assert (service.property("Type"), service.property("WatchdogUSec")) == (kind, "30s")

    for source in (LISTED, LISTED_V6):
        service.attack(source, 23)
        entry = service.wait_until_shown(f"BLOCKED {f'[{source}]' if ':' in source else source}:23 (telnet) proto=TCP")
        selected = host.journal("--unit=sikkerguard", f"SIKKER_SRC={source}")
        assert entry in selected
        wanted = {"SIKKER_DPT": "23", "SIKKER_PROTO": "TCP", "SIKKER_SERVICE": "telnet", "PRIORITY": "6"}
        assert {name: entry[name] for name in wanted} == wanted
    assert service.status()["logSource"] == "journald"
    assert DEMO_KEY not in json.dumps(host.journal())
    assert host.run("stat", "-c", "%a %U %G", "/etc/sikkerguard", SETTINGS_FILE).splitlines() == [
        "750 root sikkerguard",
        "640 root sikkerguard",
    ]


def test_a_reload_takes_settings_and_pulls(service: Service) -> None:
    service.start(LISTED)
    number = service.property("MainPID")
    service.serve(LISTED, LISTED_V6)
    service.configure(SIKKER_PORT_MAP="2323=telnet")
    service.host.run("systemctl", "reload", "sikkerguard")
    service.wait_until_shown("Settings reloaded; pulling now.")
    service.wait_until_shown("Blocking 2 IPs")
    service.attack(LISTED, 2323)
    service.wait_until_shown(f"BLOCKED {LISTED}:2323 (telnet)")
    assert (service.property("MainPID"), service.state()) == (number, "active")


def test_nothing_gets_through_in_a_restart_and_an_upgrade(service: Service, package: Path, older: Path) -> None:
    host = service.host
    host.copy(older, "/root/older.deb")
    host.run("dpkg", "--install", "/root/older.deb")
    assert host.run("dpkg-query", "-W", "-f=${Version}", "sikkerguard") == OLDER
    service.start(LISTED, LISTED_V6)
    settings = host.run("cat", SETTINGS_FILE)
    with Traffic(service.lab, **SOURCES) as traffic:
        host.run("systemctl", "restart", "sikkerguard")
        service.wait_until_shown("Stopped for a restart: what is blocked stays blocked meanwhile.")
        traffic.check()
        host.copy(package, f"/root/{package.name}")
        host.run(
            *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "-o", "Dpkg::Options::=--force-confold"),
            *("install", f"/root/{package.name}"),
            timeout=180,
        )
        assert service.state() == "active"
        wait_for("the pull after the upgrade", lambda: service.status()["lastPull"])
        traffic.check()
    assert host.run("dpkg-query", "-W", "-f=${Version}", "sikkerguard") != OLDER
    # Nor was a packet forgotten, or told twice, on the way from one process to the next.
    wait_for("all lines", lambda: _told(service) == service.status()["droppedPackets"] == service.dropped(), 30)
    # Nothing was lost on the way of the units from one place to the other.
    assert host.run("dpkg", "--verify", "sikkerguard").splitlines() == [f"??5?????? c {SETTINGS_FILE}"]
    # What the administrator wrote, and his key, are as they were.
    assert host.run("cat", SETTINGS_FILE) == settings
    assert host.run("cat", KEY_FILE).strip() == DEMO_KEY


def _told(service: Service) -> int:
    return sum(int(entry["SIKKER_PACKETS"]) for entry in service.shown("BLOCKED ") if "SIKKER_PACKETS" in entry)


def test_a_service_that_is_killed_stopped_or_hangs_is_restarted_and_nothing_gets_through(service: Service) -> None:
    host = service.host
    service.expected_errors += ["Watchdog timeout"]
    host.write("/usr/local/lib/hanging.py", HANGING)
    service.drop_in("hanging.conf", WITH_DEFECT)
    service.start(LISTED, LISTED_V6)
    with Traffic(service.lab, **SOURCES) as traffic:
        for name in ("KILL", "STOP", "USR1"):
            former = service.property("MainPID")
            host.run("kill", f"-{name}", former)
            wait_for(f"another process after SIG{name}", partial(_has_other_process, service, former), 45)
            service.wait_until_active()
            traffic.check()
    assert service.property("NRestarts") == "3"
    assert service.log().count("Watchdog timeout") == 2
    assert service.log().count("from the cache") >= 3


def _has_other_process(service: Service, former: str) -> bool:
    return service.property("MainPID") not in ("0", former)


@pytest.mark.parametrize("suite", SUITES)
def test_a_reboot_blocks_before_the_network_is_up(service: Service) -> None:
    service.start(LISTED, LISTED_V6)
    before = service.status()["droppedPackets"]
    assert not service.lab.passes(LISTED)
    service.standin.stop()
    service.expected_errors.append("SikkerAPI can't be reached")
    with Pings(service.lab, **SOURCES) as pings:
        wait_for("answers", lambda: all(pings.answers(source) for source in SOURCES["innocent"]))

        going: list[int] = []

        def plug() -> None:
            going.extend(pings.answers(source) for source in SOURCES["listed"])
            # The former network is down: what was answered before says nothing of what comes.
            pings.forget()
            service.lab.plug()

        service.host.reboot(plug)
        # The rules stay while the host goes down, which for most hosts takes longer than for a container.
        assert going == [0, 0]
        wait_for("answers", lambda: all(pings.answers(source) > 20 for source in SOURCES["innocent"]), 30)
        assert not any(pings.answers(source) for source in SOURCES["listed"])
        service.wait_until_active()
        assert not any(pings.answers(source) for source in SOURCES["listed"])
    assert "from the cache" in service.log()
    assert "Stopped as the host goes down: what is blocked stays blocked." in service.log()
    assert service.status()["droppedPackets"] > before


@pytest.mark.parametrize("suite", SUITES)
def test_a_mistake_fails_the_reload_and_the_next_boot_blocks_by_the_last_good_settings(service: Service) -> None:
    host = service.host
    service.expected_errors += ["SIKKER_SCORE_MIN", "SIKKER_PORT_MAP", "SIKKER_API_KEY is not set", "Reload failed"]
    service.start(LISTED, SIKKER_WHITELIST=SPARED)
    number = service.property("MainPID")
    wait_for("what is kept", lambda: "SIKKER_WHITELIST" in host.run("cat", KEPT, check=False))
    assert host.run("stat", "-c", "%a %U", KEPT).split() == ["600", "sikkerguard"]
    assert DEMO_KEY not in host.run("cat", KEPT)

    # The whitelist is a new one, and good; the next line is not.
    service.configure(SIKKER_WHITELIST=f"{SPARED},{INNOCENT}", SIKKER_SCORE_MIN="nonsense", SIKKER_PORT_MAP="22=my_ssh")
    assert _code(service, "systemctl reload sikkerguard") != 0
    assert (service.property("MainPID"), service.state()) == (number, "active")
    service.wait_until_shown(f"'nonsense' is not a number from 1 to 100 ({SETTINGS_FILE}, line 4).")
    assert service.allowed() == {SPARED}
    assert not service.lab.passes(LISTED)

    # What a boot does, with the key on a disk that comes later.
    host.run("sh", "-c", f"mv {KEY_FILE} /root; systemctl stop sikkerguard; systemctl start sikkerguard-restore")
    assert not service.lab.passes(LISTED)
    assert service.lab.reaches(INNOCENT)
    assert service.allowed() == {SPARED, INNOCENT}
    # It follows the host without its key, and takes it as soon as it is there.
    host.run("systemctl", "start", "sikkerguard")
    assert not service.lab.passes(LISTED)
    wait_for("the want of a key", lambda: "SIKKER_API_KEY is not set" in service.reasons())
    # Degraded, with the line.
    said = service.reasons()
    assert f"SIKKER_SCORE_MIN: 'nonsense' is not a number from 1 to 100 ({SETTINGS_FILE}, line 4). Until" in said
    assert f"({SETTINGS_FILE}, line 5). Until" in said
    assert host.run("sikkerguard", "health") == "OK\n"
    asked = service.standin.record.requests_total
    host.run("mv", "/root/api-key", KEY_FILE)
    wait_for("a pull", lambda: service.standin.record.requests_total > asked, 5)

    service.configure(SIKKER_WHITELIST=SPARED)
    wait_for("all to be well", lambda: service.reasons() == "", 5)
    assert service.allowed() == {SPARED}
    assert _code(service, "systemctl reload sikkerguard") == 0


def _code(service: Service, line: str) -> int:
    return int(service.host.run("sh", "-c", f"{line} >/dev/null 2>&1; echo $?"))


@pytest.mark.parametrize("suite", SUITES)
def test_what_never_was_good_is_tried_again_and_a_stop_removes_what_stayed(service: Service, suite: str) -> None:
    host = service.host
    service.expected_errors += ["SIKKER_SCORE_MIN", "Failed to start sikkerguard.service"]
    service.configure(SIKKER_SCORE_MIN="nonsense")
    host.write(KEY_FILE, DEMO_KEY)
    wait_for("the first try", lambda: service.property("ExecMainStatus") == "2", 20)
    assert (service.property("Restart"), service.property("StartLimitIntervalUSec")) == ("always", "0")
    if suite != "bookworm":
        steps = (service.property("RestartSteps"), service.property("RestartMaxDelayUSec"))
        assert steps == ("5", "1min")
    complaint = service.wait_until_shown(f"SIKKER_SCORE_MIN: 'nonsense' is not a number from 1 to 100 ({SETTINGS_FILE}")
    assert complaint["PRIORITY"] == "3"
    wait_for("another try", lambda: int(service.property("NRestarts")) >= 2, 45)
    service.serve(LISTED)
    service.configure()
    service.wait_until_active(60)
    assert not service.lab.passes(LISTED)
    # One that dies again and again, with nothing good to go by.
    service.configure(SIKKER_SCORE_MIN="nonsense")
    host.run("sh", "-c", f"rm {KEPT}; systemctl restart sikkerguard", check=False)
    wait_for("the end", lambda: service.property("ExecMainStatus") == "2", 20)
    assert not service.lab.passes(LISTED)
    host.run("systemctl", "stop", "sikkerguard")
    wait_for("the removal", lambda: not service.lab.sets())
    assert "SIKKERGUARD" not in service.rules()
    assert service.lab.reaches(LISTED)
    # Whoever has stopped it does not want it started by an editor.
    service.configure()
    assert service.state("sikkerguard.path") == "inactive"
    assert service.state() != "active"
    # Nothing in the units that this systemd does not know.
    assert "nknown key" not in host.run("journalctl", "-b", "--no-pager", "_PID=1")


@pytest.mark.parametrize("suite", SUITES)
def test_an_installation_with_a_key_and_no_way_to_its_list_does_not_hang(bare: Guest, package: Path) -> None:
    bare.run("mkdir", "-p", "/etc/sikkerguard")
    bare.write(KEY_FILE, DEMO_KEY)
    began = time.monotonic()
    install(bare, package)
    took = time.monotonic() - began
    shown = bare.run("systemctl", "status", "--no-pager", "--full", "sikkerguard", check=False)
    assert "Active: active (running)" in shown, shown + bare.run("journalctl", "--no-pager", "-n", "60")
    assert "No list is in force yet" in bare.run("sikkerguard", "status", check=False)
    # Of this, most is apt and dpkg; a start that waited for a list took 95 s.
    assert took < 45, took
    began = time.monotonic()
    bare.run("systemctl", "reload", "sikkerguard")
    assert time.monotonic() - began < 10


def test_the_kernels_log_is_handed_over_by_systemd(service: Service) -> None:
    host = service.host
    service.drop_in("kmsg.conf", host.run("cat", "/usr/share/doc/sikkerguard/examples/kmsg.conf"))
    service.start(LISTED, SIKKER_LOG_SOURCE="kmsg")
    service.attack(LISTED, 22)
    service.wait_until_shown(f"BLOCKED {LISTED}:22 (ssh)")
    assert service.status()["logSource"] == "kmsg"


def test_a_day_of_it_is_no_news_to_logcheck(service: Service) -> None:
    host = service.host
    host.run(
        "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--no-install-recommends", "logcheck"
    )
    service.start(LISTED)
    service.attack(LISTED, 22)
    service.wait_until_shown("BLOCKED")
    for word in ("reload", "restart", "stop", "start"):
        host.run("systemctl", word, "sikkerguard")
    shown = ("journalctl", "--no-pager", "--quiet", "--output=short")
    lines = host.run(*shown, "-u", "sikkerguard", "-u", "sikkerguard-restore", "-u", "sikkerguard.path")
    # Guests hear of the packets of all.
    lines += host.run(*shown, "-k", "-g", f"SIKKERGUARD .*SRC={LISTED} ", "SYSLOG_FACILITY=0")
    assert "BLOCKED" in lines
    assert "SIKKERGUARD IN=" in lines
    host.write("/root/day", lines)
    # As logcheck does it: what no pattern of a server ignores is sent to the administrator.
    host.run("sh", "-c", "cat /etc/logcheck/ignore.d.server/* >/root/patterns")
    left = host.run("grep", "-v", "-E", "-f", "/root/patterns", "/root/day", check=False).splitlines()
    # What is no news must not hide what is: a key that was missing, and one that anyone can read on its way.
    news = ("Waiting for a key", "exec-condition", "Condition check resulted in", "does not begin with https")
    assert any(news[0] in line for line in left)
    assert [line for line in left if not any(words in line for words in news)] == []
