"""A disk that is full, read-only, another's, gone or hung: it ends nothing, is said, and heals without a restart.

The disks are real: ext4 on loop devices. What can't be made with them is put in by injection in tests/unit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import command, wait_for
from sikkerguard.edges.storage import last_good
from tests.kernel.conftest import SIKKERGUARD
from tests.kernel.test_commands import ENOUGH, open_directory, with_only
from tests.kernel.test_life import INNOCENT, LISTED, LISTED_V6, protect
from tests.kernel.test_restore import reboot
from tests.records import records_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Guard

NEXT = "203.0.113.8"
MIB = 1 << 20


class Ext4:
    """A file system of 16 MiB at this place, on a loop device."""

    def __init__(self, place: Path, image: Path, block: int) -> None:
        self.place = place
        self.frozen = False
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        # Nothing is kept for root, so that full is full.
        command("mkfs.ext4", "-q", "-b", str(block), "-m", "0", "-E", "root_owner=0:0", str(image))
        place.mkdir(mode=0o700)
        command("mount", "-o", "loop", str(image), str(place))
        place.chmod(0o700)

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.place / "filler").open("wb", buffering=0) as file:
            for size in (MIB, 4096, 512, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
        os.sync()

    def make_room(self) -> None:
        """As somebody does who has read the status."""
        (self.place / "filler").unlink()

    def remount(self, how: str, process: int | None = None) -> None:
        """`ro` or `rw`; also where this process sees it, which has mounts of its own."""
        command("mount", "-o", f"remount,{how}", str(self.place))
        if process is not None:
            command("nsenter", "-t", str(process), "-m", "mount", "-o", f"remount,{how}", str(self.place))

    def freeze(self) -> None:
        """Nothing is written any more, and whoever writes waits, and can't be killed."""
        command("fsfreeze", "-f", str(self.place))
        self.frozen = True

    def thaw(self) -> None:
        """It goes on where it was."""
        if self.frozen:
            self.frozen = False
            command("fsfreeze", "-u", str(self.place))


@pytest.fixture(autouse=True)
def _runtime_directory(guard: Guard) -> None:
    """As systemd gives one, and images do: commands find the service without the disk that is to fail."""
    place = guard.directory / "run"
    place.mkdir(mode=0o755)
    guard.environment["RUNTIME_DIRECTORY"] = str(place)


@contextmanager
def disk(guard: Guard, block: int = 4096) -> Iterator[Ext4]:
    """The state directory is such a file system; it is gone at the end, whatever happened."""
    made = Ext4(guard.state, guard.directory / "image", block)
    try:
        yield made
    finally:
        made.thaw()
        if guard.process is not None and guard.process.poll() is None:
            guard.kill()
        command("umount", "-l", str(made.place))


def check_blocked(guard: Guard, *addresses: str) -> None:
    for address in addresses or (LISTED, LISTED_V6):
        assert not guard.lab.passes(address)
    assert guard.lab.reaches(INNOCENT)


def flush(guard: Guard) -> None:
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        guard.lab.host.run(tool, "-w", "-t", "raw", "-F")


def check_repaired(guard: Guard) -> None:
    """Within ten seconds, as promised, and with packets."""
    flush(guard)
    assert guard.lab.reaches(LISTED)
    wait_for("the repair", lambda: not guard.lab.passes(LISTED), 10)
    check_blocked(guard)


def pulled(guard: Guard, *addresses: str) -> None:
    """The service pulls and commits this list."""
    guard.serve(*addresses)
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)
    wait_for("the list", lambda: guard.blocked() == set(addresses), 15)


def reason(guard: Guard, words: str, seconds: float = 15) -> str:
    """Wait until status, which is degraded for it, gives a reason with these words."""

    def found() -> str:
        status = guard.status()
        reasons = [each for each in status["reasons"] if words in each]
        assert (status["status"] == "degraded") or not reasons
        return reasons[0] if reasons else ""

    guard.expected_errors.append(re.escape(words))
    return wait_for(f"a reason with {words!r}", found, seconds)


def healed(guard: Guard, seconds: float = 15) -> None:
    wait_for("all to be well", lambda: guard.status()["reasons"] == [], seconds)


def start_cold(guard: Guard) -> None:
    """As after a boot: nothing of ours is in the kernel, and the list on disk blocks at once."""
    lines = guard.log().count("from the cache")
    began = time.monotonic()
    guard.start()
    guard.logged(r"Blocking 2 IPs \(from the cache", times=lines + 1)
    assert time.monotonic() - began < 10
    check_blocked(guard)


@pytest.mark.parametrize(("block", "locked"), [(4096, True), (1024, True), (4096, False)])
def test_a_full_disk_is_no_reason_not_to_protect(guard: Guard, block: int, locked: bool) -> None:
    """Before: no start at all, or SIGBUS before any rule."""
    with disk(guard, block) as full:
        protect(guard, LISTED, LISTED_V6)
        check_blocked(guard)
        reboot(guard)
        if not locked:
            for path in guard.state.glob("records*"):
                path.unlink()
            (guard.state / "service.lock").unlink()
        full.fill()
        guard.expected_errors += ["No space left on device", "can't be used"]
        start_cold(guard)
        reboot(guard)
        done = guard.cli("restore")
        assert done.returncode == 0, done.stderr
        check_blocked(guard)
        start_cold(guard)
        assert "can't be written (No space left on device): blocking goes on" in reason(guard, "No space left")
        pulled(guard, LISTED, LISTED_V6, NEXT)
        check_blocked(guard, NEXT)
        wait_for("the counts", lambda: guard.status()["droppedPackets"])
        counted = guard.status()["droppedPackets"]
        # Somebody makes room: nothing is restarted.
        full.make_room()
        healed(guard)
        assert guard.cli("check", NEXT).stdout.startswith(f"{NEXT} is blocked.\nListed by SikkerAPI")
        guard.stop()
        assert guard.lab.sets() == ""
        with records_of(guard.state) as records:
            totals = dict(records.execute("SELECT name, value FROM totals"))
            (sources,) = records.execute("SELECT count(*) FROM sources").fetchone()
        # What was counted while there was no room is there.
        assert totals["dropped_packets"] >= counted
        assert sources >= 2


def test_a_read_only_disk_is_no_reason_not_to_protect(guard: Guard) -> None:
    with disk(guard) as failing:
        protect(guard, LISTED, LISTED_V6)
        reboot(guard)
        failing.remount("ro")
        done = guard.cli("restore")
        assert done.returncode == 0, done.stderr
        check_blocked(guard)
        # Two services at once are refused all the same.
        start_cold(guard)
        second = guard.cli("run", SIKKER_HEALTH_ADDRESS="127.0.0.1:8181")
        assert second.returncode == 2
        assert "another sikkerguard runs" in second.stderr
        reason(guard, "can't be written (Read-only file system)")
        reason(guard, "records.sqlite3 can't be used")
        pulled(guard, LISTED, LISTED_V6, NEXT)
        # A start by the list that was kept.
        guard.stop()
        assert guard.lab.sets() == ""
        start_cold(guard)
        assert guard.process is not None
        failing.remount("rw", guard.process.pid)
        healed(guard)
        wait_for("the list", lambda: guard.cli("check", NEXT).stdout.count("Listed by SikkerAPI"))
        guard.stop()


def test_a_disk_that_hangs_keeps_nothing_waiting(guard: Guard) -> None:
    """Before: neither repairs, nor pulls, nor the page, nor the stop, for as long as it lasted."""
    lab = guard.lab
    with disk(guard) as hung:
        protect(guard, LISTED, LISTED_V6)
        check_blocked(guard)
        before = (guard.state / "list.bin").read_bytes()
        hung.freeze()
        # A change of the host, which has the allowlist written.
        lab.host.run("ip", "addr", "add", "198.51.100.77/32", "dev", "wan")
        wait_for("the new address", lambda: "198.51.100.77" in lab.sets())
        check_repaired(guard)
        pulled(guard, LISTED, LISTED_V6, NEXT)
        check_blocked(guard, LISTED, LISTED_V6, NEXT)
        said = reason(guard, "has not answered since", 20)
        assert "blocking goes on" in said
        reason(guard, "the disk does not answer", 20)
        hung.thaw()
        healed(guard)
        assert (guard.state / "list.bin").read_bytes() != before
        # And once more, for the stop.
        hung.freeze()
        pulled(guard, LISTED, LISTED_V6)
        guard.expected_errors.append("The disk does not answer: what was counted last is lost")
        assert guard.process is not None
        began = time.monotonic()
        guard.process.terminate()
        wait_for("the stop", lambda: _has_ended(guard), 5)
        assert time.monotonic() - began < 5
        assert lab.sets() == ""
        assert "SIKKERGUARD" not in lab.rules()
        assert lab.reaches(LISTED)
        hung.thaw()
        assert guard.process.wait(5) == 0
        # What it could not keep costs nothing but that.
        done = guard.cli("restore")
        assert done.returncode == 0, done.stderr
        check_blocked(guard)


def _has_ended(guard: Guard) -> bool:
    """Whether the process has gone, or all of it that a disk lets go."""
    assert guard.process is not None
    state = Path(f"/proc/{guard.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z"


def test_a_start_on_a_disk_that_hangs_blocks(guard: Guard) -> None:
    with disk(guard) as hung:
        protect(guard, LISTED, LISTED_V6)
        reboot(guard)
        hung.freeze()
        guard.expected_errors += ["the disk does not answer", "has not answered since"]
        start_cold(guard)
        guard.logged("Blocking 2 IPs$", times=2)
        reason(guard, "has not answered since", 20)
        hung.thaw()
        healed(guard)
        guard.stop()
        assert guard.lab.sets() == ""


def test_a_directory_that_is_deleted_is_made_again(guard: Guard) -> None:
    protect(guard, LISTED, LISTED_V6)
    check_blocked(guard)
    wait_for("the records", (guard.state / "records.sqlite3").exists)
    shutil.rmtree(guard.state)
    wait_for("the directory", (guard.state / "list.bin").exists, 15)
    check_blocked(guard)
    wait_for("the records", (guard.state / "records.sqlite3").exists, 15)
    wait_for("the allowlist", (guard.state / "allowlist.json").exists)
    wait_for("the good settings", lambda: last_good.load(guard.state) is not None)
    assert guard.state.stat().st_mode & 0o777 == 0o700
    assert guard.cli("pull").returncode == 0
    healed(guard)
    guard.kill()
    start_cold(guard)
    guard.stop()


def test_another_owner_s_directory_is_no_reason_not_to_protect(guard: Guard) -> None:
    guard.serve(LISTED, LISTED_V6)
    with open_directory() as directory:
        state = directory / "state"
        state.mkdir(mode=0o700)
        guard.expected_errors += ["Permission denied"]
        # A place that root gave to that user, whom root's commands believe there.
        runtime = directory / "given" / "run"
        for place in (runtime.parent, runtime):
            place.mkdir(mode=0o755)
        os.chown(runtime, 65534, 65534)
        guard.environment |= {"RUNTIME_DIRECTORY": str(runtime), "SIKKER_STATE_DIR": str(state)}
        guard.start(*with_only(*ENOUGH), *SIKKERGUARD, "run")
        guard.logged("Blocking 2 IPs$")
        check_blocked(guard)
        reason(guard, "can't be written (Permission denied)")
        os.chown(state, 65534, 65534)
        healed(guard)
        assert (state / "list.bin").stat().st_uid == 65534
        guard.stop()
        assert guard.lab.sets() == ""


def test_records_that_another_process_has_delay_neither_blocking_nor_a_stop(guard: Guard) -> None:
    protect(guard, LISTED, LISTED_V6)
    wait_for("the records", (guard.state / "records.sqlite3").exists)
    guard.stop()
    with closing(sqlite3.connect(guard.state / "records.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        start_cold(guard)
        assert "database is locked" in reason(guard, "records.sqlite3 can't be used")
        began = time.monotonic()
        guard.stop()
        assert time.monotonic() - began < 3
        began = time.monotonic()
        assert guard.cli("restore").returncode == 0
        assert time.monotonic() - began < 6
        start_cold(guard)
        wait_for("the counts", lambda: guard.status()["droppedPackets"] >= 2)
        other.execute("COMMIT")
    healed(guard)
    guard.stop()
    with records_of(guard.state) as records:
        ((dropped,),) = records.execute("SELECT value FROM totals WHERE name = 'dropped_packets'").fetchall()
    assert dropped >= 2


def test_two_services_with_directories_of_their_own_do_not_fight(guard: Guard) -> None:
    protect(guard, LISTED, LISTED_V6)
    second = guard.cli("run", SIKKER_STATE_DIR=str(guard.directory / "other"), SIKKER_HEALTH_ADDRESS="127.0.0.1:8181")
    assert second.returncode == 2
    assert guard.process is not None
    assert f"another sikkerguard runs in this network namespace (process {guard.process.pid})" in second.stderr
    check_blocked(guard)
    guard.stop()
    # And the name is free again.
    done = guard.cli("restore", SIKKER_STATE_DIR=str(guard.state))
    assert done.returncode == 0, done.stderr
