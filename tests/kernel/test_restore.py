"""`sikkerguard restore`: the list on disk blocks before the network is up, and the service goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import GATEWAY
from scripts.laboratory.tools import wait_for
from tests.kernel.test_life import INNOCENT, LISTED, LISTED_V6, WAN_AGAIN, clear_rules, protect

if TYPE_CHECKING:
    from tests.kernel.conftest import Guard


def reboot(guard: Guard) -> None:
    """What a reboot leaves of us: the disk."""
    guard.kill()
    clear_rules(guard.lab)
    guard.lab.host.run("ipset", "destroy")


def restore(guard: Guard) -> None:
    """The command, ended well."""
    done = guard.cli("restore")
    assert done.returncode == 0, done.stderr
    assert "Blocking " in done.stderr


def test_the_list_on_disk_blocks_with_nobody_running(guard: Guard) -> None:
    lab = guard.lab
    protect(guard, LISTED, LISTED_V6, "192.0.2.0/25")
    reboot(guard)
    assert lab.reaches(LISTED)
    restore(guard)
    assert guard.blocked() == {LISTED, LISTED_V6, "192.0.2.0/25"}
    for address in (LISTED, LISTED_V6, "192.0.2.77"):
        assert not lab.passes(address)
    assert lab.reaches(INNOCENT)
    # The service takes over what is there.
    guard.start()
    guard.logged("Blocking 3 IPs .from the cache")
    assert not lab.passes(LISTED)
    guard.stop()
    assert lab.sets() == ""


@pytest.mark.parametrize("before", [2, 9])
def test_what_is_dropped_between_restore_and_start_is_counted_once(guard: Guard, before: int) -> None:
    lab = guard.lab
    protect(guard, LISTED)
    for _ in range(before):
        assert not lab.passes(LISTED)
    wait_for("the count", lambda: guard.status()["droppedPackets"] == before)
    reboot(guard)
    restore(guard)
    # More and less than the rule's counter was at when it was last kept.
    for _ in range(5):
        assert not lab.passes(LISTED)
    guard.start()
    guard.logged("Blocking 1 IPs$", times=2)
    wait_for("the count", lambda: guard.status()["droppedPackets"] == before + 5)
    wait_for("the lines", lambda: f"BLOCKED {LISTED} (type 8 code 0) proto=ICMP x" in guard.log())


def test_the_way_out_of_the_last_run_is_not_cut_off_before_the_network_is_up(guard: Guard) -> None:
    lab = guard.lab
    lab.owned.add(GATEWAY)
    guard.serve(LISTED, GATEWAY)
    guard.start()
    guard.logged("Blocking 1 IPs$")
    wait_for("the cache", (guard.state / "list.bin").exists)
    reboot(guard)
    lab.host.run("ip", "link", "set", "wan", "down")
    restore(guard)
    lab.host.run("ip", "-batch", "-", text=WAN_AGAIN)
    assert lab.reaches(GATEWAY)
    assert not lab.passes(LISTED)


def test_without_a_list_nothing_is_done(guard: Guard) -> None:
    done = guard.cli("restore")
    assert (done.returncode, done.stdout) == (0, "")
    assert "No list is kept on disk yet" in done.stderr
    assert guard.lab.sets() == ""


def test_beside_a_service_it_does_nothing(guard: Guard) -> None:
    protect(guard, LISTED)
    done = guard.cli("restore")
    assert done.returncode == 2
    assert "another sikkerguard runs" in done.stderr
    assert not guard.lab.passes(LISTED)
