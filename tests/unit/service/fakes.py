"""What the service needs from outside, in memory: each fake notes what it is asked for, and fails when told to."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.state import Inspection
from sikkerguard.core.host.surroundings import Surroundings
from sikkerguard.core.lists.allowlist import Allowlist
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.sources import VerifiedList
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.selftest import Outcome, ProbeResult
from sikkerguard.core.sikkerapi.endpoint import EndpointMemory
from sikkerguard.errors import KernelError, ListError
from sikkerguard.service.state_writer import StateWriter
from tests.unit.service.virtual_time import VirtualClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

    from sikkerguard.core import interfaces
    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

WORKS = (ProbeResult("DNS by 192.0.2.53", Outcome.PASSED, "resolves"),)
FAILS = (ProbeResult("DNS by 192.0.2.53", Outcome.FAILED, "did not resolve in 3 tries"),)


class Changes:
    """A signal that counts."""

    def __init__(self) -> None:
        self.times = 0

    def set(self) -> None:
        self.times += 1


class Failing:
    """Notes the `steps` by their methods' names. `failures` are raised by the next calls of a method, one each; None
    lets a call pass."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.failures: dict[str, list[BaseException | None]] = {}

    def fail(self, method: str, *errors: BaseException | None) -> None:
        """Have the next calls of this method raise these."""
        self.failures.setdefault(method, []).extend(errors)

    def step(self, method: str) -> None:
        """To be called first in each method."""
        self.steps.append(method)
        if (waiting := self.failures.get(method)) and (error := waiting.pop(0)):
            raise error


class Backend(Failing):
    """A kernel. `changed` is what the next calls of `adopt` and `repair` have to put right, one each; `samples` is what
    the next `read_traffic` gives."""

    name = "in memory"

    def __init__(self, committed: Blocklist | None = None) -> None:
        super().__init__()
        self.committed = committed or Blocklist()
        self.present = self.hooked = committed is not None
        self.allowlist = Allowlist()
        self.staged: Blocklist | None = None
        self.on_trial = False
        self.changed: list[tuple[Operation, ...]] = []
        self.samples: list[TrafficSample] = []
        self.held = False
        self.counters: Mapping[Family, PacketCount] | None = None
        self.closed = False

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        self.step("adopt")
        self.committed, self.allowlist, self.staged, self.on_trial = verified, allowlist, None, False
        self.present = self.hooked = True
        return self.changed.pop(0) if self.changed else ()

    def repair(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        self.step("repair")
        self.allowlist = allowlist
        self.present = self.hooked = True
        return self.changed.pop(0) if self.changed else ()

    def read_committed(self) -> Blocklist:
        self.step("read_committed")
        return self.committed

    def allow(self, allowlist: Allowlist) -> None:
        self.step("allow")
        self.allowlist = allowlist

    def stage(self, blocklist: Blocklist) -> None:
        self.step("stage")
        self.staged = blocklist

    def begin_trial(self) -> None:
        self.step("begin_trial")
        assert self.staged is not None
        self.on_trial = True

    def renew_trial(self) -> None:
        self.step("renew_trial")
        if not self.on_trial:
            raise KernelError("the trial has lapsed")

    def commit(self) -> None:
        self.step("commit")
        assert self.staged is not None
        assert self.on_trial
        self.committed, self.staged, self.on_trial = self.staged, None, False

    def rollback(self) -> None:
        self.step("rollback")
        self.staged, self.on_trial = None, False

    def unhook(self) -> None:
        self.step("unhook")
        self.hooked = False

    def remove(self) -> None:
        self.step("remove")
        self.committed, self.allowlist = Blocklist(), Allowlist()
        self.present = self.hooked = False

    def hold_counters(self) -> None:
        self.step("hold_counters")
        self.held = True

    def resume_counters(self, counters: Mapping[Family, PacketCount]) -> None:
        self.step("resume_counters")
        self.held, self.counters = False, counters

    def read_traffic(self) -> tuple[TrafficSample, ...]:
        self.step("read_traffic")
        taken, self.samples = tuple(self.samples), []
        return taken

    def inspect(self, family: Family, address: int) -> Inspection:
        self.step("inspect")
        listed = self.committed.of(family).find(address) is not None
        return Inspection(self.hooked, listed, self.allowlist.protector(family, address) is not None, 0)

    def has_state(self) -> bool:
        self.step("has_state")
        return self.present

    def close(self) -> None:
        self.step("close")
        self.closed = True


class Store(Failing):
    """A state directory, which may be lost: the next `claim` finds that out."""

    def __init__(self) -> None:
        super().__init__()
        self._empty()
        self.is_damaged = False
        self.is_lost = False

    def _empty(self) -> None:
        self.verified: VerifiedList | None = None
        self.allowlist = Allowlist()
        self.pulls = PullMemory()
        self.endpoint = EndpointMemory()
        self.settings: Mapping[str, str] | None = None

    def lose(self) -> None:
        """Somebody deletes it."""
        self._empty()
        self.is_lost = True

    def claim(self) -> bool:
        self.step("claim")
        lost, self.is_lost = self.is_lost, False
        return lost

    def save(self, value: interfaces.Saved) -> None:
        self.step(f"save {type(value).__name__}")
        match value:
            case VerifiedList():
                self.verified = value
            case Allowlist():
                self.allowlist = value
            case PullMemory():
                self.pulls = value
            case EndpointMemory():
                self.endpoint = value
            case _:
                self.settings = value

    def load_list(self) -> VerifiedList | None:
        self.step("load_list")
        if self.is_damaged:
            raise ListError("the cached list is damaged")
        return self.verified

    def load_allowlist(self) -> Allowlist:
        self.step("load_allowlist")
        return self.allowlist

    def load_pull_memory(self) -> PullMemory:
        self.step("load_pull_memory")
        return self.pulls

    def load_endpoint(self) -> EndpointMemory:
        self.step("load_endpoint")
        return self.endpoint


def dry_writer(store: Store | None = None) -> StateWriter:
    """What a dry run has in place of one that writes."""
    return StateWriter(store or Store(), Path("/state"), VirtualClock(), Changes(), writes=False)


class Manager:
    """A service manager. `lines` are what it was told, as `READY Blocking ...`; `job` is what it has in mind."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.job = ""
        self.closed = False

    def ready(self, status: str) -> None:
        self.lines.append(f"READY {status}")

    def status(self, status: str) -> None:
        self.lines.append(f"STATUS {status}")

    def reloading(self) -> None:
        self.lines.append("RELOADING")

    def ping_watchdog(self) -> None:
        self.lines.append("WATCHDOG")

    def extend_timeout(self, seconds: float) -> None:
        self.lines.append(f"EXTEND_TIMEOUT {seconds:g}")

    def stopping(self) -> None:
        self.lines.append("STOPPING")

    def pending_job(self) -> str:
        return self.job

    def close(self) -> None:
        self.closed = True


class Probes:
    """Self-tests that take some `seconds`. `results` are those of the next ones, the last for all that come after."""

    def __init__(self, *results: tuple[ProbeResult, ...], seconds: float = 1.0) -> None:
        self.results = list(results) or [WORKS]
        self.seconds = seconds
        self.asked: list[tuple[str, ...]] = []

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        self.asked.append(tuple(api_addresses))
        await asyncio.sleep(self.seconds)
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


class Packets:
    """A watch of these packets."""

    def __init__(self, sent: Iterable[Flow]) -> None:
        self._sent = frozenset(sent)
        self.is_open = False

    def __enter__(self) -> Packets:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def seen(self) -> frozenset[Flow]:
        assert self.is_open
        return self._sent


class HostConnections(Failing):
    """A host's connections, `found`, and the packets that it has `sent` in a watch."""

    def __init__(self, found: Iterable[Flow] = (), sent: Iterable[Flow] = ()) -> None:
        super().__init__()
        self.found = tuple(found)
        self.sent = tuple(sent)
        self.watches: list[Packets] = []

    def flows(self, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
        self.step("flows")
        return tuple(each for each in self.found if covers is None or covers(each.family, each.peer))

    def watch(self) -> Packets:
        self.step("watch")
        self.watches.append(Packets(self.sent))
        return self.watches[-1]


class Monitor(Failing):
    """Sees changes of the host: the test sets the signal."""

    def __init__(self, signal: interfaces.Signal) -> None:
        super().__init__()
        self.signal = signal

    def start(self) -> None:
        self.step("start")

    def stop(self) -> None:
        self.step("stop")


class Observer(Failing):
    """Finds what the test says. `looks` are the SSH ports and the list of each look."""

    def __init__(self, found: Surroundings | None = None) -> None:
        super().__init__()
        self.found = found or Surroundings((), frozenset())
        self.looks: list[tuple[tuple[int, ...], Blocklist]] = []
        self.monitors: list[Monitor] = []

    def observe(self, ssh_ports: Iterable[int], listed: Blocklist) -> Surroundings:
        self.looks.append((tuple(ssh_ports), listed))
        self.step("observe")
        return self.found

    def monitor(self, signal: interfaces.Signal) -> Monitor:
        self.step("monitor")
        self.monitors.append(Monitor(signal))
        return self.monitors[-1]


class Feed(Failing):
    """A list that takes some `seconds` to come. `present` is its version."""

    def __init__(self, name: str, *pieces: bytes, seconds: float = 0.1, interval: float = math.inf) -> None:
        super().__init__()
        self.name = name
        self.interval = interval
        self.pieces = list(pieces)
        self.seconds = seconds
        self.present: object = None
        self.remaining: int | None = None

    async def version(self) -> object:
        self.step("version")
        return self.present

    async def stream(self) -> AsyncGenerator[bytes, None]:
        self.step("stream")
        for piece in self.pieces:
            await asyncio.sleep(self.seconds)
            yield piece


class Connector:
    """A name that stands for `resolved`, where `genuine` addresses prove themselves and `hanging` ones never answer."""

    def __init__(self, *resolved: str, genuine: Iterable[str] = ()) -> None:
        self.resolved = tuple(resolved)
        self.genuine = set(genuine)
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.used: tuple[str, ...] | None = None
        self.look_ups = 0
        self.broken = False

    async def resolve(self) -> tuple[str, ...]:
        self.look_ups += 1
        return self.resolved

    async def prove(self, address: str) -> str:
        self.asked.append(address)
        if address in self.hanging:
            await asyncio.Event().wait()
        return "" if address in self.genuine else "it lies"

    def use(self, addresses: Sequence[str]) -> None:
        self.used, self.broken = tuple(addresses), False


if TYPE_CHECKING:
    # What the type checker proves: each is what the service takes it for.
    def _interfaces(signal: interfaces.Signal) -> tuple[object, ...]:
        backend: interfaces.FirewallBackend = Backend()
        store: interfaces.StateStore = Store()
        manager: interfaces.ServiceManager = Manager()
        probes: interfaces.Probes = Probes()
        connections: interfaces.Connections = HostConnections()
        observer: interfaces.HostObserver = Observer()
        feed: interfaces.Feed = Feed("")
        connector: interfaces.ApiConnector = Connector()
        changes: interfaces.Signal = Changes()
        return signal, backend, store, manager, probes, connections, observer, feed, connector, changes
