"""The package's life on Debian's own kernels: installation, first start, a reboot, and a purge that leaves nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scripts.laboratory.network import API
from scripts.laboratory.tools import wait_for
from tests.host.pings import Pings
from tests.standin.server import DEMO_KEY
from tests.vm.conftest import LISTED, LISTED_V6
from tests.vm.machine import BOOT_SECONDS, timed
from tests.vm.service import (
    everything,
    knock,
    log,
    state,
    status,
    wait_until_active,
    wait_until_shown,
    wait_until_silent,
)

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.laboratory.network import Laboratory
    from tests.standin.server import Standin
    from tests.vm.machine import Machine

INNOCENT, INNOCENT_V6 = "203.0.113.99", "2001:db8:99::99"
KERNELS = {"bookworm": "6.1.", "trixie": "6.12."}
# What the rules and sets need. On the machine that the other tiers run on, these may be built in.
MODULES = {
    *("ip_tables", "iptable_raw", "ip6_tables", "ip6table_raw", "x_tables", "xt_LOG", "xt_set", "xt_u32"),
    *("ip_set", "ip_set_hash_ip", "ip_set_hash_net", "ip_set_hash_ipport", "nf_log_syslog"),
}
# systemd 252 loads these by itself.
ALWAYS_LOADED = {"ip_tables", "x_tables"}
FOREIGN_SETS = "create foreign hash:ip family inet counters\nadd foreign 203.0.113.200\n"
FOREIGN_RAW = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FOREIGN - [0:0]
-A PREROUTING -p tcp -m multiport --dports 9998,9999 -j FOREIGN
COMMIT
"""
# apt has to be patient: the machine's processors are emulated.
APT_SECONDS = 1800.0
APT = ("apt-get", "-q", "--yes")
QUIETLY = {"DEBIAN_FRONTEND": "noninteractive"}


def test_the_kernel_is_debians_and_has_what_we_need_in_modules(vm: Machine, suite: str) -> None:
    release = vm.run("uname", "-r").strip()
    print(f"\n    Linux {release}", end="")
    assert release.startswith(KERNELS[suite])
    assert "Debian" in vm.run("cat", "/proc/version")
    for module in MODULES:
        assert f"/lib/modules/{release}/" in vm.run("modinfo", "-F", "filename", module)
    assert not (MODULES - ALWAYS_LOADED) & vm.modules()


def test_it_is_installed_and_waits_for_its_key(vm: Machine, package: Path) -> None:
    path = f"/root/{package.name}"
    vm.copy(package, path)
    # In one go with all that it needs, as on a server that has had nothing of it.
    with timed("the package is installed"):
        vm.run(*APT, "install", path, timeout=APT_SECONDS, env=QUIETLY)
    assert vm.run("systemctl", "is-enabled", "sikkerguard").strip() == "enabled"
    assert (state(vm, "ActiveState"), state(vm, "Result")) == ("inactive", "exec-condition")
    shown = vm.run("systemctl", "status", "--no-pager", "sikkerguard", check=False)
    assert re.search(r'^ +Status: "Waiting for a key, .*"$', shown, re.MULTILINE), shown
    assert not vm.run("systemctl", "--failed", "--no-legend")


def test_it_starts_by_itself_and_blocks(vm: Machine, lab: Laboratory, standin: Standin) -> None:
    vm.write("/etc/sikkerguard/sikkerguard.env", f"SIKKER_API_URL=http://{API}\nSIKKER_ALLOW_HTTP=true\n")
    with timed("it has started by itself, and blocks"):
        vm.write("/etc/sikkerguard/api-key", f"{DEMO_KEY}\n")
        wait_until_active(vm)
    listed = {LISTED: f"{LISTED}:23", LISTED_V6: f"[{LISTED_V6}]:23"}
    assert not any(lab.passes(source) for source in listed)
    assert lab.reaches(INNOCENT)
    assert lab.reaches(INNOCENT_V6)
    for source in listed:
        knock(lab, source, 23)
    for shown in listed.values():
        wait_until_shown(vm, f"BLOCKED {shown} (telnet) proto=TCP x")
    # The kernel's own lines, which say where to look.
    lines = [str(entry["MESSAGE"]) for entry in vm.journal("--dmesg")]
    assert sum(line.startswith("SIKKERGUARD IN=wan ") and "DPT=23" in line for line in lines) == 2
    found = status(vm)
    assert found["droppedPackets"] == 4
    assert 1000 < found["blockedIps"] <= standin.entry_count
    assert found["logSource"] == "journald"
    assert vm.run("sikkerguard", "health").strip() == "OK"


def test_it_runs_with_little(vm: Machine) -> None:
    lines = vm.run("cat", f"/proc/{state(vm, 'MainPID')}/status").splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    # CAP_NET_ADMIN is 12 and CAP_NET_RAW 13 (linux/capability.h).
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {f"{1 << 12 | 1 << 13:016x}"}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Uid"].split() == [vm.run("id", "-u", "sikkerguard").strip()] * 4


def test_a_reboot_lets_nothing_through(vm: Machine, lab: Laboratory, standin: Standin) -> None:
    standin.stop()
    innocent, listed = (INNOCENT, INNOCENT_V6), (LISTED, LISTED_V6)

    def answers(when: str) -> list[int]:
        found = {source: pings.answers(source) for source in (*listed, *innocent)}
        print(f"\n    answers {when}: {found}", end="")
        return [found[source] for source in listed]

    with Pings(lab, innocent=innocent, listed=listed) as pings:
        wait_for("answers", lambda: all(pings.answers(source) for source in innocent))
        former = vm.boot_id()
        with timed("the machine has gone down"):
            vm.run("systemctl", "reboot", check=False)
            wait_until_silent(pings, innocent)
        going = answers("while it went down")
        pings.forget()
        with timed("the first answers after the reboot"):
            wait_for("answers", lambda: all(pings.answers(source) for source in innocent), BOOT_SECONDS)
        coming = answers("of a network that has just come up")
        with timed("the service is active again"):
            wait_for("another boot", lambda: vm.boot_id() not in ("", former), BOOT_SECONDS)
            wait_until_active(vm)
            vm.wait_until_booted(former)
        after = answers("until the service was active")
    assert coming == after == [0, 0]
    assert "from the cache" in log(vm), log(vm)
    # Nobody but us has had any use for them in this boot.
    assert vm.modules() >= MODULES
    restored = int(state(vm, "ExecMainExitTimestampMonotonic", "sikkerguard-restore.service"))
    networked = int(state(vm, "ExecMainStartTimestampMonotonic", "systemd-networkd.service"))
    started = int(state(vm, "ActiveEnterTimestampMonotonic"))
    print(f"\n    seconds: restored {restored / 1e6}, network {networked / 1e6}, active {started / 1e6}", end="")
    assert restored < networked
    assert going == [0, 0]


def test_a_pull_works_again_once_the_api_does(vm: Machine, lab: Laboratory, standin: Standin) -> None:
    lab.internet.inside(standin.start)
    vm.run("sikkerguard", "pull")
    assert 1000 < status(vm)["blockedIps"] <= standin.entry_count
    assert vm.run("sikkerguard", "health").strip() == "OK"


def test_a_purge_leaves_nothing(vm: Machine, lab: Laboratory) -> None:
    vm.run("systemctl", "stop", "sikkerguard")
    vm.run("ipset", "restore", text=FOREIGN_SETS)
    for tool in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
        vm.run(tool, "--noflush", text=FOREIGN_RAW)
    before = everything(lab)
    assert "sikkerguard" not in before.lower()
    vm.run("systemctl", "start", "sikkerguard")
    assert not lab.passes(LISTED)
    number = vm.run("id", "-u", "sikkerguard").strip()
    with timed("the package is purged"):
        vm.run(*APT, "purge", "sikkerguard", timeout=APT_SECONDS, env=QUIETLY)
    assert everything(lab) == before
    assert lab.reaches(LISTED)
    assert lab.reaches(LISTED_V6)
    for database in ("passwd", "group"):
        assert not vm.run("getent", database, "sikkerguard", check=False)
    assert vm.run("stat", "-c", "%a %U %G", "/run/xtables.lock").split() == ["600", "root", "root"]
    assert not vm.run("systemctl", "list-units", "--all", "--no-legend", "sikkerguard*")
    assert not vm.run("systemctl", "--failed", "--no-legend")
    everywhere = ("find", "/", "/run", "/dev", "/dev/shm", "-xdev")
    left = vm.run(*everywhere, "(", "-iname", "*sikker*", "-o", "-uid", number, ")").splitlines()
    # But for what it was installed from.
    assert [path for path in left if not path.endswith("_all.deb")] == []


def test_there_was_nothing_to_complain_of(vm: Machine) -> None:
    kernel = [str(entry["MESSAGE"]) for entry in vm.journal("_TRANSPORT=kernel")]
    # Of audit, 1326 is a system call that ended its process.
    assert [line for line in kernel if re.search(r"segfault|BUG:|Oops|Call Trace|type=1326", line)] == []
    ours = [entry for entry in vm.journal("--unit=sikkerguard*") if entry.get("SYSLOG_IDENTIFIER") == "sikkerguard"]
    texts = [str(entry["MESSAGE"]) for entry in ours]
    assert [text for text in texts if text.startswith(("Traceback", "sikkerguard: "))] == []
    # That the API could not be had after the reboot was our doing.
    errors = [str(entry["MESSAGE"]) for entry in ours if int(entry["PRIORITY"]) <= 3]
    assert [text for text in errors if "SikkerAPI" not in text] == []
