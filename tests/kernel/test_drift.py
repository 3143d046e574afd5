"""Someone else changes our rules and sets: they are put right within ten seconds, and nobody else's are touched."""

from __future__ import annotations

import fcntl
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from scripts.laboratory.network import Laboratory
    from tests.kernel.conftest import Guard

REPAIRED = "WARNING Another program changed our rules "


@dataclass(frozen=True)
class Twin:
    """One family: its tool, the label in our sets' names, and sources to try."""

    tool: str
    label: str
    listed: str
    in_range: str
    listed_range: str
    innocent: str

    def iptables(self, lab: Laboratory, *words: str) -> None:
        """Change table raw."""
        lab.host.run(self.tool, "-w", "-t", "raw", *words)

    def name(self, kind: str = "") -> str:
        """The name of a set of ours."""
        return f"sikkerguard{kind and '-'}{kind}-{self.label}"


V4 = Twin("iptables-legacy", "v4", "203.0.113.7", "192.0.2.77", "192.0.2.0/25", "203.0.113.99")
V6 = Twin("ip6tables-legacy", "v6", "2001:db8:7::7", "2001:db8:aa::7", "2001:db8:aa::/48", "2001:db8:99::99")
TWINS = (V4, V6)

Drift = Callable[["Laboratory", Twin], object]


def remove_jump(lab: Laboratory, twin: Twin) -> None:
    twin.iptables(lab, "-D", "PREROUTING", "!", "-i", "lo", "-j", "SIKKERGUARD")


def narrow_jump(lab: Laboratory, twin: Twin) -> None:
    remove_jump(lab, twin)
    twin.iptables(lab, "-I", "PREROUTING", "!", "-i", "lo", "-p", "tcp", "-j", "SIKKERGUARD")


def narrow_drop(lab: Laboratory, twin: Twin) -> None:
    """The last rule of our chain takes TCP only."""
    rules = lab.host.run(twin.tool, "-t", "raw", "-S", "SIKKERGUARD").count("-A SIKKERGUARD")
    twin.iptables(lab, "-R", "SIKKERGUARD", str(rules), "-p", "tcp", "-j", "DROP")


def widen_link(lab: Laboratory, twin: Twin) -> None:
    """What is let through from the link is all that comes over UDP, or all of ICMPv6."""
    header = "0x6&0xff=0x11" if twin is V4 else "0x4&0xff00=0x3a00"
    twin.iptables(lab, "-R", "SIKKERGUARD", "4", "-m", "u32", "--u32", header, "-j", "RETURN")


def replace_address(lab: Laboratory, twin: Twin) -> None:
    """The number of entries stays."""
    lab.host.run("ipset", "del", twin.name(), twin.listed)
    lab.host.run("ipset", "add", twin.name(), twin.innocent)


def remove_everything(lab: Laboratory, twin: Twin) -> None:
    remove_jump(lab, twin)
    for chain in ("SIKKERGUARD", "SIKKERGUARD-COUNT", "SIKKERGUARD-NEW", "SIKKERGUARD-REPLIES"):
        twin.iptables(lab, "-F", chain)
        twin.iptables(lab, "-X", chain)
    for name in lab.host.run("ipset", "list", "-n").split():
        if re.fullmatch(rf"sikkerguard(-[a-z]+)?-{twin.label}(-net)?", name):
            lab.host.run("ipset", "destroy", name)


# What someone does to one family while someone does the other to its twin, so that one look finds both.
DRIFTS: dict[str, tuple[Drift, Drift]] = {
    "the table is flushed, an innocent is added": (
        lambda lab, twin: twin.iptables(lab, "-F"),
        lambda lab, twin: lab.host.run("ipset", "add", twin.name(), twin.innocent),
    ),
    "the jump is deleted, the ranges are flushed": (
        remove_jump,
        lambda lab, twin: lab.host.run("ipset", "flush", f"{twin.name()}-net"),
    ),
    "our chain is flushed, the allow set is flushed": (
        lambda lab, twin: twin.iptables(lab, "-F", "SIKKERGUARD"),
        lambda lab, twin: lab.host.run("ipset", "flush", twin.name("allow")),
    ),
    "another rule accepts all before the jump, an address is deleted": (
        lambda lab, twin: twin.iptables(lab, "-I", "PREROUTING", "-j", "ACCEPT"),
        lambda lab, twin: lab.host.run("ipset", "del", twin.name(), twin.listed),
    ),
    "there is a second jump, our chain begins with another rule": (
        lambda lab, twin: twin.iptables(lab, "-I", "PREROUTING", "-j", "SIKKERGUARD"),
        lambda lab, twin: twin.iptables(lab, "-I", "SIKKERGUARD", "-j", "RETURN"),
    ),
    "the addresses are flushed, the rule that allows is deleted": (
        lambda lab, twin: lab.host.run("ipset", "flush", twin.name()),
        lambda lab, twin: twin.iptables(lab, "-D", "SIKKERGUARD", "3"),
    ),
    "every set of the host is flushed": (
        lambda lab, _: lab.host.run("ipset", "flush"),
        lambda lab, _: None,
    ),
    "an address is replaced by another": (replace_address, replace_address),
    "the jump takes TCP only, the rule that drops does": (
        narrow_jump,
        narrow_drop,
    ),
    "more is let through from the link": (widen_link, widen_link),
    "replies are counted as attacks, what the link needs is not let through": (
        lambda lab, twin: twin.iptables(lab, "-R", "SIKKERGUARD-COUNT", "3", "-g", "SIKKERGUARD-NEW"),
        lambda lab, twin: twin.iptables(lab, "-D", "SIKKERGUARD", "4"),
    ),
    "what counts replies is flushed, they are accepted": (
        lambda lab, twin: twin.iptables(lab, "-F", "SIKKERGUARD-REPLIES"),
        lambda lab, twin: twin.iptables(lab, "-A", "SIKKERGUARD-REPLIES", "-j", "ACCEPT"),
    ),
    "replies come back and are counted twice, only TCP is counted as replies": (
        lambda lab, twin: twin.iptables(lab, "-R", "SIKKERGUARD-COUNT", "3", "-j", "SIKKERGUARD-REPLIES"),
        lambda lab, twin: twin.iptables(lab, "-R", "SIKKERGUARD-COUNT", "3", "-p", "tcp", "-g", "SIKKERGUARD-REPLIES"),
    ),
    "all of ours is removed": (remove_everything, remove_everything),
}


def ours(lines: Iterable[str]) -> list[str]:
    """What is ours, in an order that does not depend on where the kernel put it."""
    return sorted(line for line in lines if "sikkerguard" in line or "SIKKERGUARD" in line)


def snapshot(lab: Laboratory) -> list[str]:
    """Rules and sets, but for what changes by itself: counters, and the seed of a set's hash."""
    text = re.sub(r" (packets|bytes|timeout|initval) [0-9a-fx]+", "", lab.everything())
    return [
        line
        for line in text.splitlines()
        if not re.match("add sikkerguard-(old)?(hits|sources|replies|repliers)-", line)
    ]


def make_foreign(lab: Laboratory) -> None:
    """Rules and sets of others, which are none of our business."""
    lab.host.run("ipset", "create", "foreign", "hash:ip")
    lab.host.run("ipset", "add", "foreign", V4.listed)
    for twin in TWINS:
        twin.iptables(lab, "-N", "FOREIGN")
        twin.iptables(lab, "-A", "PREROUTING", "-p", "tcp", "--dport", "9", "-j", "FOREIGN")
        twin.iptables(lab, "-A", "FOREIGN", "-m", "comment", "--comment", "not ours", "-j", "ACCEPT")


def assert_protecting(lab: Laboratory) -> None:
    """Packets of both families are dropped or pass as they should."""
    listed = [source for twin in TWINS for source in (twin.listed, twin.in_range)]
    with ThreadPoolExecutor() as pool:
        passing = dict(zip(listed, pool.map(lab.passes, listed), strict=True))
    assert not any(passing.values()), passing
    for twin in TWINS:
        assert lab.reaches(twin.innocent), twin.innocent


def disturb(lab: Laboratory) -> None:
    """Have the service look now: a default route comes and goes, which leads nowhere and so means nothing to it."""
    for change in ("add", "del"):
        lab.host.run("ip", "route", change, "blackhole", "default", "table", "99")


def begin(guard: Guard) -> None:
    """Protect, among the rules of others."""
    make_foreign(guard.lab)
    guard.lab.own_many([source for twin in TWINS for source in (twin.listed, twin.in_range, twin.innocent)])
    guard.serve(*(entry for twin in TWINS for entry in (twin.listed, twin.listed_range)))
    guard.start()
    guard.logged("Blocking 4 IPs$")


@pytest.mark.parametrize("drift", DRIFTS)
def test_what_someone_does_to_our_rules_is_made_good_at_the_next_look(guard: Guard, drift: str) -> None:
    lab = guard.lab
    begin(guard)
    before = snapshot(lab)
    for twin, change in zip(TWINS, DRIFTS[drift], strict=True):
        change(lab, twin)
    drifted = snapshot(lab)
    disturb(lab)
    line = guard.logged(REPAIRED, seconds=3)
    after = snapshot(lab)
    assert ours(after) == ours(before)
    assert [line for line in after if line not in ours(after)] == [
        line for line in drifted if line not in ours(drifted)
    ]
    for twin in TWINS:
        hook = [line for line in after if line.startswith(f"{twin.tool}-save: -A PREROUTING")]
        assert hook[0] == f"{twin.tool}-save: -A PREROUTING ! -i lo -j SIKKERGUARD"
    assert_protecting(lab)
    status = guard.status()
    assert status["repairs"] == 1
    assert line.endswith(f"({status['lastRepair']}); repaired.")


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("hits", ("hash:ip",)),
        ("sources", ("hash:ip",)),  # without counters
        ("oldhits", ("hash:ip,port", "counters", "timeout", "5")),
        ("oldsources", ("hash:net",)),
        ("replies", ("hash:ip",)),
        ("oldrepliers", ("hash:ip",)),  # without counters
    ],
)
def test_counts_of_another_kind_keep_nothing_from_being_repaired(
    guard: Guard, kind: str, made: tuple[str, ...]
) -> None:
    lab = guard.lab
    begin(guard)
    process = guard.process
    assert process is not None
    # All of it between two looks of the service.
    process.send_signal(signal.SIGSTOP)
    try:
        V4.iptables(lab, "-F")
        V4.iptables(lab, "-X")
        lab.host.run("ipset", "destroy", V4.name(kind))
        lab.host.run("ipset", "create", V4.name(kind), *made)
    finally:
        process.send_signal(signal.SIGCONT)
    guard.logged(REPAIRED)
    assert_protecting(lab)
    seen = guard.status()["droppedPackets"]
    assert not lab.passes(V4.listed)
    wait_for("a packet to be counted", lambda: guard.status()["droppedPackets"] > seen, 3)
    assert guard.status()["droppedUnnamed"] == 0


def test_what_one_process_wrote_another_has_nothing_to_repair_in(guard: Guard) -> None:
    begin(guard)
    guard.kill()
    # A process of its own, which has written no rule and so has only what it reads.
    look = """
from sikkerguard.core.firewall.rules import chain_rules
from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.ipset_legacy.chains import Chains
chains = Chains()
found = {family: chains.read(family) for family in Family}
print([rules == chain_rules(family) and jumps for family, (rules, jumps) in found.items()])
"""
    assert guard.lab.host.run(sys.executable, "-c", look).strip() == "[(0,), (0,)]"


def test_looks_come_often_enough_to_repair_within_ten_seconds(guard: Guard) -> None:
    lab = guard.lab
    begin(guard)
    assert not lab.passes(V4.listed)
    remove_jump(lab, V4)
    lab.host.run("ipset", "flush", V6.name())
    changed = time.monotonic()
    assert lab.reaches(V4.listed)
    assert lab.reaches(V6.listed)
    guard.logged(REPAIRED)
    assert time.monotonic() - changed < 10
    assert_protecting(lab)
    # What was dropped before someone removed the jump is counted, and what was dropped since.
    guard.logged(rf"BLOCKED {re.escape(V4.listed)} ")


def test_a_removal_is_made_good_though_the_host_changed_in_the_same_moment(guard: Guard) -> None:
    # As when a network is set up anew together with its firewall.
    lab = guard.lab
    begin(guard)
    for twin in TWINS:
        remove_everything(lab, twin)
    lab.host.run("ip", "addr", "add", "198.51.100.11/24", "dev", "wan")
    guard.logged(REPAIRED, seconds=10)
    assert_protecting(lab)
    assert "add sikkerguard-allow-v4 198.51.100.11" in lab.sets()


def test_a_repair_waits_for_the_program_that_holds_the_lock_of_iptables(guard: Guard, tmp_path: Path) -> None:
    lab = guard.lab
    # A lock of our own: the machine's is for all of its namespaces.
    path = tmp_path / "xtables.lock"
    guard.environment["XTABLES_LOCKFILE"] = str(path)
    guard.expected_errors.append(f"ERROR Another program has held {path} since")
    begin(guard)
    with path.open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_jump(lab, V4)  # which takes the machine's lock
        disturb(lab)
        line = guard.logged("ERROR Another program has held")
        assert "rules are left as they are; it is put right as soon as that is possible" in line
        status = guard.status()
        assert status["status"] == "degraded"
        assert f"nother program has held {path} since " in status["reasons"][0]
        assert guard.cli("health").returncode == 1
        assert lab.reaches(V4.listed)
    # At once, and not at the next look.
    guard.logged(REPAIRED, seconds=1.5)
    assert_protecting(lab)
    assert guard.status()["reasons"] == []


def test_no_rule_of_others_is_lost_while_ours_are_repaired(guard: Guard, tmp_path: Path) -> None:
    lab = guard.lab
    # They take the lock all the time.
    guard.expected_errors.append("Another program has held")
    begin(guard)
    stop = tmp_path / "stop"

    def write(twin: Twin) -> int:
        # Of every two rules the first is taken back. One tool after the other, as fast as they go.
        rule = "-t raw -{} PREROUTING -p udp --dport $number -j ACCEPT"
        script = f"""
            number=10000
            while [ ! -e {stop} ]; do
                {twin.tool} -w {rule.format("A")}
                {twin.tool} -w {rule.format("D")}
                number=$((number + 1))
                {twin.tool} -w {rule.format("A")}
                number=$((number + 1))
            done
            echo $number"""
        return int(lab.host.run("sh", "-ec", script))

    with ThreadPoolExecutor() as pool:
        writers = {twin: pool.submit(write, twin) for twin in TWINS}
        try:
            for repairs in range(1, 13):
                for twin in TWINS:
                    remove_jump(lab, twin)
                disturb(lab)
                guard.logged(REPAIRED, times=repairs)
        finally:
            stop.touch()
    for twin in TWINS:
        there = re.findall(r"--dport (1\d{4}) ", lab.host.run(f"{twin.tool}-save", "-t", "raw"))
        assert len(there) > 50
        assert there == [str(number) for number in range(10_001, writers[twin].result(), 2)]
    assert_protecting(lab)
