"""Rules of others that name our sets or jump to our chain: they are named, and what they do not hold is freed; and
another program that holds iptables' lock is waited for."""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import wait_for
from tests.kernel.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scripts.laboratory.network import Laboratory
    from tests.kernel.conftest import Guard

LISTED, LISTED_V6, IN_RANGE, RANGE = "203.0.113.7", "2001:db8:7::7", "192.0.2.77", "192.0.2.0/25"
INNOCENT, INNOCENT_V6 = "203.0.113.99", "2001:db8:99::99"
TOOLS = ("iptables-legacy", "ip6tables-legacy")


def protect(guard: Guard) -> None:
    """Begin, and have a list in force and on disk."""
    guard.serve(LISTED, LISTED_V6, RANGE)
    guard.start()
    guard.logged("Blocking 3 IPs$")
    wait_for("the cache", (guard.state / "list.bin").exists)


def ours(lab: Laboratory) -> list[str]:
    """The names of our sets that are there."""
    return sorted(name for name in lab.host.run("ipset", "list", "-n").split() if name.startswith("sikkerguard"))


def test_a_rule_that_names_a_set_of_ours_is_told_and_the_rest_is_freed(guard: Guard) -> None:
    lab = guard.lab
    protect(guard)
    lab.host.run(
        *("iptables-legacy", "-t", "mangle", "-A", "FORWARD", "-s", "198.51.100.0/24", "-p", "tcp"),
        *("-m", "set", "!", "--match-set", "sikkerguard-v4", "src", "-j", "ACCEPT"),
    )
    lab.host.run("ip6tables-legacy", "-t", "raw", "-N", "FOREIGN")
    lab.host.run("ip6tables-legacy", "-t", "raw", "-A", "FOREIGN", "-j", "SET", "--add-set", "sikkerguard-v6", "src")
    lab.host.run("ipset", "create", "group", "list:set")
    lab.host.run("ipset", "add", "group", "sikkerguard-v4-net")
    guard.stop(5)
    line = guard.logged("WARNING Stopped: not everything could be removed")
    assert (
        "the set sikkerguard-v4 stays, empty: another program's 'iptables -t mangle -A FORWARD -s "
        "198.51.100.0/255.255.255.0 -p tcp -m set ! --match-set sikkerguard-v4 src -j ACCEPT' (rule 1) refers to it"
    ) in line
    assert "'ip6tables -t raw -A FOREIGN -j SET --add-set sikkerguard-v6 src' (rule 1) refers to it" in line
    assert "the set sikkerguard-v4-net stays, empty: another program's the set group refers to it" in line
    assert "Nobody is blocked any more" in line
    assert "goes on blocking" not in line
    assert ours(lab) == ["sikkerguard-v4", "sikkerguard-v4-net", "sikkerguard-v6"]
    assert not re.search(r"^add sikkerguard", lab.sets(), re.MULTILINE)
    assert "-A SIKKERGUARD" not in lab.rules()
    for source in (LISTED, LISTED_V6, IN_RANGE):
        assert lab.reaches(source), source

    done = guard.cli("cleanup")
    assert (done.returncode, done.stdout) == (1, "")
    assert "-t mangle -A FORWARD" in done.stderr
    assert guard.cli("cleanup", "--after-stop").returncode == 0
    # What is left is taken over by the next start, in which the rule of the other means what it says.
    guard.start()
    guard.logged(r"Blocking 3 IPs \(from the cache")
    assert not lab.passes(LISTED)
    assert not lab.passes(IN_RANGE)
    guard.stop(5)
    lab.host.run("iptables-legacy", "-t", "mangle", "-F")
    lab.host.run("ip6tables-legacy", "-t", "raw", "-F", "FOREIGN")
    lab.host.run("ipset", "destroy", "group")
    assert guard.cli("cleanup").returncode == 0
    assert ours(lab) == []


def test_a_rule_of_iptables_nft_holds_a_set_and_where_to_look_is_told(guard: Guard) -> None:
    lab = guard.lab
    protect(guard)
    lab.host.run("iptables-nft", "-A", "FORWARD", "-m", "set", "--match-set", "sikkerguard-v4", "src", "-j", "DROP")
    guard.stop(5)
    line = guard.logged("WARNING Stopped: not everything could be removed")
    assert "sikkerguard-v4 stays, empty: a rule that can't be seen from here refers to it" in line
    assert "'nft list ruleset'" in line
    assert ours(lab) == ["sikkerguard-v4"]
    lab.host.run("iptables-nft", "-F", "FORWARD")
    wait_for("the removal", lambda: guard.cli("cleanup").returncode == 0)
    assert ours(lab) == []


def test_a_rule_that_jumps_to_our_chain_is_told_and_blocks_nobody_any_more(guard: Guard) -> None:
    lab = guard.lab
    protect(guard)
    for tool in TOOLS:
        lab.host.run(tool, "-t", "raw", "-N", "FOREIGN")
        lab.host.run(tool, "-t", "raw", "-A", "FOREIGN", "-i", "wan", "-p", "udp", "-j", "SIKKERGUARD")
        lab.host.run(tool, "-t", "raw", "-A", "PREROUTING", "-j", "FOREIGN")
    guard.stop(5)
    line = guard.logged("WARNING Stopped: not everything could be removed")
    for tool in ("iptables", "ip6tables"):
        assert f"'{tool} -t raw -A FOREIGN -i wan -p udp -j SIKKERGUARD' (rule 1)" in line
    assert "the chain SIKKERGUARD stays, empty: another program's" in line
    assert "goes on blocking" not in line
    assert ours(lab) == []
    assert lab.rules().count("-A SIKKERGUARD") == 0
    for source in (LISTED, LISTED_V6, IN_RANGE):
        assert lab.reaches(source), source
    assert guard.cli("cleanup").returncode == 1
    for tool in TOOLS:
        lab.host.run(tool, "-t", "raw", "-F", "FOREIGN")
    assert guard.cli("cleanup").returncode == 0
    assert "SIKKERGUARD" not in lab.rules()


@pytest.mark.parametrize("kind", [("hash:ip",), ("hash:ip", "counters", "timeout", "9"), ("hash:ip", "netmask", "24")])
def test_a_set_of_another_kind_that_a_foreign_rule_holds_leaves_nobody_unprotected(
    guard: Guard, kind: tuple[str, ...]
) -> None:
    lab = guard.lab
    protect(guard)
    lab.host.run("iptables-legacy", "-A", "FORWARD", "-m", "set", "--match-set", "sikkerguard-v4", "src", "-j", "DROP")
    lab.host.run("ipset", "create", "other", *kind)
    lab.host.run("ipset", "swap", "other", "sikkerguard-v4")
    lab.host.run("ipset", "destroy", "other")
    with Traffic(lab, innocent=(INNOCENT, INNOCENT_V6), listed=(IN_RANGE, LISTED_V6)) as packets:
        line = guard.logged("WARNING Another program changed our rules", seconds=10)
        assert " set" in line
        assert not lab.passes(LISTED)
        packets.check()
    assert re.search(r"^create sikkerguard-v4 hash:ip .*counters", lab.sets(), re.MULTILINE)
    assert "--match-set sikkerguard-v4 src" in lab.rules()


def test_a_set_that_can_not_be_exchanged_and_is_held_leaves_the_rules_as_they_are(guard: Guard) -> None:
    lab = guard.lab
    protect(guard)
    guard.expected_errors.append(r"ERROR The set sikkerguard-v4 is of another kind")
    guard.kill()
    # Somebody made a set of this name his own, in whatever way.
    lab.host.run("iptables-legacy", "-t", "raw", "-F")
    lab.host.run("ipset", "destroy", "sikkerguard-v4")
    lab.host.run("ipset", "create", "sikkerguard-v4", "hash:net")
    lab.host.run("iptables-legacy", "-A", "FORWARD", "-m", "set", "--match-set", "sikkerguard-v4", "src", "-j", "DROP")
    guard.start()
    line = guard.logged("ERROR The set sikkerguard-v4 is of another kind")
    assert "'iptables -t filter -A FORWARD -m set --match-set sikkerguard-v4 src -j DROP' (rule 1) refers to it" in line
    # The other family is protected all the same, and so is this one in the moment in which it can be.
    wait_for("protection from IPv6", lambda: not lab.passes(LISTED_V6))
    lab.host.run("iptables-legacy", "-F", "FORWARD")
    guard.logged(r"Blocking 3 IPs \(from the cache", seconds=5)
    assert not lab.passes(LISTED)
    assert not lab.passes(IN_RANGE)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program holds the lock. It is not the machine's, which is one for all namespaces."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_start_under_a_held_lock_waits_and_goes_on(guard: Guard, tmp_path: Path) -> None:
    lab = guard.lab
    path = tmp_path / "xtables.lock"
    guard.environment["XTABLES_LOCKFILE"] = str(path)
    guard.expected_errors.append(f"ERROR Another program has held {path} since")
    protect(guard)
    guard.stop(5)
    with held(path):
        guard.start()
        line = guard.logged("ERROR Another program has held", seconds=10)
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; rules are left as they are", line)
        assert guard.process is not None
        # It goes on waiting.
        with pytest.raises(AssertionError):
            guard.logged("Blocking 3 IPs", times=2, seconds=1.5)
        assert guard.process.poll() is None
    freed = time.monotonic()
    guard.logged(r"Blocking 3 IPs \(from the cache")
    assert time.monotonic() - freed < 2
    assert not lab.passes(LISTED)
    guard.stop(5)
    with held(path):
        guard.start()
        guard.logged("ERROR Another program has held", times=2, seconds=10)
        began = time.monotonic()
        assert guard.process is not None
        guard.process.terminate()
        guard.process.wait(5)
        assert time.monotonic() - began < 5
    assert guard.cli("cleanup").returncode == 0
    assert ours(lab) == []
