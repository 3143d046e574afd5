"""Who is allowed because requests are sent there: what proved itself, before, during and after a request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.lists.allowlist import API, PROXY, AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix, to_text
from sikkerguard.core.sikkerapi.endpoint import FRESH_SECONDS, KEPT_SECONDS, MAX_ADDRESSES, Endpoint
from sikkerguard.errors import KernelError, SettingsRefused, Unreachable
from sikkerguard.service.allowlist_tracker import AllowlistTracker
from sikkerguard.service.api_endpoint import ApiEndpoint
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.list_in_force import ListInForce
from sikkerguard.service.repair_loop import RepairLoop
from sikkerguard.service.state_writer import StateWriter
from sikkerguard.service.supervision import UnexpectedErrors
from sikkerguard.service.wakeup import Watched
from tests.unit.service.fakes import Backend, Changes, Connector, Observer, Store, dry_writer
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sikkerguard.core.interfaces import ApiConnector

_Result = TypeVar("_Result")

A, B, C, LIAR = "192.0.2.1", "192.0.2.2", "2001:db8::3", "203.0.113.66"
NAMED = Config(api_key="sk_free_demo", api_url="https://api.example.net")


class Kernel(Backend):
    """Remembers what was allowed each time."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[set[str]] = []

    def allow(self, allowlist: Allowlist) -> None:
        super().allow(allowlist)
        self.told.append({to_text(entry.family, entry.prefix) for entry in allowlist.entries})


class Guarded(Connector):
    """Each address has to be allowed when it is asked."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel

    async def prove(self, address: str) -> str:
        assert address in self._kernel.told[-1]
        return await super().prove(address)


class Bench:
    """An endpoint, with a tracker and a disk. Time goes on by `pass_time` alone, and while something waits."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = Store()
        self.kernel = Kernel()
        self.edge = Guarded(self.kernel)
        self.way = Endpoint(API, "https", "api.example.net", 443)
        self.start()

    def endpoint(self, config: Config) -> Endpoint:
        return self.way

    def connector(self, config: Config) -> ApiConnector:
        return self.edge

    def start(self) -> None:
        """As after a restart."""
        changes = Changes()
        self.disk = StateWriter(self.store, Path("/state"), self.clock, changes)
        self.tracker = AllowlistTracker(
            Observer(),
            KernelThread(self.kernel),
            Watched(NAMED),
            ListInForce(),
            self.disk,
            UnexpectedErrors(),
            changes,
        )
        self.api = ApiEndpoint(self, self.tracker, self.disk, self.clock)

        async def begin() -> None:
            saved = await self.disk.load()
            self.api.begin(NAMED, saved.endpoint)
            await self.tracker.begin(saved.allowlist)

        self.run(begin())

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        async def to_its_end() -> _Result:
            try:
                return await work
            finally:
                await self.disk.settled(5)

        return run(to_its_end())

    def open(self, config: Config = NAMED) -> bool:
        return self.run(self.api.open(config))

    def closed(self) -> str:
        with pytest.raises(Unreachable) as caught:
            self.open()
        return str(caught.value)

    def pass_time(self, seconds: float) -> None:
        self.clock.offset += seconds

    def allowed(self) -> set[str]:
        """On the allowlist, beside what every host allows."""
        found = {
            to_text(entry.family, entry.prefix)
            for entry in self.tracker.allowlist.entries
            if entry.reason == self.way.reason
        }
        # Nobody else is allowed in the kernel, and nobody else is kept.
        if self.kernel.told:
            assert {text for text in self.kernel.told[-1] if "/" not in text} - {"::1"} == found
        kept = {to_text(entry.family, entry.prefix) for entry in self.store.allowlist.entries}
        assert {text for text in kept if "/" not in text} - {"::1"} <= found
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_only_what_proves_itself_is_allowed_and_used(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = (LIAR, A, C), {A, C, B}
    assert bench.open()
    assert bench.edge.asked == [LIAR, C, A]
    assert bench.allowed() == {A, C}
    assert bench.edge.used is not None
    assert set(bench.edge.used) == {A, C}
    # Let in for the time of the question, and out again.
    assert any(LIAR in told for told in bench.kernel.told)
    # And nobody was out in between who had just proved himself.
    proved_at = next(at for at, told in enumerate(bench.kernel.told) if A in told)
    assert all(A in told for told in bench.kernel.told[proved_at:])


def test_an_address_is_not_asked_again_for_an_hour_unless_it_fails(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = (A, LIAR), {A}
    assert bench.open()
    told = len(bench.kernel.told)
    for _ in range(5):
        assert not bench.open()
    assert sorted(bench.edge.asked) == [A, LIAR]
    assert len(bench.kernel.told) == told
    bench.edge.broken = True
    assert not bench.open()
    assert sorted(bench.edge.asked) == [A, A, LIAR, LIAR]
    assert not bench.edge.broken
    bench.pass_time(FRESH_SECONDS)
    assert not bench.open()
    assert bench.edge.asked.count(A) == 3


def test_what_moved_is_found_at_once_and_where_it_was_is_forgotten(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = (A,), {A}
    bench.open()
    bench.edge.resolved, bench.edge.genuine = (B,), {B}
    assert bench.open()
    assert bench.allowed() == {B}
    assert bench.edge.used == (B,)


def test_while_nobody_proves_it_what_did_stays_for_a_day_and_after_a_restart_too(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = (A,), {A}
    bench.open()
    bench.edge.genuine, bench.edge.resolved = set(), (A, LIAR)
    bench.edge.broken = True
    sentence = bench.closed()
    assert sentence == (
        f"SikkerAPI can't be reached: no address of api.example.net is genuine ({A}: it lies, and 1 more)"
    )
    assert bench.allowed() == {A}
    bench.start()
    assert bench.allowed() == {A}
    bench.edge.asked.clear()
    bench.edge.broken = False
    for _ in range(2):
        bench.closed()
        assert bench.allowed() == {A}
    # Each time anew, though the proof of before is young.
    assert bench.edge.asked == [A, LIAR, A, LIAR]
    bench.pass_time(KEPT_SECONDS)
    bench.closed()
    assert bench.allowed() == set()
    bench.start()
    assert bench.allowed() == set()


def test_what_is_kept_for_another_api_counts_for_nothing(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = (A,), {A}
    bench.open()
    bench.way = Endpoint(API, "https", "other.example.net", 443)
    bench.edge.resolved, bench.edge.genuine = (), set()
    assert "does not resolve" in bench.closed()
    assert bench.allowed() == set()
    bench.start()
    assert bench.allowed() == set()


def test_an_allowlist_of_before_that_had_whatever_dns_said_counts_for_nothing(bench: Bench) -> None:
    bench.store.allowlist = Allowlist((AllowEntry(*parse_prefix(LIAR), API),))
    bench.start()
    assert bench.tracker.endpoint == ()
    assert LIAR not in {to_text(entry.family, entry.prefix) for entry in bench.tracker.allowlist.entries}


def test_without_dns_the_way_is_the_one_that_it_was(bench: Bench) -> None:
    assert bench.closed() == "SikkerAPI's name does not resolve; check the resolvers and SIKKER_API_URL"
    bench.edge.resolved, bench.edge.genuine = (A,), {A}
    bench.open()
    bench.edge.resolved = ()
    assert not bench.open()
    assert bench.edge.used == (A,)
    # It has to prove itself all the same, when it did so long ago.
    bench.pass_time(FRESH_SECONDS)
    bench.edge.asked.clear()
    assert not bench.open()
    assert bench.edge.asked == [A]


def test_there_is_an_end_to_what_is_tried_and_allowed(bench: Bench) -> None:
    bench.edge.resolved = tuple(f"192.0.{number >> 8}.{number & 255}" for number in range(3901))
    bench.edge.genuine = set(bench.edge.resolved)
    bench.open()
    assert len(bench.edge.asked) == len(bench.allowed()) == MAX_ADDRESSES
    assert max(len(told) for told in bench.kernel.told) <= MAX_ADDRESSES + 8


def test_who_does_not_answer_is_let_in_for_no_longer_than_the_time_limit(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine, bench.edge.hanging = (A, LIAR), {A}, {LIAR}
    assert bench.open()
    assert bench.allowed() == {A}
    bench.edge.hanging = {A, LIAR}
    bench.edge.broken = True
    assert "does not answer within 5 s" in bench.closed()
    assert bench.allowed() == {A}


def test_a_stop_in_the_middle_leaves_nobody_in(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.hanging = (LIAR,), {LIAR}

    async def stopped() -> None:
        task = asyncio.create_task(bench.api.open(NAMED))
        await asyncio.sleep(1)
        assert bench.edge.asked
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bench.run(stopped())
    assert bench.allowed() == set()


def test_a_kernel_that_refuses_is_a_request_that_can_not_be_made(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.edge.resolved, bench.edge.genuine = (A, LIAR), {A}
    bench.kernel.fail("allow", KernelError("the set is full"))
    assert bench.closed() == "SikkerAPI's addresses can't be allowed (the set is full)"
    assert not bench.edge.asked
    # It refuses to take out again: the looks do it, since it is no longer noted as wanted.
    bench.kernel.fail("allow", None, None, KernelError("the set is busy"))
    assert bench.open()
    assert "The set is busy; what was allowed for seconds is taken out by the next look" in caplog.text
    assert LIAR in bench.kernel.told[-1]
    repairs = RepairLoop(KernelThread(bench.kernel), bench.tracker, bench.clock, UnexpectedErrors(), Changes())

    async def look() -> None:
        looking = asyncio.create_task(repairs.run())
        await asyncio.sleep(6)
        looking.cancel()

    bench.run(look())
    found = {to_text(entry.family, entry.prefix) for entry in bench.kernel.allowlist.entries}
    assert LIAR not in found
    assert A in found


def test_pulls_and_reports_at_once_ask_once(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = (A,), {A}

    async def both() -> list[bool]:
        return list(await asyncio.gather(bench.api.open(NAMED), bench.api.open(NAMED)))

    assert bench.run(both()) == [True, False]
    assert bench.edge.asked == [A]


def test_a_disk_that_refuses_is_told_and_no_more(bench: Bench) -> None:
    bench.store.fail("save EndpointMemory", OSError("no room"))
    bench.edge.resolved, bench.edge.genuine = (A,), {A}
    assert bench.open()
    assert bench.allowed() == {A}
    assert "can't be written (no room): blocking goes on" in bench.disk.trouble


def test_a_dry_run_finds_it_and_keeps_nothing(bench: Bench) -> None:
    bench.api = ApiEndpoint(bench, bench.tracker, dry_writer(bench.store), bench.clock)
    bench.edge.resolved, bench.edge.genuine = (A,), {A}
    assert bench.open()
    assert bench.allowed() == {A}
    assert "save EndpointMemory" not in bench.store.steps


@pytest.mark.parametrize("reason", [API, PROXY])
def test_an_address_that_the_operator_wrote_is_allowed_as_it_is(bench: Bench, reason: str) -> None:
    bench.way = Endpoint(reason, "http", A, 3128)
    bench.start()
    assert bench.allowed() == {A}
    assert not bench.open()
    assert not bench.edge.asked
    assert not bench.edge.look_ups
    assert [entry.reason for entry in bench.tracker.endpoint] == [reason]


def test_a_proxy_by_its_name_has_to_be_there(bench: Bench) -> None:
    bench.way = Endpoint(PROXY, "http", "proxy.example.net", 3128)
    bench.edge.resolved, bench.edge.genuine = (LIAR, A), {A}
    assert bench.open()
    assert bench.allowed() == {A}
    bench.edge.genuine = set()
    bench.edge.broken = True
    assert "no address of the proxy proxy.example.net port 3128 is genuine" in bench.closed()
    assert bench.allowed() == {A}
    bench.edge.resolved = ()
    bench.way = Endpoint(PROXY, "http", "elsewhere.example.net", 3128)
    assert "the proxy's name does not resolve" in bench.closed()


def test_where_the_settings_forbid_to_ask_nobody_is_asked(bench: Bench) -> None:
    for config in (
        Config(api_key="sk_free_key", api_url="http://api.example.net"),
        Config(api_url="https://api.example.net", key_missing="there is no key"),
    ):
        # Only a person can change that.
        with pytest.raises(SettingsRefused) as refused:
            bench.open(config)
        assert str(refused.value) == config.refusal
    assert (bench.edge.look_ups, bench.edge.asked) == (0, [])
