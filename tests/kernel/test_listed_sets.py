"""Another program lists our sets: lists are updated, repaired, adopted and removed all the same.

While a set is being listed the kernel swaps and destroys it for nobody.
"""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import wait_for
from tests.kernel.listings import in_a_loop, pager
from tests.kernel.traffic import Traffic

if TYPE_CHECKING:
    from scripts.laboratory.network import Laboratory
    from tests.kernel.conftest import Guard

LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
IN_RANGE, RANGE = "192.0.2.77", "192.0.2.0/25"
INNOCENT, INNOCENT_V6 = "203.0.113.99", "2001:db8:99::99"
SOMETIMES = "203.0.113.8"
STAYING = (LISTED, LISTED_V6, RANGE)
LISTED_SOURCES = (LISTED, LISTED_V6, IN_RANGE)


def body(number: int, *more: str, shift: int = 0) -> bytes:
    """A list with so many addresses of nobody, and these."""
    many = (b"11.%d.%d.%d\n" % (n >> 16, n >> 8 & 255, n & 255) for n in range(shift, number + shift))
    return b"".join(many) + "".join(f"{address}\n" for address in (*STAYING, *more)).encode()


def update(guard: Guard, answer: bytes) -> None:
    """Have this in force."""
    assert guard.process is not None
    before = guard.log().count(" INFO Blocking ")
    guard.standin.clear_faults()
    guard.answer(answer)
    guard.process.send_signal(signal.SIGHUP)
    guard.logged(" INFO Blocking ", times=before + 1, seconds=30)


def protect(guard: Guard, number: int) -> None:
    """Begin, with a list of so many addresses and what is tried here."""
    guard.answer(body(number))
    guard.start()
    guard.logged("Blocking ", seconds=30)


def traffic(lab: Laboratory) -> Traffic:
    """Packets of who is always listed and of who never is."""
    return Traffic(lab, innocent=(INNOCENT, INNOCENT_V6), listed=LISTED_SOURCES)


def entries(lab: Laboratory, name: str) -> int:
    """How many a set says that it holds."""
    (found,) = re.findall(r"Number of entries: (\d+)", lab.host.run("ipset", "list", "-t", name))
    return int(found)


def ours(lab: Laboratory) -> list[str]:
    """The names of our sets that are there."""
    return [name for name in lab.host.run("ipset", "list", "-n").split() if name.startswith("sikkerguard")]


def test_a_list_is_replaced_while_a_pager_is_open_on_it(guard: Guard) -> None:
    lab = guard.lab
    protect(guard, 20_000)
    with traffic(lab) as packets, pager(lab, "sikkerguard-v4"):
        wait_for("some packets", lambda: min(packets._sent.values(), default=0) > 30)
        update(guard, body(20_000, SOMETIMES, shift=10_000))
        assert not lab.passes(SOMETIMES)
        line = guard.logged("WARNING Another program is listing the set sikkerguard-v4")
        assert "it is changed entry by entry instead" in line
        assert entries(lab, "sikkerguard-v4") == 20_002
        assert not lab.passes("11.0.117.1")
        assert lab.reaches("11.0.0.1")
        update(guard, body(20_000, shift=10_000))
        assert lab.reaches(SOMETIMES)
        assert guard.status()["reasons"] == []
        packets.check()
    assert guard.log().count("Another program is listing the set sikkerguard-v4") == 1
    # Let go, it is exchanged as ever.
    update(guard, body(20_000, SOMETIMES))
    assert not lab.passes(SOMETIMES)


@pytest.mark.parametrize(("words", "pause"), [(("ipset", "list"), 0.6), (("ipset", "save"), 0.0)])
def test_every_update_of_a_long_list_is_taken_while_it_is_listed_again_and_again(
    guard: Guard, words: tuple[str, ...], pause: float
) -> None:
    lab = guard.lab
    protect(guard, 150_000)
    with traffic(lab) as packets, in_a_loop(lab, words, pause) as listings:
        for number in range(4):
            update(guard, body(150_000, *[SOMETIMES] * (number % 2), shift=number))
            assert lab.reaches(SOMETIMES) is (number % 2 == 0)
        packets.check()
    assert len(listings) > 2
    assert not any(listings)
    assert guard.status()["lastPullError"] is None


def test_a_flush_is_made_good_in_time_while_sets_are_saved_in_a_loop(guard: Guard) -> None:
    lab = guard.lab
    protect(guard, 100_000)
    with in_a_loop(lab, ("ipset", "save")) as listings:
        wait_for("a listing", lambda: listings)
        lab.host.run("ipset", "flush", "sikkerguard-v4")
        lab.host.run("ipset", "flush", "sikkerguard-v4-net")
        flushed = time.monotonic()
        assert lab.reaches(LISTED)
        guard.logged("WARNING Another program changed our rules")
        assert time.monotonic() - flushed < 10
        assert not lab.passes(LISTED)
        assert not lab.passes(IN_RANGE)
        assert lab.reaches(INNOCENT)
        guard.stop()
    assert ours(lab) == []


def test_a_start_and_a_stop_under_a_pager_do_all_that_can_be_done(guard: Guard) -> None:
    lab = guard.lab
    protect(guard, 20_000)
    wait_for("the cache", (guard.state / "list.bin").exists)
    with traffic(lab) as packets, pager(lab, "sikkerguard-v4"):
        guard.kill()
        # Left as by a death, and spoilt as well.
        lab.host.run("ipset", "add", "sikkerguard-v4", SOMETIMES)
        guard.start()
        guard.logged(r"Blocking 20003 IPs \(from the cache")
        assert lab.reaches(SOMETIMES)
        packets.check()
    with pager(lab, "sikkerguard-v4"):
        began = time.monotonic()
        guard.stop(5)
        assert time.monotonic() - began < 5
        line = guard.logged("WARNING Stopped: not everything could be removed")
        assert "the set sikkerguard-v4 stays, empty: another program is listing it" in line
        assert "Nobody is blocked any more" in line
        assert ours(lab) == ["sikkerguard-v4"]
        assert entries(lab, "sikkerguard-v4") == 0
        assert "SIKKERGUARD" not in lab.rules()
        for source in LISTED_SOURCES:
            assert lab.reaches(source), source
        done = guard.cli("cleanup")
        assert (done.returncode, done.stdout) == (1, "")
        assert "another program is listing it" in done.stderr
        # A start adopts what is left, and blocks.
        guard.start()
        guard.logged(r"Blocking 20003 IPs \(from the cache", times=2)
        assert not lab.passes(LISTED)
        assert lab.reaches(INNOCENT)
        guard.stop(5)
    assert guard.cli("cleanup").returncode == 0
    assert ours(lab) == []


def test_what_was_dropped_is_told_while_what_counts_it_is_listed(guard: Guard) -> None:
    lab = guard.lab
    guard.serve(*STAYING, "11.0.0.0/20")
    guard.start()
    guard.logged("Blocking 4 IPs")
    # So many sources that a listing of what counts them stands still in the middle.
    lab.internet.run("ip", "route", "add", "local", "11.0.0.0/20", "dev", "lo")
    process = guard.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        flood(lab, 4000)
        with pager(lab, "sikkerguard-sources-v4"):
            process.send_signal(signal.SIGCONT)
            wait_for("the count", lambda: guard.status()["droppedPackets"] >= 4000)
            seen = guard.status()
            assert (seen["droppedUnnamed"], seen["sources"]) == (0, 4000)
            assert not lab.passes(LISTED)
            wait_for("another count", lambda: guard.status()["sources"] == 4001)
            assert guard.status()["droppedUnnamed"] == 0
    finally:
        process.send_signal(signal.SIGCONT)


def flood(lab: Laboratory, sources: int) -> None:
    """One packet of each of so many sources of 11.0.0.0/20."""
    import socket

    from scripts.laboratory.network import HOST

    def send() -> None:
        for number in range(sources):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((f"11.0.{number >> 8}.{number & 255}", 0))
                sender.sendto(b"", (HOST, 9))

    lab.internet.inside(send)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_what_is_left_where_nothing_is_on_trial_is_taken_out(guard: Guard, family: str) -> None:
    lab = guard.lab
    guard.serve(*STAYING)
    guard.start()
    guard.logged("Blocking 3 IPs")
    innocent, everyone = (INNOCENT, "0.0.0.0/1 128.0.0.0/1") if family == "v4" else (INNOCENT_V6, "::/1 8000::/1")
    lab.host.run("ipset", "add", f"sikkerguard-new-{family}", innocent)
    for half in everyone.split():
        lab.host.run("ipset", "add", f"sikkerguard-trial-{family}", half, "timeout", "0")
    assert not lab.passes(innocent)
    line = guard.logged("WARNING Another program changed our rules", seconds=10)
    assert "(2 sets)" in line
    assert lab.reaches(innocent)
    assert not lab.passes(LISTED if family == "v4" else LISTED_V6)


def test_who_was_excepted_from_what_is_allowed_is_allowed_again(guard: Guard) -> None:
    lab = guard.lab
    guard.environment["SIKKER_WHITELIST"] = "203.0.113.0/26"
    guard.serve("203.0.113.64/26", *STAYING)
    guard.start()
    guard.logged("Blocking ")
    lab.host.run("ipset", "add", "sikkerguard-v4", "203.0.113.9")
    assert lab.reaches("203.0.113.9")
    lab.host.run("ipset", "-!", "add", "sikkerguard-allow-v4", "203.0.113.0/26", "nomatch")
    lab.host.run("ipset", "add", "sikkerguard-allow-v4", "203.0.113.9", "nomatch")
    assert not lab.passes("203.0.113.9")
    guard.logged("WARNING Another program changed our rules", seconds=10)
    assert "nomatch" not in lab.sets()
    assert lab.reaches("203.0.113.9")
