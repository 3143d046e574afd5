"""The trial without a kernel: what is asked of it, in which order, and what becomes of a failure."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.host.connections import CONNECTIONS
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.selftest import Outcome, ProbeResult
from sikkerguard.edges.kernel.dry_run import DryRunBackend
from sikkerguard.errors import HeldBackError, KernelError, SelfTestError
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.trial import Trial
from tests.unit.core.host.test_connections import INCOMING, flow, own
from tests.unit.core.lists.test_admission import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
    from typing import Any

    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.net.family import Family

UPSTREAM, INNOCENT = "203.0.113.53", "198.51.100.9"
DNS = "DNS by 127.0.0.1"


class Kernel(DryRunBackend):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.staged = Blocklist()
        self.committed: Blocklist | None = None

    def stage(self, blocklist: Blocklist) -> None:
        self.steps.append("stage")
        self.staged = blocklist

    def begin_trial(self) -> None:
        self.steps.append("begin")

    def commit(self) -> None:
        self.steps.append("commit")
        self.committed = self.staged

    def rollback(self) -> None:
        self.steps.append("rollback")


class Unwatched:
    """Packets that leave, seen by nobody but this."""

    def __init__(self, sent: Iterable[Flow]) -> None:
        self._sent = frozenset(sent)

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seen(self) -> frozenset[Flow]:
        return self._sent


class Host:
    """A host whose DNS works unless its upstream is blocked by what is on trial."""

    def __init__(
        self, kernel: Kernel, flows: Iterable[Flow], *, recovers: bool = True, sent: Iterable[Flow] = ()
    ) -> None:
        self._sent = tuple(sent)
        self._kernel = kernel
        self._flows = tuple(flows)
        self._recovers = recovers
        self._failed = False
        self.refuses = False
        self.questions = 0

    def flows(self, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
        if self.refuses:
            raise KernelError("connections can't be read")
        return tuple(each for each in self._flows if covers is None or covers(each.family, each.peer))

    def watch(self) -> Unwatched:
        return Unwatched(self._sent)

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        self.questions += 1
        await asyncio.sleep(0.01)
        blocked = self._kernel.steps[-1:] == ["begin"] and self._kernel.staged.v4.find(flow(UPSTREAM).peer) is not None
        self._failed |= blocked
        fails = blocked or (self._failed and not self._recovers)
        outcome = Outcome.FAILED if fails else Outcome.PASSED
        return (ProbeResult(DNS, outcome, "did not resolve in 3 tries" if fails else "resolves"),)


@contextmanager
def dropping(*sources: bytes) -> Iterator[Collection[bytes]]:
    yield set(sources)


def perform(
    kernel: Kernel, host: Host, work: Callable[[Trial], Coroutine[Any, Any, object]], *dropped: bytes
) -> object:
    async def run() -> object:
        return await work(
            Trial(kernel, KernelThread(pool), host, host, lambda: dropping(*dropped), recovery_seconds=0.0)
        )

    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(run())


def test_a_list_that_harms_nobody_is_committed() -> None:
    kernel = Kernel()
    candidate = listing(INNOCENT)
    assert perform(kernel, Host(kernel, ()), lambda trial: trial.run(candidate, Blocklist(), ())) is None
    assert kernel.steps == ["stage", "begin", "commit"]
    assert kernel.committed == candidate


def test_what_cuts_off_an_upstream_is_tried_again_without_it() -> None:
    kernel = Kernel()
    host = Host(kernel, [flow(UPSTREAM, port=53, established=False, unanswered=True), flow("203.0.113.1", INCOMING)])

    async def work(trial: Trial) -> None:
        explanation = await trial.run(listing(UPSTREAM, INNOCENT, "203.0.113.1"), Blocklist(), ())
        assert explanation is not None
        assert [str(each) for each in explanation.left_out] == [UPSTREAM]
        assert explanation.left_out[0].test == DNS
        assert kernel.steps == ["stage", "begin", "rollback"]
        await trial.run_again(listing(INNOCENT, "203.0.113.1"), Blocklist(), explanation, ())

    perform(kernel, host, work)
    assert kernel.steps == ["stage", "begin", "rollback", "stage", "begin", "commit"]
    assert kernel.committed == listing(INNOCENT, "203.0.113.1")


def test_what_the_host_called_before_is_left_out_only_where_it_may_carry_what_failed() -> None:
    kernel = Kernel()
    # Answered, and older than the trial: a connection of TCP, and a tunnel.
    tunnel = replace(flow("198.51.100.20", port=51820), protocol=17)
    host = Host(kernel, [flow("198.51.100.21"), tunnel, flow(UPSTREAM, unanswered=True)])

    async def work(trial: Trial) -> None:
        candidate = listing(UPSTREAM, "198.51.100.20", "198.51.100.21")
        explanation = await trial.run(candidate, Blocklist(), ())
        assert explanation is not None
        assert explanation.shown() == f"{UPSTREAM}, 198.51.100.20"

    perform(kernel, host, work)


def test_what_only_packets_tell_of_is_left_out_too() -> None:
    kernel = Kernel()
    host = Host(kernel, (), sent=[flow(UPSTREAM, port=53, established=False), flow("192.0.2.9")])

    async def work(trial: Trial) -> None:
        explanation = await trial.run(listing(UPSTREAM, INNOCENT), Blocklist(), ())
        assert explanation is not None
        assert explanation.shown() == UPSTREAM

    perform(kernel, host, work)


def test_whoever_only_sends_packets_is_named_and_not_left_out() -> None:
    kernel = Kernel()
    host = Host(kernel, [flow(UPSTREAM, INCOMING, 53), flow("203.0.113.9")])
    with pytest.raises(SelfTestError) as failed:
        perform(
            kernel,
            host,
            lambda trial: trial.run(listing(UPSTREAM, INNOCENT), Blocklist(), ()),
            b"\xcb\x00\x71\x35",  # the upstream
            b"\xcb\x00\x71\x09",  # not of the candidate
        )
    assert str(failed.value) == (
        f"the self-test failed: {DNS} did not resolve in 3 tries; it dropped packets of {UPSTREAM}"
    )
    assert kernel.steps == ["stage", "begin", "rollback"]
    assert kernel.committed is None


class Moving(Host):
    """A host whose gateway becomes another one in each of the first `moves` trials."""

    def __init__(self, kernel: Kernel, moves: int) -> None:
        super().__init__(kernel, ())
        self._moves = moves
        self._gateway = 1

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        if self._kernel.steps[-1:] == ["begin"] and self._gateway <= self._moves:
            self._gateway += 1
        gateway = ProbeResult(f"gateway 192.0.2.{self._gateway} by ping", Outcome.PASSED, "answered")
        return (*await super().run(api_addresses), gateway)


def test_a_gateway_that_becomes_another_one_in_the_trial_does_not_speak_against_the_list() -> None:
    kernel = Kernel()
    candidate = listing(INNOCENT)
    assert perform(kernel, Moving(kernel, 2), lambda trial: trial.run(candidate, Blocklist(), ())) is None
    assert kernel.steps == [*["stage", "begin", "rollback"] * 2, "stage", "begin", "commit"]
    with pytest.raises(SelfTestError, match=r"192\.0\.2\.4 by ping could no longer be tested"):
        perform(kernel, Moving(kernel, 9), lambda trial: trial.run(candidate, Blocklist(), ()))
    assert kernel.steps[-1] == "rollback"


def test_a_second_failure_is_final() -> None:
    kernel = Kernel()
    host = Host(kernel, [flow(INNOCENT, unanswered=True)])

    async def work(trial: Trial) -> None:
        explanation = await trial.run(listing(UPSTREAM, INNOCENT), Blocklist(), ())
        assert explanation is not None
        await trial.run_again(listing(UPSTREAM), Blocklist(), explanation, ())

    with pytest.raises(SelfTestError, match=f"also without {INNOCENT}"):
        perform(kernel, host, work)
    assert kernel.committed is None
    assert kernel.steps[-1] == "rollback"


def test_what_goes_on_failing_without_the_list_proves_nothing_of_it() -> None:
    kernel = Kernel()
    host = Host(kernel, [flow(UPSTREAM, unanswered=True)], recovers=False)

    async def work(trial: Trial) -> None:
        explanation = await trial.run(listing(UPSTREAM, INNOCENT), Blocklist(), ())
        assert explanation is not None
        await trial.run_again(listing(INNOCENT), Blocklist(), explanation, ())

    with pytest.raises(SelfTestError, match="goes on failing without the new list"):
        perform(kernel, host, work)
    assert kernel.committed is None


def test_connections_that_cannot_be_read_hold_nothing_up() -> None:
    kernel = Kernel()
    host = Host(kernel, ())
    host.refuses = True
    candidate = listing(INNOCENT)

    async def work(trial: Trial) -> None:
        await trial.check_connections(candidate, Blocklist(), frozenset(), sessions=0, accept=False)
        assert await trial.run(candidate, Blocklist(), ()) is None

    perform(kernel, host, work)
    assert kernel.committed == candidate


@pytest.mark.parametrize(
    ("committed", "held_back", "accept", "refused"),
    [
        (Blocklist(), frozenset(), False, True),
        (None, frozenset(), False, False),
        (Blocklist(), frozenset({CONNECTIONS}), False, False),
        (Blocklist(), frozenset(), True, False),
        (listing("198.51.100.0/28"), frozenset(), False, False),
    ],
    ids=["later list", "first list", "said before", "accepted", "blocked before"],
)
def test_a_list_that_cuts_the_host_s_own_connections_is_held_back_once(
    committed: Blocklist | None, held_back: frozenset[str], accept: bool, refused: bool
) -> None:
    kernel = Kernel()
    host = Host(kernel, own(6))

    async def work(trial: Trial) -> None:
        candidate = listing("198.51.100.0/28")
        await trial.check_connections(candidate, committed, held_back, sessions=0, accept=accept)

    if refused:
        with pytest.raises(HeldBackError):
            perform(kernel, host, work)
    else:
        perform(kernel, host, work)
    assert kernel.steps == []
