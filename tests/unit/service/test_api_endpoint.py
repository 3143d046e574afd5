"""Who is allowed because requests are sent there: what proved itself, before, during and after a request."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.core.host.surroundings import Surroundings
from sikkerguard.core.lists.allowlist import API, PROXY, Allowlist
from sikkerguard.core.net.address import to_text
from sikkerguard.core.sikkerapi.endpoint import FRESH_SECONDS, KEPT_SECONDS, MOST, Endpoint
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import FetchError, KernelError
from sikkerguard.service.api_endpoint import ApiEndpoint
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.repair_loop import Keeper
from sikkerguard.service.state_writer import StateWriter
from sikkerguard.service.supervision import Unknown

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from pathlib import Path

    from sikkerguard.core.interfaces import FirewallBackend


NOW = 1_700_000_000.0
A, B, C, LIAR = "192.0.2.1", "192.0.2.2", "2001:db8::3", "203.0.113.66"
NAMED = Config(api_key="sk_free_demo", api_url="https://api.example.net")


class Allowing:
    """Of the kernel just what is allowed, each time that it is told. `refusals` are raised first."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []
        self.refusals: list[KernelError | None] = []

    def allow(self, allowlist: Allowlist) -> None:
        if self.refusals and (refusal := self.refusals.pop(0)):
            raise refusal
        self.told.append({to_text(entry.family, entry.prefix) for entry in allowlist.entries})


class Fake:
    """An edge whose name stands for `resolved`, and where `genuine` addresses prove themselves; `hanging` ones answer
    nothing. Each of them has to be allowed when it is asked."""

    def __init__(self, kernel: Allowing) -> None:
        self.kernel = kernel
        self.resolved: Sequence[str] = ()
        self.genuine: set[str] = set()
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.used: tuple[str, ...] | None = None
        self.look_ups = 0
        self.broken = False

    async def resolve(self) -> tuple[str, ...]:
        self.look_ups += 1
        return tuple(self.resolved)

    async def prove(self, address: str) -> str:
        assert address in self.kernel.told[-1]
        self.asked.append(address)
        if address in self.hanging:
            await asyncio.Event().wait()
        return "" if address in self.genuine else "it lies"

    def use(self, addresses: Sequence[str]) -> None:
        self.used, self.broken = tuple(addresses), False


class Bench:
    """A door, with a keeper and a disk."""

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self.now = NOW
        self.store = store
        self.kernel = Allowing()
        self.edge = Fake(self.kernel)
        self.way = Endpoint(API, "https", "api.example.net", 443)
        self.owner = KernelThread(executor)
        self.complaints: list[str] = []
        self.start()

    def start(self) -> None:
        """As after a restart."""
        self.disk = StateWriter(self.store, self.store.directory, self.complaints.append)
        self.keeper = Keeper(
            cast("FirewallBackend", self.kernel),
            self.owner,
            self.disk,
            lambda ways: Surroundings(tuple(ways), frozenset()),
            lambda changed: None,
            lambda: None,
            lambda **changes: None,
            lambda: None,
            Unknown(),
        )
        self.door = ApiEndpoint(
            lambda config: self.way, lambda config: self.edge, self.keeper, self.disk, lambda: self.now, 0.1
        )
        self.run(self.disk.load())
        self.door.begin(NAMED)
        self.run(self.keeper.begin(self.store.load_allowlist()))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def to_its_end() -> Any:
            try:
                return await work
            finally:
                await self.disk.settled(5)

        return asyncio.run(to_its_end())

    def open(self, config: Config = NAMED) -> bool:
        changed: bool = self.run(self.door.open(config))
        return changed

    def closed(self) -> str:
        with pytest.raises(FetchError) as caught:
            self.open()
        assert caught.value.retryable
        return str(caught.value)

    def allowed(self) -> set[str]:
        """On the allowlist, beside what every host allows."""
        found = {
            to_text(entry.family, entry.prefix)
            for entry in self.keeper.allowlist.entries
            if entry.reason == self.way.reason
        }
        # Nobody else is allowed in the kernel, and nobody else is kept.
        if self.kernel.told:
            assert {text for text in self.kernel.told[-1] if "/" not in text} - {"::1"} == found
        kept = {to_text(entry.family, entry.prefix) for entry in self.store.load_allowlist().entries}
        assert {text for text in kept if "/" not in text} - {"::1"} <= found
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = Store(tmp_path / "state")
    store.prepare()
    with ThreadPoolExecutor(1) as executor:
        yield Bench(store, executor)
    store.close()


def test_only_what_proves_itself_is_allowed_and_used(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = [LIAR, A, C], {A, C, B}
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
    bench.edge.resolved, bench.edge.genuine = [A, LIAR], {A}
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
    bench.now += FRESH_SECONDS
    assert not bench.open()
    assert bench.edge.asked.count(A) == 3


def test_what_moved_is_found_at_once_and_where_it_was_is_forgotten(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = [A], {A}
    bench.open()
    bench.edge.resolved, bench.edge.genuine = [B], {B}
    assert bench.open()
    assert bench.allowed() == {B}
    assert bench.edge.used == (B,)


def test_while_nobody_proves_it_what_did_stays_for_a_day_and_after_a_restart_too(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = [A], {A}
    bench.open()
    bench.edge.genuine, bench.edge.resolved = set(), [A, LIAR]
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
    bench.now = NOW + KEPT_SECONDS
    bench.closed()
    assert bench.allowed() == set()
    bench.start()
    assert bench.allowed() == set()


def test_what_is_kept_for_another_api_counts_for_nothing(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = [A], {A}
    bench.open()
    bench.way = Endpoint(API, "https", "other.example.net", 443)
    bench.edge.resolved, bench.edge.genuine = [], set()
    assert "does not resolve" in bench.closed()
    assert bench.allowed() == set()
    bench.start()
    assert bench.allowed() == set()


def test_an_allowlist_of_before_that_had_whatever_dns_said_counts_for_nothing(bench: Bench) -> None:
    (bench.store.directory / "allowlist.json").write_text(json.dumps([[LIAR, API]]))
    bench.start()
    assert bench.keeper.ways == ()
    assert LIAR not in {to_text(entry.family, entry.prefix) for entry in bench.keeper.allowlist.entries}


def test_without_dns_the_way_is_the_one_that_it_was(bench: Bench) -> None:
    assert bench.closed() == "SikkerAPI's name does not resolve; check the resolvers and SIKKER_API_URL"
    bench.edge.resolved, bench.edge.genuine = [A], {A}
    bench.open()
    bench.edge.resolved = []
    assert not bench.open()
    assert bench.edge.used == (A,)
    # It has to prove itself all the same, when it did so long ago.
    bench.now += FRESH_SECONDS
    bench.edge.asked.clear()
    assert not bench.open()
    assert bench.edge.asked == [A]


def test_there_is_an_end_to_what_is_tried_and_allowed(bench: Bench) -> None:
    bench.edge.resolved = [f"192.0.{number >> 8}.{number & 255}" for number in range(3901)]
    bench.edge.genuine = set(bench.edge.resolved)
    bench.open()
    assert len(bench.edge.asked) == len(bench.allowed()) == MOST
    assert max(len(told) for told in bench.kernel.told) <= MOST + 8


def test_who_does_not_answer_is_let_in_for_no_longer_than_the_time_limit(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine, bench.edge.hanging = [A, LIAR], {A}, {LIAR}
    assert bench.open()
    assert bench.allowed() == {A}
    bench.edge.hanging = {A, LIAR}
    bench.edge.broken = True
    assert "does not answer within 0.1 s" in bench.closed()
    assert bench.allowed() == {A}


def test_a_stop_in_the_middle_leaves_nobody_in(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.hanging = [LIAR], {LIAR}

    async def stopped() -> None:
        task = asyncio.create_task(bench.door.open(NAMED))
        while not bench.edge.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bench.run(stopped())
    assert bench.allowed() == set()


def test_a_kernel_that_refuses_is_a_request_that_can_not_be_made(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.edge.resolved, bench.edge.genuine = [A, LIAR], {A}
    bench.kernel.refusals = [KernelError("the set is full")]
    assert bench.closed() == "SikkerAPI's addresses can't be allowed (the set is full)"
    assert not bench.edge.asked
    # It refuses to take out again: the looks do it, since it is no longer noted as wanted.
    bench.kernel.refusals = [None, None, KernelError("the set is busy")]
    assert bench.open()
    assert "The set is busy; what was allowed for seconds is taken out by the next look" in caplog.text
    assert LIAR in bench.kernel.told[-1]
    settled: list[Allowlist] = []

    def settle(allowlist: Allowlist) -> tuple[()]:
        settled.append(allowlist)
        return ()

    async def look() -> None:
        task = asyncio.create_task(bench.keeper.look_forever())
        bench.keeper.notice()
        while not settled:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    bench.kernel.settle = settle  # type: ignore[attr-defined]
    bench.run(look())
    found = {to_text(entry.family, entry.prefix) for entry in settled[0].entries}
    assert LIAR not in found
    assert A in found


def test_pulls_and_reports_at_once_ask_once(bench: Bench) -> None:
    bench.edge.resolved, bench.edge.genuine = [A], {A}

    async def both() -> list[bool]:
        return list(await asyncio.gather(bench.door.open(NAMED), bench.door.open(NAMED)))

    assert bench.run(both()) == [True, False]
    assert bench.edge.asked == [A]


def test_a_disk_that_refuses_is_told_and_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(known: dict[str, Any]) -> None:
        raise OSError("no room")

    monkeypatch.setattr(bench.store, "save_ways", refuse)
    bench.edge.resolved, bench.edge.genuine = [A], {A}
    assert bench.open()
    assert bench.allowed() == {A}
    (complaint,) = bench.complaints
    assert "can't be written (no room): blocking goes on" in complaint


@pytest.mark.parametrize("reason", [API, PROXY])
def test_an_address_that_the_operator_wrote_is_allowed_as_it_is(bench: Bench, reason: str) -> None:
    bench.way = Endpoint(reason, "http", A, 3128)
    bench.start()
    assert bench.allowed() == {A}
    assert not bench.open()
    assert not bench.edge.asked
    assert not bench.edge.look_ups
    assert [entry.reason for entry in bench.keeper.ways] == [reason]


def test_a_proxy_by_its_name_has_to_be_there(bench: Bench) -> None:
    bench.way = Endpoint(PROXY, "http", "proxy.example.net", 3128)
    bench.edge.resolved, bench.edge.genuine = [LIAR, A], {A}
    assert bench.open()
    assert bench.allowed() == {A}
    bench.edge.genuine = set()
    bench.edge.broken = True
    assert "no address of the proxy proxy.example.net port 3128 is genuine" in bench.closed()
    assert bench.allowed() == {A}
    bench.edge.resolved = []
    bench.way = Endpoint(PROXY, "http", "elsewhere.example.net", 3128)
    assert "the proxy's name does not resolve" in bench.closed()


def test_where_the_settings_forbid_to_ask_nobody_is_asked(bench: Bench) -> None:
    for config in (
        Config(api_key="sk_free_key", api_url="http://api.example.net"),
        Config(api_url="https://api.example.net", key_missing="there is no key"),
    ):
        with pytest.raises(FetchError) as refused:
            bench.open(config)
        assert str(refused.value) == config.refusal
        # Only a person can change that: it is tried again as seldom as a key that is refused.
        assert not refused.value.retryable
    assert (bench.edge.look_ups, bench.edge.asked) == (0, [])
