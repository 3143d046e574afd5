"""The backend alone, without a service around it: what its interface promises, seen with stock tools and packets."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.core.firewall.state import Inspection
from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED, AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import canonical
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Runs
from sikkerguard.errors import KernelError
from tests.kernel.conftest import PROJECT
from tests.kernel.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.laboratory.network import Laboratory

LISTED, LISTED_V6, IN_RANGE = "203.0.113.7", "2001:db8:7::7", "198.51.100.77"
INNOCENT, INNOCENT_V6, ALLOWED = "203.0.113.200", "2001:db8:aa::1", "203.0.113.9"
ALLOWLIST = Allowlist((*ALWAYS_ALLOWED, AllowEntry(*parse_prefix(ALLOWED), "resolver")))


def blocklist(*texts: str) -> Blocklist:
    """These addresses and ranges."""
    networks = {}
    for family in Family:
        prefixes = [prefix for found, prefix in map(parse_prefix, texts) if found is family]
        singles = Runs(family.size)
        whole = [each for each in prefixes if each.length == family.bits]
        singles.add([each.first.to_bytes(family.size, "big") for each in whole])
        networks[family] = canonical(family, singles, [each for each in prefixes if each.length < family.bits])
    return Blocklist(networks[Family.V4], networks[Family.V6])


FIRST = blocklist(LISTED, LISTED_V6, "198.51.100.64/26", ALLOWED)


class Driven:
    """The backend in the laboratory's host."""

    def __init__(self, lab: Laboratory) -> None:
        self.process = lab.host.start(
            (sys.executable, "-m", "tests.kernel.driven"),
            os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT,
        )

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> Any:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            pickle.dump((name, arguments), self.process.stdin)
            self.process.stdin.flush()
            result, error = pickle.load(self.process.stdout)
            if error is not None:
                raise error
            return result

        return call

    def inspect_text(self, address: str) -> Inspection:
        """What becomes of packets from this address."""
        family, prefix = parse_prefix(address)
        found = self.inspect(family, prefix.first)
        assert isinstance(found, Inspection)
        return found


@contextmanager
def driven(lab: Laboratory) -> Iterator[Driven]:
    backend = Driven(lab)
    with backend.process:
        try:
            yield backend
        finally:
            assert backend.process.stdin is not None
            backend.process.stdin.close()
    assert backend.process.returncode == 0


@pytest.fixture
def backend(lab: Laboratory) -> Iterator[Driven]:
    with driven(lab) as made:
        yield made


def commit(backend: Driven, content: Blocklist) -> None:
    backend.stage(content)
    backend.begin_trial()
    backend.renew_trial()
    backend.commit()


def test_a_list_blocks_from_its_trial_on_and_is_inspected_and_removed(lab: Laboratory, backend: Driven) -> None:
    # To look at a table makes it.
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        lab.host.run(tool, "-t", "raw", "-S")
    before = lab.everything()
    assert not backend.has_state()
    assert backend.inspect_text(LISTED) == Inspection(active=False, listed=False, allowed=False, packets=0)
    assert backend.adopt(Blocklist(), ALLOWLIST)
    assert backend.has_state()
    assert backend.inspect_text(LISTED) == Inspection(active=True, listed=False, allowed=False, packets=0)
    backend.stage(FIRST)
    assert lab.reaches(LISTED)
    backend.begin_trial()
    assert not any(map(lab.passes, (LISTED, LISTED_V6, IN_RANGE)))
    assert not backend.inspect_text(LISTED).listed
    backend.renew_trial()
    backend.commit()
    for number, address in enumerate((LISTED, LISTED_V6, IN_RANGE)):
        assert not any(lab.passes(address) for _ in range(number + 2))
        found = backend.inspect_text(address)
        assert found == Inspection(active=True, listed=True, allowed=False, packets=found.packets)
        # A source by IPv6 may look for its neighbour too, which is dropped, and counted, likewise.
        assert found.packets == number + 2 or (":" in address and found.packets > number + 2)
        assert found.blocked
    for address in (INNOCENT, INNOCENT_V6, ALLOWED):
        assert lab.reaches(address)
        assert not backend.inspect_text(address).blocked
    assert backend.inspect_text(ALLOWED).allowed
    assert backend.read_committed() == FIRST
    assert backend.repair(ALLOWLIST) == ()
    backend.unhook()
    assert lab.reaches(LISTED)
    assert not backend.inspect_text(LISTED).active
    backend.remove()
    assert not backend.has_state()
    assert lab.reaches(LISTED)
    assert lab.everything() == before


def test_an_update_lets_no_packet_through(lab: Laboratory, backend: Driven) -> None:
    backend.adopt(Blocklist(), ALLOWLIST)
    commit(backend, FIRST)
    # From the singles into a range, and back.
    second = blocklist("203.0.113.0/28", "2001:db8:7::/48", IN_RANGE)
    with Traffic(lab, innocent=[INNOCENT, INNOCENT_V6], listed=[LISTED, LISTED_V6, IN_RANGE]) as traffic:
        for content in (second, FIRST, second):
            commit(backend, content)
            assert backend.read_committed() == content
        traffic.check()


def test_a_candidate_that_is_rolled_back_blocks_nobody(lab: Laboratory, backend: Driven) -> None:
    backend.adopt(Blocklist(), ALLOWLIST)
    commit(backend, blocklist(LISTED))
    backend.stage(blocklist(INNOCENT))
    with pytest.raises(KernelError, match="the trial lapsed"):
        backend.renew_trial()
    backend.begin_trial()
    assert not lab.passes(INNOCENT)
    backend.rollback()
    assert lab.reaches(INNOCENT)
    assert not lab.passes(LISTED)
    assert backend.read_committed() == blocklist(LISTED)


def test_a_trial_that_another_program_disturbed_is_not_committed(lab: Laboratory, backend: Driven) -> None:
    backend.adopt(Blocklist(), ALLOWLIST)
    backend.stage(FIRST)
    backend.begin_trial()
    lab.host.run("iptables-legacy", "-t", "raw", "-F", "PREROUTING")
    with pytest.raises(KernelError, match="another program changed our rules"):
        backend.commit()
    backend.rollback()
    assert backend.read_committed() == Blocklist()


def test_what_others_changed_is_repaired_and_said(lab: Laboratory, backend: Driven) -> None:
    backend.adopt(FIRST, ALLOWLIST)
    lab.host.run("iptables-legacy", "-t", "raw", "-F", "PREROUTING")
    lab.host.run("ipset", "flush", "sikkerguard-v6")
    lab.host.run("ipset", "add", "sikkerguard-trial-v4", "0.0.0.0/1")
    assert not backend.inspect_text(LISTED).active
    assert not backend.inspect_text(LISTED_V6).listed
    described = sorted(operation.describe().partition(" (")[0] for operation in backend.repair(ALLOWLIST))
    assert described == [
        "block 1 addresses in sikkerguard-v6 and 0 ranges in sikkerguard-v6-net",
        "empty the sets sikkerguard-trial-v4, since nothing is on trial",
        "put the jump to SIKKERGUARD at the top of PREROUTING of iptables, table raw",
    ]
    assert backend.inspect_text(LISTED).blocked
    assert backend.inspect_text(LISTED_V6).blocked
    assert not any(map(lab.passes, (LISTED, LISTED_V6)))


def test_the_next_process_finds_all_in_place(lab: Laboratory) -> None:
    with driven(lab) as first:
        first.adopt(FIRST, ALLOWLIST)
    # Whether there is anything of ours is found out without python-iptables, which can't be read in the middle of an
    # installation.
    with driven(lab) as second:
        assert second.has_state()
        assert second.read_committed() == FIRST
        assert not second.imported("iptc")
        assert not second.imported("pyroute2")
        with Traffic(lab, innocent=[INNOCENT, INNOCENT_V6], listed=[LISTED, LISTED_V6, IN_RANGE]) as traffic:
            assert second.adopt(FIRST, ALLOWLIST) == ()
            traffic.check()
        assert second.imported("iptc")


def test_packets_are_read_once(lab: Laboratory, backend: Driven) -> None:
    backend.hold_counters()
    backend.adopt(FIRST, ALLOWLIST)
    backend.resume_counters({})
    backend.read_traffic()
    for _ in range(3):
        assert not lab.passes(LISTED)
    # A repair in between loses none.
    lab.host.run("iptables-legacy", "-t", "raw", "-F", "SIKKERGUARD")
    assert [type(each).__name__ for each in backend.repair(ALLOWLIST)] == ["WriteChains"]
    for _ in range(2):
        assert not lab.passes(LISTED)
    samples = backend.read_traffic()
    assert sum(sample.dropped.packets for sample in samples) == sum(sample.attributed for sample in samples) == 5
    assert sum(sample.dropped.packets for sample in backend.read_traffic()) == 0
