"""The real /dev/kmsg: what the kernel writes of dropped packets, what others write there, and what is overwritten.

The log is the whole machine's, so every test goes by addresses that are its own, and those that flood it wait for one
another.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.machine import cache, locked, log_of_all_namespaces
from scripts.laboratory.network import HOST, HOST_V6
from scripts.laboratory.tools import wait_for
from sikkerguard.config.settings import Config
from sikkerguard.core.firewall.names import LOG_PREFIX
from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.drop_line import parse_drop_line
from sikkerguard.core.traffic.sample import DropEvent
from sikkerguard.edges.kernel_log.kmsg import KMSG, Kmsg, open_kmsg
from sikkerguard.edges.kernel_log.select import open_source
from sikkerguard.edges.system_clock import SystemClock
from sikkerguard.service.log_follower import LogFollower
from sikkerguard.service.wakeup import Watched
from tests.kernel.conftest import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripts.laboratory.network import Laboratory
    from sikkerguard.core.interfaces import KernelLog

# printk(9) takes no longer line from user space; the rate of one opening of the device is limited to 10 lines.
LONG = "x" * 800
PER_OPENING = 10
# syslog(2)
SIZE_BUFFER = 10
FLOOD = f"""
import os
while True:
    handle = os.open({KMSG!r}, os.O_WRONLY)
    for _ in range({PER_OPENING}):
        os.write(handle, b"<30>flood of a test {LONG}\\n")
    os.close(handle)
"""


def own_v4() -> str:
    """An address that no other test on this machine has."""
    return "198.18." + ".".join(str(1 + secrets.randbelow(254)) for _ in range(2))


def own_v6() -> str:
    return f"2001:db8:2:{secrets.token_hex(2).lstrip('0') or '1'}::7"


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.fixture
def log_lab(lab: Laboratory) -> Iterator[Laboratory]:
    """A host that logs every packet of sources in these nets, as our rule logs what it drops."""
    for tool, net in (("iptables-legacy", "198.18.0.0/15"), ("ip6tables-legacy", "2001:db8:2::/48")):
        lab.host.run(tool, "-t", "raw", "-A", "PREROUTING", "-s", net, "-j", "LOG", "--log-prefix", LOG_PREFIX)
    with log_of_all_namespaces():
        yield lab


@contextmanager
def opened() -> Iterator[Kmsg]:
    source = open_kmsg()
    try:
        yield source
    finally:
        source.close()


@contextmanager
def flooding() -> Iterator[None]:
    """Be the only test on this machine that floods the log."""
    with locked(cache() / "kernel-log-flood.lock", 120):
        yield


def send(lab: Laboratory, source: str, port: int) -> None:
    """A UDP packet of this source to the host."""
    lab.own(source)
    family = socket.AF_INET6 if ":" in source else socket.AF_INET

    def sent() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(b"", (HOST_V6 if ":" in source else HOST, port))

    lab.internet.inside(sent)


def knock(lab: Laboratory, source: str, port: int) -> None:
    """The beginning of a TCP connection of this source to the host."""
    lab.own(source)
    family = socket.AF_INET6 if ":" in source else socket.AF_INET

    def knocked() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as caller, suppress(OSError):
            caller.settimeout(0.2)
            caller.bind((source, 0))
            caller.connect((HOST_V6 if ":" in source else HOST, port))

    lab.internet.inside(knocked)


def write(text: str) -> None:
    """A line from user space, each by an opening of its own. One without its end would be held back until the next."""
    handle = os.open(KMSG, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, f"{text}\n".encode())
    finally:
        os.close(handle)


def told_of(source: Kmsg, *addresses: str) -> list[DropEvent]:
    """The drops of these sources that the log tells of now."""
    wanted = {packed(address) for address in addresses}
    found = (parse_drop_line(message) for message in source.read())
    return [event for event in found if event is not None and event.address in wanted]


def test_real_packets_are_told_of_with_source_protocol_and_port(log_lab: Laboratory) -> None:
    attacker, other, attacker_v6 = own_v4(), own_v4(), own_v6()
    with opened() as source:
        send(log_lab, attacker, 5353)
        knock(log_lab, attacker, 23)
        knock(log_lab, other, 65535)
        send(log_lab, attacker_v6, 1)
        knock(log_lab, attacker_v6, 22)
        log_lab.passes(attacker)
        log_lab.passes(attacker_v6)
        v4, v6 = packed(attacker), packed(attacker_v6)
        expected = {
            DropEvent(Family.V4, v4, 17, 5353),
            DropEvent(Family.V4, v4, 6, 23),
            DropEvent(Family.V4, packed(other), 6, 65535),
            DropEvent(Family.V4, v4, 1, 8 << 8),
            DropEvent(Family.V6, v6, 17, 1),
            DropEvent(Family.V6, v6, 6, 22),
            DropEvent(Family.V6, v6, 58, 128 << 8),
        }
        events: set[DropEvent] = set()

        def all_there() -> bool:
            events.update(told_of(source, attacker, other, attacker_v6))
            return events >= expected

        wait_for("all of the packets in the log", all_there)
        # Beside them there are the attacker's own answers to us: unreachable ports and neighbours.
        assert all(event.protocol in (1, 58) for event in events - expected)
        assert source.lost == 0


def test_an_answer_with_our_own_packet_in_it_is_its_senders(log_lab: Laboratory) -> None:
    attacker = log_lab.own(own_v4())

    def provoke() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", (attacker, 9))

    with opened() as source:
        log_lab.host.inside(provoke)
        unreachable = DropEvent(Family.V4, packed(attacker), 1, 3 << 8 | 3)
        assert wait_for("the answer in the log", lambda: told_of(source, attacker, HOST)) == [unreachable]


def test_what_was_logged_before_is_not_given(log_lab: Laboratory) -> None:
    before, after = own_v4(), own_v4()
    with opened() as witness:
        send(log_lab, before, 1)
        wait_for("the first packet in the log", lambda: told_of(witness, before))
        with opened() as source:
            send(log_lab, after, 2)
            events = wait_for("the second packet in the log", lambda: told_of(source, before, after))
    assert events == [DropEvent(Family.V4, packed(after), 17, 2)]


PREFIXES = ["", "<0>", "<4>", "<7>", "<8>", "<12>", "<30>", "<191>", "<256>", "<1023>", "<2047>", "<2048>", "<65536>"]
PREFIXES += ["<4294967296>", "<18446744073709551616>", "<-1>", "<00>", "<0x0>", "< 0>", "<0", "<>", "<0><0>", "\n<0>"]


def test_a_line_that_root_forges_is_not_given(log_lab: Laboratory) -> None:
    forged, real = own_v4(), own_v4()
    mac = "MAC=02:00:00:00:00:0b:02:00:00:00:00:0a:08:00"
    line = (
        f"{LOG_PREFIX}IN=wan OUT= {mac} SRC={forged} DST={HOST} LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 "
        "PROTO=TCP SPT=40000 DPT=23 WINDOW=1024 RES=0x00 SYN URGP=0 "
    )
    # But for who wrote it, it is a line of ours.
    assert parse_drop_line(line) == DropEvent(Family.V4, packed(forged), 6, 23)
    messages: list[str] = []
    records: list[bytes] = []

    def read(descriptor: int, size: int) -> bytes:
        records.append(os.read(descriptor, size))
        return records[-1]

    with opened() as opener:
        source = Kmsg(opener.fileno(), read)
        for prefix in PREFIXES:
            write(prefix + line)
        send(log_lab, real, 1)

        def passed() -> bool:
            messages.extend(source.read())
            return any(f"SRC={real} " in message for message in messages)

        wait_for("the packet behind the forged lines", passed)
    assert not [message for message in messages if forged in message]
    # They were there, each as it was written, and as user space's.
    there = [record for record in records if f"SRC={forged} ".encode() in record]
    assert len(there) == len(PREFIXES)
    assert all(int(record.partition(b",")[0]) >> 3 for record in there)
    assert sum(record.partition(b";")[2].startswith(LOG_PREFIX.encode()) for record in there) > len(PREFIXES) // 2
    assert source.lost == 0


def test_what_was_overwritten_is_counted_exactly(log_lab: Laboratory) -> None:
    size = ctypes.CDLL(None).klogctl(SIZE_BUFFER, None, 0)
    assert 0 < size <= 64 << 20
    numbers: list[int] = []
    overruns = 0

    def read(descriptor: int, length: int) -> bytes:
        nonlocal overruns
        try:
            record = os.read(descriptor, length)
        except BrokenPipeError:
            overruns += 1
            raise
        numbers.append(int(record.split(b",", 2)[1]))
        return record

    attacker = own_v4()
    with flooding(), opened() as opener:
        source = Kmsg(opener.fileno(), read)

        def begun() -> bool:
            # Again and again: the kernel may hold a record back until the next one comes.
            write("<30>a test begins")
            source.read()
            return bool(numbers)

        wait_for("the first record", begun)
        assert source.lost == 0
        for _ in range(2):
            lost = source.lost
            for _ in range(2 * size // len(LONG)):
                write(f"<30>a flood of a test {LONG}")
            send(log_lab, attacker, 7)
            wait_for("the packet behind the flood", lambda: told_of(source, attacker))
            assert source.lost > lost
            assert source.lost == numbers[-1] - numbers[0] + 1 - len(numbers)
        # Each overrun is an error and a gap.
        assert overruns >= 2


def test_standard_input_can_be_the_device(log_lab: Laboratory) -> None:
    attacker = own_v4()
    program = """
import select, sys
from sikkerguard.edges.kernel_log.kmsg import open_kmsg
source = open_kmsg("/nonexistent/kmsg")
print("ready", flush=True)
while select.select([source], [], [], 20)[0]:
    if any(sys.argv[1] in message for message in source.read()):
        print("seen", flush=True)
        break
"""
    with (
        open(KMSG, "rb", buffering=0) as device,  # noqa: PTH123 - as systemd opens it
        subprocess.Popen(
            [sys.executable, "-c", program, f"SRC={attacker} "],
            stdin=device,
            stdout=subprocess.PIPE,
            cwd=PROJECT,
            text=True,
        ) as child,
    ):
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            send(log_lab, attacker, 7)
            assert child.stdout.readline() == "seen\n"
            assert child.wait(10) == 0
        finally:
            child.kill()


class KmsgAlone:
    """The kernel's own device, which nobody has to look for."""

    def kernel_log(self, config: Config) -> KernelLog | None:
        """What the machine's log gives."""
        return open_source("kmsg", set())


class Hints:
    """Those of one source."""

    def __init__(self, address: str) -> None:
        self.address = packed(address)
        self.events: list[DropEvent] = []

    def notice(self, event: DropEvent) -> None:
        """Keep it, if it is that source's."""
        if event.address == self.address:
            self.events.append(event)


class States:
    """Every state that the follower says it has."""

    def __init__(self) -> None:
        self.follower: LogFollower | None = None
        self.seen: list[tuple[str, int]] = []

    def set(self) -> None:
        """The state is another one."""
        assert self.follower is not None
        self.seen.append((self.follower.state.source, self.follower.state.lost))


def test_a_flood_of_other_messages_costs_little_and_what_it_costs_is_told(log_lab: Laboratory) -> None:
    attacker = own_v4()
    hints = Hints(attacker)
    states = States()
    told, events = states.seen, hints.events

    async def until(what: str, seconds: float, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            await asyncio.sleep(0.02)

    async def watch() -> float:
        states.follower = LogFollower(KmsgAlone(), hints, Watched(Config()), SystemClock(), states)
        task = asyncio.create_task(states.follower.run())
        try:
            await until("word of the source", 10, lambda: told)
            await asyncio.to_thread(send, log_lab, attacker, 7)
            await until("the packet", 1, lambda: events)
            with subprocess.Popen([sys.executable, "-c", FLOOD]) as flood:
                try:
                    await until("word of losses", 20, lambda: told[-1][1])
                    began, spent = time.monotonic(), time.process_time()
                    await asyncio.sleep(3)
                    share = (time.process_time() - spent) / (time.monotonic() - began)
                finally:
                    flood.kill()
            await asyncio.to_thread(send, log_lab, attacker, 8)
            await until("the packet behind the flood", 10, lambda: events[-1].port == 8)
            return share
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    with flooding():
        share = asyncio.run(watch())
    assert share < 0.05
    assert events == [DropEvent(Family.V4, packed(attacker), 17, 7), DropEvent(Family.V4, packed(attacker), 17, 8)]
    assert {name for name, _ in told} == {"kmsg"}
    assert sorted(told) == told
