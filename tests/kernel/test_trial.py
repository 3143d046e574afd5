"""The trial: a list that would cut this host off never stays, whatever becomes of the service meanwhile.

The service runs without the allowlist here, which otherwise keeps any list from doing harm. Members of sets are read
with `ipset list`, and what is cut off is shown by packets.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API, GATEWAY, GATEWAY_V6, HOST, HOST_V6, RESOLVER, Laboratory, laboratory, ping
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from sikkerguard.core.host.surroundings import Gateway
from sikkerguard.core.net.family import Family
from sikkerguard.core.selftest import Outcome
from sikkerguard.core.sikkerapi.endpoint import Endpoint
from sikkerguard.edges.host.probes import Probes
from tests.kernel.conftest import UNPROTECTED, Guard
from tests.standin.server import Standin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# As the product promises it, not read from the product.
TRIAL_SECONDS = 10.0
LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
CANDIDATE = "203.0.113.8"
CUTTING = (GATEWAY, GATEWAY_V6, RESOLVER, API)


def start_unprotected(guard: Guard, *addresses: str) -> None:
    """Have the service commit a list that harms nobody, with an empty allowlist."""
    # The internet's own addresses need not be given to it again.
    guard.lab.owned |= set(CUTTING)
    guard.serve(*addresses)
    guard.start(*UNPROTECTED, SIKKER_MAX_GROWTH="1000")
    guard.logged(f"Blocking {len(addresses)} IPs")


def pull(guard: Guard, *addresses: str) -> None:
    """Have the service pull another list, and come back at once."""
    assert guard.process is not None
    guard.serve(*addresses)
    guard.process.send_signal(signal.SIGHUP)


def members(lab: Laboratory, name: str) -> list[str]:
    """What a set holds."""
    return lab.host.run("ipset", "list", name).partition("Members:\n")[2].splitlines()


def try_list(guard: Guard, *addresses: str) -> None:
    """Have the service pull another list, and come back while it is on trial."""
    pull(guard, *addresses)
    wait_for("the trial", lambda: members(guard.lab, "sikkerguard-trial-v6"))


def reaches(lab: Laboratory, target: str) -> bool:
    """Whether a ping of the host is answered."""
    source = HOST_V6 if ":" in target else HOST
    return lab.host.inside(lambda: ping(source, target))


def believe_pings_alone(lab: Laboratory) -> None:
    """Have the neighbour table say nothing of the gateways: an entry that is permanent does not."""
    link = json.loads(lab.internet.run("ip", "-j", "link", "show", "dev", "lan"))[0]["address"]
    for gateway in (GATEWAY, GATEWAY_V6):
        lab.host.run("ip", "neigh", "replace", gateway, "lladdr", link, "dev", "wan", "nud", "permanent")


def assert_nothing_on_trial(lab: Laboratory) -> None:
    """Neither a trial nor a candidate is left."""
    for family in ("v4", "v6"):
        for name in (f"trial-{family}", f"new-{family}", f"new-{family}-net"):
            assert members(lab, f"sikkerguard-{name}") == [], name


def wait_until_connected(lab: Laboratory, since: float) -> None:
    """The gateway's packets pass again within the trial's timeout, in both directions."""
    wait_for("the gateway", lambda: lab.passes(GATEWAY), TRIAL_SECONDS)
    # One ping that is not answered takes half a second more.
    assert time.monotonic() - since < TRIAL_SECONDS + 1
    assert reaches(lab, GATEWAY)
    assert lab.reaches(GATEWAY_V6)
    assert reaches(lab, GATEWAY_V6)


@pytest.fixture
def second(guard: Guard, tmp_path: Path) -> Iterator[Guard]:
    """Another host, in an internet of its own."""
    directory = tmp_path / "second"
    directory.mkdir()
    with laboratory() as lab, Resolver(lab.internet):
        standin = Standin(API, 80)
        lab.internet.inside(standin.start)
        made = Guard(lab, standin, directory, {**guard.environment, "SIKKER_STATE_DIR": str(directory / "state")})
        yield made
        if made.process is not None:
            made.kill()
        standin.stop()


def test_what_a_trial_cut_off_comes_back_by_itself_when_the_service_is_killed_or_stopped(
    guard: Guard, second: Guard
) -> None:
    # Both at once, since either takes as long as a trial without a service.
    with ThreadPoolExecutor() as pool:
        for outcome in (pool.submit(die_in_the_trial, guard), pool.submit(be_stopped_in_the_trial, second)):
            outcome.result()


def die_in_the_trial(guard: Guard) -> None:
    """The service is killed, and started again when all is well."""
    lab = guard.lab
    start_unprotected(guard, LISTED, LISTED_V6)
    assert reaches(lab, GATEWAY)
    try_list(guard, *CUTTING, CANDIDATE, LISTED, LISTED_V6)
    assert guard.status()["onTrial"]
    for cut_off in (GATEWAY, GATEWAY_V6, CANDIDATE):
        assert not lab.passes(cut_off), cut_off
    guard.kill()
    died = time.monotonic()
    assert not reaches(lab, GATEWAY)
    wait_until_connected(lab, died)
    assert members(lab, "sikkerguard-trial-v4") == members(lab, "sikkerguard-trial-v6") == []
    for listed in (LISTED, LISTED_V6):
        assert not lab.passes(listed), listed
    assert lab.reaches(CANDIDATE)

    guard.serve(LISTED, LISTED_V6)
    guard.start(*UNPROTECTED)
    guard.logged(r"Blocking 2 IPs \(from the cache")
    assert_nothing_on_trial(lab)
    assert guard.blocked() == {LISTED, LISTED_V6}


def be_stopped_in_the_trial(guard: Guard) -> None:
    """The service is stopped and goes on when all is well; its log has one error."""
    lab = guard.lab
    start_unprotected(guard, LISTED, LISTED_V6)
    try_list(guard, *CUTTING, CANDIDATE, LISTED, LISTED_V6)
    assert guard.process is not None
    assert not lab.passes(GATEWAY)
    guard.process.send_signal(signal.SIGSTOP)
    wait_until_connected(lab, time.monotonic())
    assert not lab.passes(LISTED)
    assert lab.reaches(CANDIDATE)

    guard.process.send_signal(signal.SIGCONT)
    line = guard.logged(" ERROR ")
    assert "The trial lapsed: it was not renewed for 10 s" in line
    assert "(2 entries) stays in force; next try in" in line
    assert_nothing_on_trial(lab)
    assert guard.blocked() == {LISTED, LISTED_V6}
    pull(guard, CANDIDATE, LISTED)
    guard.logged("Blocking 2 IPs", times=2)
    assert guard.blocked() == {CANDIDATE, LISTED}
    assert guard.log().count(" ERROR ") == 1


def test_a_list_that_cuts_off_gateways_resolver_or_api_alone_is_rolled_back(guard: Guard) -> None:
    lab = guard.lab
    believe_pings_alone(lab)
    start_unprotected(guard, LISTED, "192.0.2.0/25")
    gateway_v4, gateway_v6 = (f"gateway {address} by ping did not answer 3 pings" for address in (GATEWAY, GATEWAY_V6))
    cases = (
        ((GATEWAY, GATEWAY_V6), (gateway_v4, gateway_v6)),
        ((RESOLVER,), (f"DNS by {RESOLVER} did not resolve in 3 tries",)),
        ((API,), (f"API does not take connections at {API} port 80",)),
    )
    for number, (cutting, tests) in enumerate(cases, start=1):
        guard.expected_errors.append(f"ERROR The self-test failed: {tests[0]}")
        pull(guard, *cutting, CANDIDATE)
        line = guard.logged(" ERROR ", times=number)
        for _, each in cases:
            assert [test in line for test in each] == [each == tests for _ in each], line
        assert "(2 entries) stays in force; next try in" in line
        assert_nothing_on_trial(lab)
        assert guard.blocked() == {LISTED, "192.0.2.0/25"}
        for address in (*cutting, CANDIDATE):
            assert lab.reaches(address), address
        assert not lab.passes(LISTED)


def test_what_failed_before_the_trial_is_not_blamed_on_the_list(guard: Guard) -> None:
    lab = guard.lab
    believe_pings_alone(lab)
    start_unprotected(guard, LISTED)
    # Rejected and not swallowed, and each time, so that nothing has to be waited for.
    lab.internet.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    no_pings = ("INPUT", "-p", "icmp", "--icmp-type", "echo-request", "-j", "REJECT")
    lab.internet.run("iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "53", "-j", "REJECT")
    lab.internet.run("iptables-legacy", "-A", *no_pings)
    pull(guard, LISTED, CANDIDATE)
    guard.logged("Blocking 2 IPs")
    for test in (f"DNS by {RESOLVER} did not resolve", f"gateway {GATEWAY} by ping did not answer 3 pings"):
        assert " WARNING " in guard.logged(f"{test}.*already before the trial")
    assert guard.blocked() == {LISTED, CANDIDATE}
    assert not lab.passes(CANDIDATE)

    # What passed before the trial decides all the same.
    lab.internet.run("iptables-legacy", "-D", *no_pings)
    guard.expected_errors.append("ERROR The self-test failed: gateway")
    pull(guard, LISTED, GATEWAY)
    assert "DNS" not in guard.logged(" ERROR ")
    assert guard.blocked() == {LISTED, CANDIDATE}
    assert lab.reaches(GATEWAY)


@pytest.mark.parametrize("state", ["reachable", "stale"])
def test_a_gateway_that_answers_one_ping_in_five_seconds_does_not_fail_the_trial(guard: Guard, state: str) -> None:
    lab = guard.lab
    start_unprotected(guard, LISTED)
    echo = ("INPUT", "-p", "icmp", "--icmp-type", "echo-request")
    for words in (("-m", "limit", "--limit", "12/minute", "--limit-burst", "1", "-j", "ACCEPT"), ("-j", "DROP")):
        lab.internet.run("iptables-legacy", "-A", *echo, *words)
    # A stale entry is asked for five seconds after it was used, and only then decided.
    link = json.loads(lab.internet.run("ip", "-j", "link", "show", "dev", "lan"))[0]["address"]
    lab.host.run("ip", "neigh", "replace", GATEWAY, "lladdr", link, "dev", "wan", "nud", state)
    pull(guard, LISTED, CANDIDATE)
    guard.logged("Blocking 2 IPs")
    assert guard.blocked() == {LISTED, CANDIDATE}
    assert "ERROR" not in guard.log()
    # It was in the trial that the pings were lost.
    counters = lab.internet.run("iptables-legacy-save", "-c")
    assert re.search(r"^\[1:\d+\] .* -j ACCEPT$", counters, re.MULTILINE), counters
    assert re.search(r"^\[3:\d+\] .* -j DROP$", counters, re.MULTILINE), counters


def gateway_outcomes(lab: Laboratory) -> dict[str, Outcome]:
    """What both witnesses say of the gateway."""
    way = Endpoint("SikkerAPI", "http", "api.example.net", 80)
    probes = Probes(lambda: [Gateway(Family.V4, GATEWAY, 0)], lambda: (), way)
    results = lab.host.inside(lambda: asyncio.run(probes.run(())))
    return {result.name.rpartition(" by ")[2]: result.outcome for result in results if result.subject}


def test_a_gateway_that_is_gone_is_found_lost_by_both_witnesses_whatever_its_entry_was(lab: Laboratory) -> None:
    assert gateway_outcomes(lab) == {"ping": Outcome.PASSED, "neighbour table": Outcome.PASSED}
    lab.internet.run("ip", "addr", "del", f"{GATEWAY}/24", "dev", "lan")
    # What was heard a while ago is not believed: the kernel asks again.
    lab.host.run("ip", "neigh", "change", GATEWAY, "dev", "wan", "nud", "stale")
    began = time.monotonic()
    found = gateway_outcomes(lab)
    assert found["ping"] is Outcome.FAILED
    assert found["neighbour table"] is not Outcome.PASSED
    assert time.monotonic() - began < 11.5
    # Seconds later it is known for certain.
    wait_for("FAILED", lambda: "FAILED" in lab.host.run("ip", "neigh", "show", GATEWAY), 5)
    assert gateway_outcomes(lab) == {"ping": Outcome.FAILED, "neighbour table": Outcome.FAILED}


def test_an_entry_that_the_kernel_never_asks_for_says_nothing(lab: Laboratory) -> None:
    believe_pings_alone(lab)
    assert gateway_outcomes(lab) == {"ping": Outcome.PASSED, "neighbour table": Outcome.ABSENT}
    lab.internet.run("iptables-legacy", "-A", "INPUT", "-p", "icmp", "-j", "DROP")
    assert gateway_outcomes(lab) == {"ping": Outcome.FAILED, "neighbour table": Outcome.ABSENT}


def flush(name: str) -> Callable[[Laboratory], object]:
    """Empty a set."""
    return lambda lab: lab.host.run("ipset", "flush", name)


def replace_entry(lab: Laboratory) -> None:
    """Leave the number of entries as it is."""
    lab.host.run("ipset", "del", "sikkerguard-new-v4", CANDIDATE)
    lab.host.run("ipset", "add", "sikkerguard-new-v4", "203.0.113.9")


def halve_trial(lab: Laboratory) -> None:
    """Let the candidate go unnoticed by the packets of all that this test uses."""
    lab.host.run("ipset", "del", "sikkerguard-trial-v4", "128.0.0.0/1")


def remove_jump(lab: Laboratory) -> None:
    """Have no packet meet our rules."""
    lab.host.run("iptables-legacy", "-t", "raw", "-F", "PREROUTING")


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(flush("sikkerguard-new-v4"), id="the candidate was flushed"),
        pytest.param(replace_entry, id="an entry of the candidate was replaced"),
        pytest.param(flush("sikkerguard-trial-v4"), id="the trial set was flushed"),
        pytest.param(halve_trial, id="the trial covered half of all addresses"),
        pytest.param(remove_jump, id="the jump was taken away"),
    ],
)
def test_a_candidate_that_was_spared_its_trial_by_another_program_is_not_committed(
    guard: Guard, tamper: Callable[[Laboratory], object]
) -> None:
    lab = guard.lab
    start_unprotected(guard, LISTED)
    # Of three questions the second is lost, so that the self-test takes a second in the trial, and passes.
    lost = ("-m", "statistic", "--mode", "nth", "--every", "3", "--packet", "1", "-j", "DROP")
    lab.internet.run("iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "53", *lost)
    guard.expected_errors.append(" ERROR .*nother program")
    try_list(guard, LISTED, CANDIDATE)
    tamper(lab)
    line = guard.logged(" ERROR .*next try in|Blocking 2 IPs")
    assert "nother program" in line
    assert_nothing_on_trial(lab)
    assert guard.blocked() == {LISTED}
    assert lab.reaches(CANDIDATE)
    wait_for("the committed list in force", lambda: not lab.passes(LISTED))
