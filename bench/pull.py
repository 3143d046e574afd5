"""How long it takes to protect: from the start to blocking, and from a list's bytes to the committed set.

Run as root: `.venv/bin/python -m bench.pull [ENTRIES]`. Everything happens in network namespaces of its own. The same
list is loaded by `ipset restore` too, in turn with ours and in the same run, so that the ratio means something.
"""

from __future__ import annotations

import asyncio
import http.client
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.api import KEY, LaboratoryApi, serving
from scripts.laboratory.network import API, Laboratory, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED, Allowlist
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.size_guard import Limits
from sikkerguard.core.lists.sources import SIKKERAPI, ListedSource, VerifiedList
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import canonical
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Runs
from sikkerguard.core.selftest import Outcome, ProbeResult
from sikkerguard.edges.host.connections import OutgoingWatch
from sikkerguard.edges.kernel.select import open_backend
from sikkerguard.edges.storage.store import Store
from sikkerguard.edges.system_clock import SystemClock
from sikkerguard.service.feed_reader import read_strictly
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.list_update import Conditions, ListUpdate
from sikkerguard.service.trial import SelfTest, Trial
from sikkerguard.service.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator
    from contextlib import AbstractContextManager

    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.interfaces import Connections

_ROUNDS = 3
_CACHED = 5000
_MILLION = 1_000_000


def addresses(count: int) -> list[str]:
    """So many different public addresses, the same ones each time."""
    chance = random.Random(1)
    found: set[int] = set()
    while len(found) < count:
        found.add(chance.randrange(11 << 24, 100 << 24))
    return [socket.inet_ntoa(number.to_bytes(4, "big")) for number in found]


class Bytes:
    """A feed whose content is here already: the network is not what is measured."""

    name = SIKKERAPI
    interval = math.inf
    remaining = None

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def version(self) -> None:
        """None, as the real feed has it."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body in the pieces that the real feed makes."""
        for start in range(0, len(self._body), 256 << 10):
            yield self._body[start : start + (256 << 10)]


class Passing:
    """Self-tests that pass at once: they are not measured."""

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        """One test, passed."""
        return (ProbeResult("nothing", Outcome.PASSED, "was asked"),)


class NoConnections:
    """There are none: reading them is not measured."""

    def flows(self, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
        """None."""
        return ()

    def watch(self) -> OutgoingWatch:
        """Packets that leave, of which there are none."""
        return OutgoingWatch()


class NoDrops:
    """Nothing is dropped: reading the log is not measured."""

    def watch_sources(self) -> AbstractContextManager[Collection[bytes]]:
        """None."""
        return nullcontext(frozenset())


@asynccontextmanager
async def updates(connections: Connections, limits: Limits) -> AsyncIterator[tuple[ListUpdate, Conditions]]:
    """What puts a list in force, and by which conditions, in a kernel that has nothing of ours yet, nor afterwards."""
    kernel = KernelThread(open_backend(dry_run=False))
    allowlist = Allowlist(ALWAYS_ALLOWED)
    try:
        await kernel.adopt(Blocklist(), allowlist)
        trial = Trial(kernel, connections, NoDrops(), Wakeup())
        test = SelfTest(Passing(), ())
        yield ListUpdate(trial, connections, SystemClock()), Conditions(allowlist, limits, test)
        await kernel.remove()
    finally:
        await kernel.close()


async def committed(body: bytes) -> float:
    """Seconds from a list's bytes to the committed set, self-test excluded."""
    async with updates(NoConnections(), Limits(max_growth=2, max_coverage=1)) as (update, conditions):
        started = time.perf_counter()
        change = await read_strictly(Bytes(body), (), Wakeup())
        await update.put_in_force([change], None, PullMemory(), conditions)
        return time.perf_counter() - started


def restored(lines: list[str]) -> float:
    """Seconds that `ipset restore` takes for the same entries, from a file that is ready for it."""
    size = 1 << (len(lines) // 2 - 1).bit_length()
    text = f"create peer hash:ip hashsize {size} maxelem {2 * len(lines)} counters\n"
    text += "".join(f"add peer {line}\n" for line in lines)
    started = time.perf_counter()
    subprocess.run(["ipset", "restore"], input=text, text=True, check=True)
    seconds = time.perf_counter() - started
    subprocess.run(["ipset", "destroy", "peer"], check=True)
    return seconds


def inside(count: int) -> None:
    """What is measured in a namespace with nothing but a loopback: loading."""
    lines = addresses(count)
    body = "".join(f"{line}\n" for line in lines).encode()
    ours, theirs = [], []
    for _ in range(_ROUNDS):
        ours.append(asyncio.run(committed(body)))
        theirs.append(restored(lines))
    print(f"{count:,} addresses, bytes to committed set:  {_spread(ours)}")
    print(f"  ipset restore of the same, nothing parsed, admitted, read back or tried:  {_spread(theirs)}")
    print(f"  ratio of the best: {min(theirs) / min(ours):.1f} times as fast")


def _spread(seconds: list[float]) -> str:
    return f"best {min(seconds):.2f} s, worst {max(seconds):.2f} s of {len(seconds)}"


def cached(state: Path, lines: list[str]) -> None:
    """Leave a verified list in the state directory, as a service that ran before did."""
    state.mkdir(mode=0o700, exist_ok=True)
    sorter = Runs(Family.V4.size)
    sorter.add([socket.inet_aton(line) for line in lines])
    networks = canonical(Family.V4, sorter, [])
    source = ListedSource("SikkerAPI", Blocklist(v4=networks), time.time())
    Store(state).save(VerifiedList((source,), time.time()))


@contextmanager
def service(lab: Laboratory, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The service in the laboratory's host, ended in any case."""
    process = lab.host.start([sys.executable, "-m", "sikkerguard", "run"], environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def start_to_blocking(lab: Laboratory, state: Path, environment: dict[str, str]) -> float:
    """Seconds from exec to the jump in its place, which is put there last; asking for it costs some of them."""
    started = time.perf_counter()
    with service(lab, environment):
        jump = ("iptables-legacy", "-t", "raw", "-S", "PREROUTING")
        wait_for("the jump", lambda: "SIKKERGUARD" in lab.host.run(*jump))
        return time.perf_counter() - started


class HealthPoll(threading.Thread):
    """Asks /healthz again and again, and keeps the longest answer."""

    def __init__(self, lab: Laboratory) -> None:
        super().__init__()
        self._lab = lab
        self.done = threading.Event()
        self.longest = 0.0
        self.answers = 0

    def run(self) -> None:
        """Ask until done."""
        self._lab.host.inside(self._poll)

    def _poll(self) -> None:
        while not self.done.wait(0.002):
            started = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=5)
            try:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            finally:
                connection.close()
            self.longest = max(self.longest, time.perf_counter() - started)
            self.answers += 1


def health_during_pull(lab: Laboratory, api: LaboratoryApi, environment: dict[str, str], body: bytes) -> None:
    """The longest answer of /healthz while a running service pulls and commits the list."""
    with service(lab, environment) as process:
        status_words = (sys.executable, "-m", "sikkerguard", "status", "--json")
        wait_for("a first pull", lambda: '"pulls": 1' in lab.host.run(*status_words, check=False, env=environment))
        api.body = body
        poll = HealthPoll(lab)
        poll.start()
        try:
            started = time.perf_counter()
            lab.host.run(sys.executable, "-m", "sikkerguard", "pull", "--accept", env=environment)
            seconds = time.perf_counter() - started
        finally:
            poll.done.set()
            poll.join()
        status = Path(f"/proc/{process.pid}/status").read_text("ascii")
        memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
        print(
            f"`sikkerguard pull` of that list with transfer and both self-tests: {seconds:.2f} s; /healthz meanwhile: "
            f"{poll.answers} answers, the longest {poll.longest * 1000:.0f} ms; resident afterwards "
            f"{int(memory) >> 10} MiB"
        )
        started = time.perf_counter()
    print(f"stop with it: {time.perf_counter() - started:.2f} s, sets left: {lab.sets() or 'none'}")


def main() -> int:
    """Measure all of it, once as a namespace of its own, once in a laboratory."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _MILLION
    if "--inside" in sys.argv:
        inside(count)
        return 0
    print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}", flush=True)
    subprocess.run(["unshare", "-n", sys.executable, "-m", "bench.pull", str(count), "--inside"], check=True)
    lines = addresses(count)
    with (
        laboratory() as lab,
        Resolver(lab.internet),
        serving(lab) as api,
        tempfile.TemporaryDirectory() as directory,
    ):
        state = Path(directory) / "state"
        environment = {**os.environ, "SIKKER_API_URL": f"http://{API}", "SIKKER_API_KEY": KEY}
        environment["SIKKER_ALLOW_HTTP"] = "true"
        environment["SIKKER_STATE_DIR"] = str(state)
        cached(state, lines[:_CACHED])
        api.body = "".join(f"{line}\n" for line in lines[:_CACHED]).encode()
        starts = [start_to_blocking(lab, state, environment) for _ in range(2 * _ROUNDS)]
        print(f"exec to blocking, {_CACHED:,} cached entries:  {_spread(starts)}")
        health_during_pull(lab, api, environment, "".join(f"{line}\n" for line in lines).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
