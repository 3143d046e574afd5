"""The parts of the service with fakes for all edges, and what tests of several parts ask of them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.config.settings import Config
from sikkerguard.core.host.surroundings import Gateway, Surroundings
from sikkerguard.core.lists.allowlist import API, GATEWAY, AllowEntry
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.sikkerapi.endpoint import Endpoint
from sikkerguard.service.composition import Composition
from tests.unit.service.fakes import Backend, Connector, Feed, HostConnections, Manager, Observer, Probes, Store
from tests.unit.service.virtual_time import VirtualClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from sikkerguard.core.interfaces import KernelLog, ReportClient, ReportOutbox, TrafficRecords
    from sikkerguard.errors import ConfigError

CROWD = [f"198.51.{number >> 8}.{number & 255}" for number in range(100 << 8, (100 << 8) + 2000)]
FILE = Path("/nowhere/mine.txt")
AT_HOME = Surroundings(
    (AllowEntry(*parse_prefix("192.0.2.1"), GATEWAY),), frozenset({Gateway(Family.V4, "192.0.2.1", 1)})
)
NOWHERE = Surroundings((), frozenset())


def entries(*texts: str, reason: str = "own address") -> tuple[AllowEntry, ...]:
    """These, allowed for this reason."""
    return tuple(AllowEntry(*parse_prefix(text), reason) for text in texts)


def lines(*entries: str) -> bytes:
    """A list of these."""
    return "".join(f"{entry}\n" for entry in entries).encode()


class Blacklist(Feed):
    """SikkerAPI's list. `held` keeps it from coming while it is not set; `scores` are those that it was made with."""

    def __init__(self) -> None:
        super().__init__(SIKKERAPI, lines(*CROWD))
        self.held = asyncio.Event()
        self.held.set()
        self.scores: list[int] = []

    async def stream(self) -> AsyncGenerator[bytes, None]:
        await self.held.wait()
        async for piece in super().stream():
            yield piece


class File(Feed):
    """The owner's file; `restless` gives it another version each time that it is looked at."""

    def __init__(self) -> None:
        super().__init__(LOCAL_FILE, seconds=0.0)
        self.version_number = 0
        self.restless = False

    def write(self, content: bytes) -> None:
        """Another version."""
        self.pieces = [content]
        self.version_number += 1

    async def version(self) -> object:
        self.version_number += self.restless
        self.step("version")
        return self.version_number


class FakeAdapters:
    """All edges in memory. By default the host has a gateway, and SikkerAPI is at an address that needs no proof."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.backend = Backend()
        self.store = Store()
        self.observer = Observer(AT_HOME)
        self.connections = HostConnections()
        self.records: TrafficRecords | None = None
        self.outbox: ReportOutbox | None = None
        self.manager = Manager()
        self.api = Endpoint(API, "https", "203.0.113.80", 443)
        self.sikkerapi_connector = Connector()
        self.sikkerapi = Blacklist()
        self.file = File()
        self.tests = Probes()
        self.stamp: object = 0
        self.lost_lines = 0

    def endpoint(self, config: Config) -> Endpoint:
        return self.api

    def connector(self, config: Config) -> Connector:
        return self.sikkerapi_connector

    def blacklist(self, config: Config) -> Blacklist:
        self.sikkerapi.scores.append(config.score_min)
        self.sikkerapi.interval = config.pull_interval
        return self.sikkerapi

    def local_list(self, path: Path) -> File:
        return self.file

    def reports(self, config: Config) -> ReportClient:
        raise AssertionError("there is no outbox")

    def probes(self, config: Config) -> Probes:
        return self.tests

    def kernel_log(self, config: Config) -> KernelLog | None:
        return None

    def file_stamp(self, path: Path) -> object:
        return self.stamp

    def lost_log_lines(self) -> int:
        return self.lost_lines


class Reader:
    """Gives these settings, or raises what is the matter with them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.error: ConfigError | None = None

    def load(self) -> Config:
        if self.error is not None:
            raise self.error
        return self.config

    def files(self) -> tuple[Path, ...]:
        return (Path("/nowhere/sikkerguard.env"),)


class Assembly:
    """The parts over `adapters`. `change` has other settings read with the next reload."""

    def __init__(self, adapters: FakeAdapters, config: Config) -> None:
        self.adapters = adapters
        self.reader = Reader(config)
        self.parts = Composition(config, adapters, self.reader)

    def change(self, **settings: object) -> None:
        """Write these settings."""
        self.reader.config = replace(self.reader.config, **settings)  # type: ignore[arg-type]

    async def begin(self) -> None:
        """Do what a start does before its loops run."""
        parts = self.parts
        saved = await parts.disk.load()
        parts.endpoint.begin(self.reader.config, saved.endpoint)
        await parts.tracker.begin(saved.allowlist)
        parts.runner.load(saved)
        if parts.lists.value is None:
            parts.lists.found = await parts.kernel.read_committed()
        await parts.repairs.adopt(parts.lists.blocklist, asyncio.Event())
        parts.runner.show_adopted()

    def pause(self) -> float:
        """Seconds until the next pull."""
        at = self.parts.pulls.state.next_pull_at
        assert at is not None
        return at - self.adapters.clock.wall()

    def failure(self) -> str:
        """Why the last pull failed."""
        return self.parts.pulls.state.failure

    def blocked(self) -> int:
        """Entries that the kernel blocks."""
        return len(self.adapters.backend.committed)

    async def until(self, condition: Callable[[], object], seconds: float = 100.0) -> None:
        """Wait in steps of a tenth of a second."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.1)

    async def pulled(self, times: int) -> None:
        """Wait until so many pulls have ended."""
        await self.until(lambda: self.parts.pulls.state.pulls >= times and not self.parts.pulls.state.pulling)

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """Run the pull loop, and the watch of the file where one is named."""
        tasks = [asyncio.create_task(self.parts.pulls.run())]
        if self.reader.config.custom_blacklist is not None:
            tasks.append(asyncio.create_task(self.parts.local_file.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, asyncio.CancelledError), outcome
            await self.parts.disk.settled(5)


def assembled(adapters: FakeAdapters | None = None, **settings: object) -> Assembly:
    """The parts, to be made within the running loop."""
    config = replace(Config(api_key="sk_free_x"), **settings)  # type: ignore[arg-type]
    return Assembly(adapters or FakeAdapters(), config)
