"""From start to stop and through every kind of death: what is left in the kernel, and what got through meanwhile."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API, GATEWAY, GATEWAY_V6, HOST_V6, RESOLVER, Laboratory
from scripts.laboratory.tools import wait_for
from tests.kernel.conftest import UNPROTECTED
from tests.kernel.traffic import Traffic
from tests.standin.faults import Canned, Delay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Guard

MORTAL = (sys.executable, "-m", "tests.kernel.mortal")
LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
INNOCENT, INNOCENT_V6 = "203.0.113.99", "2001:db8:99::99"
WAN_AGAIN = f"""\
link set wan up
addr replace {HOST_V6}/64 dev wan nodad
route replace default via {GATEWAY}
route replace default via {GATEWAY_V6}
"""
COUNTED = "203.0.113.50"

# What an administrator may have there already, much of it easily taken for ours.
FOREIGN_SETS = f"""\
create foreign hash:ip family inet counters comment
add foreign 203.0.113.200 comment "of somebody else"
create foreign-v6 hash:net family inet6 timeout 0
add foreign-v6 2001:db8:200::/48
create sikkerguardian hash:ip,port family inet
add sikkerguardian {LISTED},tcp:22
create SIKKERGUARD bitmap:port range 0-1023
add SIKKERGUARD 25
create list-of-sets list:set size 8
add list-of-sets foreign
"""
FOREIGN_RAW = f"""\
*raw
:PREROUTING ACCEPT [3:300]
:OUTPUT ACCEPT [4:400]
:FOREIGN - [0:0]
:SIKKERGUARDS - [0:0]
[17:4711] -A PREROUTING -i lo -m comment --comment "SIKKERGUARD is not us" -j ACCEPT
[0:0] -A PREROUTING -s {COUNTED}/32 -p icmp
[0:0] -A PREROUTING -p tcp -m multiport --dports 9998,9999 -j FOREIGN
[0:0] -A PREROUTING -m set --match-set foreign src -j SIKKERGUARDS
[0:0] -A PREROUTING -m addrtype --dst-type BROADCAST -j RETURN
[0:0] -A PREROUTING -p tcp -m hashlimit --hashlimit-upto 1/sec --hashlimit-mode srcip --hashlimit-name other -j RETURN
[0:0] -A PREROUTING -m mark --mark 0x1 -j NOTRACK
[0:0] -A FOREIGN -m u32 --u32 "0x0&0xf=0x6" -j DROP
[0:0] -A FOREIGN -m mark --mark 0x2 -j LOG --log-prefix "SIKKERGUARD "
[0:0] -A FOREIGN -m statistic --mode nth --every 7 --packet 0 -j SET --add-set foreign src
[2:200] -A SIKKERGUARDS -m limit --limit 5/min -j NFLOG --nflog-group 5
[0:0] -A OUTPUT -p udp -m owner --uid-owner 12345 -j DROP
COMMIT
"""
FOREIGN_RAW_V6 = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FOREIGN - [0:0]
[5:500] -A PREROUTING -i lo -p tcp -j FOREIGN
[0:0] -A PREROUTING -m set --match-set foreign-v6 src -j DROP
[0:0] -A FOREIGN -m hl --hl-eq 77 -j NFLOG
COMMIT
"""
FOREIGN_FILTER = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FOREIGN - [0:0]
[6:600] -A INPUT -p tcp --dport 9997 -j FOREIGN
[0:0] -A FOREIGN -j DROP
COMMIT
"""


def make_foreign_rules(lab: Laboratory) -> str:
    """Rules and sets of others, and what the tools say of them."""
    lab.host.run("ipset", "restore", text=FOREIGN_SETS)
    for tool, table in (
        ("iptables-legacy-restore", FOREIGN_RAW),
        ("ip6tables-legacy-restore", FOREIGN_RAW_V6),
        ("iptables-legacy-restore", FOREIGN_FILTER),
        ("iptables-nft-restore", FOREIGN_FILTER),
        ("ip6tables-nft-restore", FOREIGN_FILTER),
    ):
        lab.host.run(tool, "-c", text=table)
    lab.host.run("nft", "-f", "-", text="table inet sikkerguard { chain c { type filter hook input priority 5\n}\n}\n")
    found = snapshot(lab)
    assert found.count("FOREIGN") > 10
    return found


def snapshot(lab: Laboratory) -> str:
    """All rules and sets, but for counters."""
    return re.sub(r" packets \d+ bytes \d+", "", lab.everything() + lab.host.run("nft", "list", "ruleset"))


def rule_counters(lab: Laboratory, tool: str = "iptables-legacy-save") -> dict[str, int]:
    """The packet counters of table raw's rules."""
    lines = lab.host.run(tool, "-c", "-t", "raw").splitlines()
    return {match[2]: int(match[1]) for line in lines if (match := re.fullmatch(r"\[(\d+):\d+\] (-A .*?) *", line))}


def counter(lab: Laboratory, words: str, tool: str = "iptables-legacy-save") -> int:
    """The packet counter of the one rule with these words."""
    (found,) = [packets for rule, packets in rule_counters(lab, tool).items() if words in rule]
    return found


def protect(guard: Guard, *addresses: str) -> None:
    """Start, and have a list in force and on disk."""
    guard.serve(*addresses)
    guard.start()
    guard.logged(f"Blocking {len(addresses)} IPs$")
    wait_for("the cache", (guard.state / "list.bin").exists)


def pull(guard: Guard) -> None:
    """Have the service pull now, and wait until it has committed the list."""
    assert guard.process is not None
    before = guard.log().count("Blocking ")
    guard.process.send_signal(signal.SIGHUP)
    guard.logged("Blocking ", times=before + 1)


def test_rules_and_sets_are_after_the_stop_what_they_were_before_the_start(guard: Guard) -> None:
    lab = guard.lab
    before = make_foreign_rules(lab)
    guard.serve(LISTED, "192.0.2.0/25", LISTED_V6, "2001:db8:aa::/48")
    guard.start()
    guard.logged("Blocking 4 IPs")
    for _ in range(20):
        assert lab.reaches(COUNTED)
    # A repair rewrites the table around what is not ours.
    lab.host.run("iptables-legacy", "-t", "raw", "-D", "PREROUTING", "1")
    lab.host.run("ip6tables-legacy", "-t", "raw", "-F", "SIKKERGUARD")
    lab.host.run("ip", "route", "add", "blackhole", "default", "table", "99")  # has the service look at once
    guard.logged("WARNING Another program changed our rules")
    assert not lab.passes(LISTED)
    assert not lab.passes(LISTED_V6)
    for _ in range(20):
        assert lab.reaches(COUNTED)
    guard.stop()
    assert snapshot(lab) == before
    assert counter(lab, f"-s {COUNTED}") == 40
    assert counter(lab, "SIKKERGUARD is not us") == 17
    assert counter(lab, "--limit 5/min") == 2
    assert counter(lab, "-j FOREIGN", "ip6tables-legacy-save") == 5


def test_no_table_is_set_up_but_raw(guard: Guard) -> None:
    # Each further table costs every packet; nat even has every connection tracked.
    protect(guard, LISTED, LISTED_V6)
    assert guard.cli("check", LISTED).returncode == 3
    guard.stop()
    for table in ("ip_tables_names", "ip6_tables_names"):
        assert guard.lab.host.run("cat", f"/proc/net/{table}").split() == ["raw"]


def while_blocking(guard: Guard, times: int) -> None:
    """A list is in force."""
    guard.serve(LISTED)
    guard.start()
    guard.logged("Blocking 1 IPs$", times=times)


def while_pulling(guard: Guard, times: int) -> None:
    """The API has been asked and does not answer."""
    guard.standin.fault("blacklist", Delay(60))
    guard.start()
    assert guard.standin.record.wait_for(lambda record: record.requests_total == times, 10)


def while_on_trial(guard: Guard, times: int) -> None:
    """The list has cut off the gateway for now."""
    guard.lab.owned.add(GATEWAY)
    guard.serve(GATEWAY, RESOLVER, API)
    guard.start(*UNPROTECTED)
    wait_for("the trial", lambda: "timeout" in guard.lab.host.run("ipset", "list", "sikkerguard-trial-v6", check=False))
    wait_for("that the gateway is cut off", lambda: not guard.lab.passes(GATEWAY))


def while_it_waits_for_its_first_list(guard: Guard, times: int) -> None:
    """The first pull has failed."""
    guard.expected_errors.append("ERROR SikkerAPI answered 500")
    guard.standin.fault("blacklist", Canned(500))
    guard.start()
    guard.logged("ERROR SikkerAPI answered 500", times=times)


@pytest.mark.parametrize(
    "reach",
    [while_blocking, while_pulling, while_on_trial, while_it_waits_for_its_first_list],
    ids=lambda reach: reach.__name__,
)
def test_a_signal_to_stop_is_obeyed_within_five_seconds_and_leaves_nothing(
    guard: Guard, reach: Callable[[Guard, int], None]
) -> None:
    lab = guard.lab
    # Looking at table raw sets it up, empty, and from then on the tools list it: so let there be something in it.
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        lab.host.run(tool, "-t", "raw", "-A", "PREROUTING", "-i", "foreign", "-j", "ACCEPT")
    before = snapshot(lab)
    for times, number in enumerate((signal.SIGTERM, signal.SIGINT), start=1):
        reach(guard, times)
        assert guard.process is not None
        guard.process.send_signal(number)
        assert guard.process.wait(5) == 0
        guard.logged("Stopped: nothing of ours is left in the kernel", times=times)
        assert snapshot(lab) == before
        assert lab.reaches(GATEWAY)


def test_a_million_entries_are_gone_within_five_seconds(guard: Guard) -> None:
    million = b"".join(b"11.%d.%d.%d\n" % (n >> 16, n >> 8 & 255, n & 255) for n in range(1_000_000))
    guard.answer(million)
    guard.start()
    # The first signal comes in the middle of loading, the second when all is in force.
    wait_for("the loading", lambda: "sikkerguard-load" in guard.lab.host.run("ipset", "list", "-n"), 20)
    guard.stop(5)
    assert guard.lab.sets() == ""
    guard.start()
    guard.logged("Blocking 1000000 IPs$", seconds=20)
    assert not guard.lab.passes("11.15.66.63")
    assert guard.process is not None
    guard.process.send_signal(signal.SIGINT)
    assert guard.process.wait(5) == 0
    assert guard.lab.sets() == ""
    assert guard.lab.reaches("11.15.66.63")


def test_no_packet_gets_through_between_a_death_and_the_next_start(guard: Guard) -> None:
    protect(guard, LISTED, LISTED_V6, "192.0.2.0/25", "2001:db8:aa::/48")
    cache = guard.state / "list.bin"
    guard.expected_errors.append("ERROR The cached list .* is damaged")
    listed = (LISTED, LISTED_V6, "192.0.2.77", "2001:db8:aa::77")
    with Traffic(guard.lab, innocent=(INNOCENT, INNOCENT_V6), listed=listed) as traffic:
        guard.kill()
        guard.start()
        guard.logged("Blocking 4 IPs .from the cache, verified [0-9]s ago.$")
        guard.logged("Blocking 4 IPs$", times=2)
        traffic.check()

        guard.kill()
        cache.unlink()
        # The list before the last would be taken otherwise.
        cache.with_name("list.bin.1").unlink()
        guard.start()
        guard.logged("Blocking 4 IPs .found in the kernel, left by an earlier run.$")
        guard.logged("Blocking 4 IPs$", times=3)
        wait_for("the cache", cache.exists)
        traffic.check()

        guard.kill()
        content = bytearray(cache.read_bytes())
        content[len(content) // 2] ^= 1
        cache.write_bytes(content)
        guard.start()
        guard.logged(f"ERROR The cached list {cache} is damaged .* not used, and a new one is pulled")
        guard.logged("Blocking 4 IPs .found in the kernel, left by an earlier run.$", times=2)
        guard.logged("Blocking 4 IPs$", times=4)
        wait_for("the cache", lambda: cache.read_bytes() != content)
        assert (guard.state / "list.bin.damaged").read_bytes() == content
        traffic.check()


DEATHS = (
    "add sikkerguard-load-new-v4-net",
    "swap sikkerguard-load-new-v4-net",
    "add sikkerguard-trial-v6",
    "swap sikkerguard-v4",
    "swap sikkerguard-v4-net",
    "swap sikkerguard-v6-net",
    "flush sikkerguard-trial-v4",
    "flush sikkerguard-trial-v6",
)


def test_no_packet_gets_through_when_an_update_dies_at_any_of_its_steps(guard: Guard) -> None:
    # Each source is on both lists, but among the single addresses of one and within a range of the other.
    # There are so many of both that loading takes its time.
    common = [f"11.{n >> 8}.{n & 255}.{low}" for n in range(12_000) for low in ("1", "64/30")]
    before = {*common, LISTED, LISTED_V6, "192.0.2.0/25", "2001:db8:aa::/48"}
    after = {*common, "203.0.113.0/28", "2001:db8:7::/48", "192.0.2.77", "2001:db8:aa::77"}
    listed = (LISTED, LISTED_V6, "192.0.2.77", "2001:db8:aa::77")
    protect(guard, *before)
    guard.kill()
    guard.serve(*after)
    for death in DEATHS:
        # One after the other, each start finds what the death before it left.
        with Traffic(guard.lab, innocent=[INNOCENT, INNOCENT_V6], listed=listed) as traffic:
            process = guard.start(*MORTAL, DIE_BEFORE=death)
            # A start that finds an unfinished update would wait with the next one, unless it is asked.
            guard.logged(r"Blocking 24004 IPs \(", times=1 + DEATHS.index(death))
            process.send_signal(signal.SIGHUP)
            assert process.wait(10) == -signal.SIGKILL, death
            traffic.check()
    with Traffic(guard.lab, innocent=[INNOCENT, INNOCENT_V6], listed=listed) as traffic:
        process = guard.start()
        guard.logged(r"Blocking 24004 IPs \(", times=1 + len(DEATHS))
        process.send_signal(signal.SIGHUP)
        guard.logged("Blocking 24004 IPs$", times=2)
        traffic.check()
    assert guard.blocked() == after


def test_a_start_without_network_protects_from_the_cache_at_once(guard: Guard) -> None:
    lab = guard.lab
    protect(guard, LISTED, LISTED_V6)
    guard.stop()
    assert lab.reaches(LISTED)
    # As after a boot whose network is not up yet, and whose API is then not there.
    guard.standin.stop()
    lab.host.run("ip", "link", "set", "wan", "down")
    guard.expected_errors.append("ERROR SikkerAPI can't be reached")
    guard.start()
    guard.logged(r"Blocking 2 IPs \(from the cache, verified [0-9]+s ago\)")
    assert guard.status()["lastPull"] is None
    lab.host.run("ip", "-batch", "-", text=WAN_AGAIN)
    wait_for("the link", lambda: lab.passes(INNOCENT) and lab.passes(INNOCENT_V6))
    # The pull waited for a way out, and is tried as soon as there is one.
    guard.logged("ERROR SikkerAPI can't be reached.*; the list verified [0-9]+s ago .2 entries. stays in force")
    assert not lab.passes(LISTED)
    assert not lab.passes(LISTED_V6)


def test_no_packet_gets_through_while_lists_are_replaced(guard: Guard) -> None:
    # The listed sources move from the single addresses to the ranges and back, which lie in sets of their own.
    padding = [f"11.{n >> 8}.{n & 255}.1" for n in range(20_000)]
    alone = [*padding, LISTED, LISTED_V6]
    within = [*padding[:15_000], "203.0.113.0/28", "2001:db8:7::/48"]
    protect(guard, *alone)
    with Traffic(guard.lab, innocent=(INNOCENT, INNOCENT_V6), listed=(LISTED, LISTED_V6)) as traffic:
        for _ in range(5):
            for addresses in (within, alone):
                guard.serve(*addresses)
                pull(guard)
        traffic.check()


def clear_rules(lab: Laboratory) -> None:
    """Take our rules away, so that no set is in use."""
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        lab.host.run(tool, "-t", "raw", "-F")
        lab.host.run(tool, "-t", "raw", "-X")


def lose_set(lab: Laboratory, name: str) -> None:
    """Have one of our sets gone."""
    clear_rules(lab)
    lab.host.run("ipset", "destroy", name)


def replace_set(lab: Laboratory, name: str, *kind: str) -> None:
    """Have a set of another kind under our name, as another version may have left it."""
    lose_set(lab, name)
    lab.host.run("ipset", "create", name, *kind)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda lab: lose_set(lab, "sikkerguard-allow-v4"), id="the allow set is gone"),
        pytest.param(lambda lab: lose_set(lab, "sikkerguard-v4"), id="the addresses are gone"),
        pytest.param(lambda lab: lose_set(lab, "sikkerguard-v4-net"), id="the ranges are gone"),
        pytest.param(
            lambda lab: replace_set(lab, "sikkerguard-v4", "hash:net"), id="the addresses are of another kind"
        ),
        pytest.param(
            lambda lab: replace_set(lab, "sikkerguard-sources-v4", "hash:net"), id="the counts are of another kind"
        ),
        pytest.param(
            lambda lab: replace_set(lab, "sikkerguard-oldhits-v4", "hash:ip"), id="the read counts are of another kind"
        ),
        pytest.param(
            lambda lab: replace_set(lab, "sikkerguard-oldsources-v4", "hash:ip", "timeout", "5", "counters"),
            id="the read counts are forgotten",
        ),
        pytest.param(lambda lab: replace_set(lab, "sikkerguard-hits-v4", "hash:ip,port"), id="nothing is counted"),
        pytest.param(lambda lab: lose_set(lab, "sikkerguard-repliers-v4"), id="replies are not counted"),
    ],
)
def test_a_start_makes_good_what_a_dead_service_left_and_others_spoilt(
    guard: Guard, spoil: Callable[[Laboratory], None]
) -> None:
    lab = guard.lab
    protect(guard, LISTED, "192.0.2.0/25", LISTED_V6)
    guard.kill()
    spoil(lab)
    process = guard.start()
    wait_for("that it blocks or gives up", lambda: "from the cache" in guard.log() or process.poll() is not None)
    assert process.poll() is None, guard.log()
    assert not lab.passes("192.0.2.9")
    assert guard.blocked() == {LISTED, "192.0.2.0/25", LISTED_V6}
    guard.logged("Blocking 3 IPs$", times=2)
    guard.stop()
    assert lab.sets() == ""


def test_cleanup_removes_what_a_killed_service_left(guard: Guard) -> None:
    lab = guard.lab
    before = make_foreign_rules(lab)
    protect(guard, LISTED, "192.0.2.0/25", LISTED_V6)
    guard.kill()
    assert not lab.passes(LISTED)
    done = guard.cli("cleanup")
    assert (done.returncode, done.stdout) == (0, "Nothing of SikkerGuard is left in the kernel.\n"), done.stderr
    assert snapshot(lab) == before
    assert lab.reaches(LISTED)
    # Where nothing is left, there is nothing to complain of.
    assert guard.cli("cleanup").returncode == 0
    assert snapshot(lab) == before
