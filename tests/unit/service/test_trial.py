"""The trial without a kernel: what is asked of it, in which order, and what becomes of a failure."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.selftest import Outcome, ProbeResult
from sikkerguard.errors import BusyError, KernelError, SelfTestError
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.trial import SelfTest, Trial
from tests.unit.core.host.test_connections import INCOMING, flow
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.fakes import Backend, Changes, HostConnections
from tests.unit.service.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sikkerguard.core.host.connections import Explanation
    from sikkerguard.core.host.flows import Flow

UPSTREAM, INNOCENT = "203.0.113.53", "198.51.100.9"
DNS = "DNS by 127.0.0.1"
STEPS = ["stage", "begin_trial", "commit"]
FAILED = ["stage", "begin_trial", "rollback"]


class Host:
    """A host whose DNS works unless its upstream is blocked by what is on trial, with everything that a trial needs.
    A self-test takes some `seconds`."""

    def __init__(
        self,
        flows: Iterable[Flow] = (),
        *,
        recovers: bool = True,
        sent: Iterable[Flow] = (),
        dropped: Iterable[bytes] = (),
    ) -> None:
        self.kernel = Backend(Blocklist())
        self.connections = HostConnections(flows, sent)
        self.changes = Changes()
        self.questions = 0
        self.seconds = 1.0
        self.error: Exception | None = None
        self._recovers = recovers
        self._failed = False
        self._dropped = frozenset(dropped)
        self.is_watched = False
        self.trial = Trial(KernelThread(self.kernel), self.connections, self, self.changes)
        self.test = SelfTest(self, ("192.0.2.1",))

    @contextmanager
    def watch_sources(self) -> Iterator[Collection[bytes]]:
        self.is_watched = True
        try:
            yield self._dropped
        finally:
            self.is_watched = False

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        assert tuple(api_addresses) == ("192.0.2.1",)
        self.questions += 1
        if self.kernel.on_trial:
            assert self.trial.running
            assert self.is_watched
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        staged = self.kernel.staged
        blocked = self.kernel.on_trial and staged is not None and staged.v4.find(flow(UPSTREAM).peer) is not None
        self._failed |= blocked
        fails = blocked or (self._failed and not self._recovers)
        outcome = Outcome.FAILED if fails else Outcome.PASSED
        return (ProbeResult(DNS, outcome, "did not resolve in 3 tries" if fails else "resolves"),)

    async def tries(self, *candidate: str, committed: Blocklist | None = None) -> Explanation | None:
        return await self.trial.run(listing(*candidate), committed or Blocklist(), self.test)

    async def explains(self, *candidate: str) -> Explanation:
        explanation = await self.tries(*candidate)
        assert explanation is not None
        return explanation

    async def tries_again(self, explanation: Explanation, *candidate: str) -> None:
        await self.trial.run_again(listing(*candidate), Blocklist(), explanation, self.test)

    @property
    def is_clean(self) -> bool:
        """Whether nothing of a trial is left."""
        watches = self.connections.watches
        return (
            not self.trial.running
            and not self.kernel.on_trial
            and self.kernel.staged is None
            and not self.is_watched
            and not any(watch.is_open for watch in watches)
        )


def test_a_list_that_harms_nobody_is_committed() -> None:
    host = Host()
    assert run(host.tries(INNOCENT)) is None
    assert host.kernel.steps == STEPS
    assert host.kernel.committed == listing(INNOCENT)
    assert host.is_clean


def test_a_trial_is_renewed_for_as_long_as_the_self_test_takes() -> None:
    host = Host()
    host.seconds = 6.5
    assert run(host.tries(INNOCENT)) is None
    # The kernel forgets it after ten seconds.
    assert host.kernel.steps == ["stage", "begin_trial", *["renew_trial"] * 3, "commit"]


def test_what_cuts_off_an_upstream_is_tried_again_without_it() -> None:
    host = Host([flow(UPSTREAM, port=53, established=False, unanswered=True), flow("203.0.113.1", INCOMING)])

    async def work() -> None:
        explanation = await host.explains(UPSTREAM, INNOCENT, "203.0.113.1")
        assert [str(each) for each in explanation.left_out] == [UPSTREAM]
        assert explanation.left_out[0].test == DNS
        assert host.kernel.steps == FAILED
        assert host.is_clean
        await host.tries_again(explanation, INNOCENT, "203.0.113.1")

    run(work())
    assert host.kernel.steps == [*FAILED, *STEPS]
    assert host.kernel.committed == listing(INNOCENT, "203.0.113.1")


def test_what_the_host_called_before_is_left_out_only_where_it_may_carry_what_failed() -> None:
    # Answered, and older than the trial: a connection of TCP, and a tunnel.
    tunnel = replace(flow("198.51.100.20", port=51820), protocol=17)
    host = Host([flow("198.51.100.21"), tunnel, flow(UPSTREAM, unanswered=True)])
    explanation = run(host.explains(UPSTREAM, "198.51.100.20", "198.51.100.21"))
    assert explanation.shown() == f"{UPSTREAM}, 198.51.100.20"


def test_what_only_packets_tell_of_is_left_out_too() -> None:
    host = Host(sent=[flow(UPSTREAM, port=53, established=False), flow("192.0.2.9")])
    assert run(host.explains(UPSTREAM, INNOCENT)).shown() == UPSTREAM
    (watch,) = host.connections.watches
    assert not watch.is_open


def test_whoever_only_sends_packets_is_named_and_not_left_out() -> None:
    host = Host(
        [flow(UPSTREAM, INCOMING, 53), flow("203.0.113.9")],
        dropped=[
            b"\xcb\x00\x71\x35",  # the upstream
            b"\xcb\x00\x71\x09",  # not of the candidate
        ],
    )
    with pytest.raises(SelfTestError) as failed:
        run(host.tries(UPSTREAM, INNOCENT))
    assert str(failed.value) == (
        f"the self-test failed: {DNS} did not resolve in 3 tries; it dropped packets of {UPSTREAM}"
    )
    assert host.kernel.steps == FAILED
    assert host.kernel.committed == Blocklist()


def test_of_many_sources_of_dropped_packets_the_first_ones_are_named() -> None:
    host = Host(dropped=[bytes([198, 51, 100, number]) for number in range(20, 32)])
    with pytest.raises(SelfTestError, match=r"packets of 198\.51\.100\.20, .*, 198\.51\.100\.27, and 4 more$"):
        run(host.tries(UPSTREAM, "198.51.100.0/24"))


class Moving(Host):
    """A host whose gateway becomes another one in each of the first `moves` trials."""

    def __init__(self, moves: int) -> None:
        super().__init__()
        self._moves = moves
        self._gateway = 1

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        if self.kernel.on_trial and self._gateway <= self._moves:
            self._gateway += 1
        gateway = ProbeResult(f"gateway 192.0.2.{self._gateway} by ping", Outcome.PASSED, "answered")
        return (*await super().run(api_addresses), gateway)


def test_a_gateway_that_becomes_another_one_in_the_trial_does_not_speak_against_the_list() -> None:
    host = Moving(2)
    assert run(host.tries(INNOCENT)) is None
    assert host.kernel.steps == [*FAILED * 2, *STEPS]


def test_a_host_that_never_stays_the_same_is_not_tried_for_ever() -> None:
    host = Moving(9)
    with pytest.raises(SelfTestError, match=r"192\.0\.2\.4 by ping could no longer be tested"):
        run(host.tries(INNOCENT))
    assert host.kernel.steps == FAILED * 4


def test_a_second_failure_is_final() -> None:
    host = Host([flow(INNOCENT, unanswered=True)])

    async def work() -> None:
        await host.tries_again(await host.explains(UPSTREAM, INNOCENT), UPSTREAM)

    with pytest.raises(SelfTestError, match=f"also without {INNOCENT}"):
        run(work())
    assert host.kernel.committed == Blocklist()
    assert host.kernel.steps == FAILED * 2
    assert host.is_clean


def test_what_goes_on_failing_without_the_list_proves_nothing_of_it() -> None:
    host = Host([flow(UPSTREAM, unanswered=True)], recovers=False)

    async def work() -> float:
        explanation = await host.explains(UPSTREAM, INNOCENT)
        began = asyncio.get_running_loop().time()
        with pytest.raises(SelfTestError, match="goes on failing without the new list"):
            await host.tries_again(explanation, INNOCENT)
        return asyncio.get_running_loop().time() - began

    # Five looks of a second each, two seconds after one another.
    assert run(work()) == 5 * (1 + 2)
    assert host.kernel.committed == Blocklist()
    assert host.kernel.steps == FAILED


def test_connections_that_cannot_be_read_hold_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.connections.fail("flows", *[KernelError("connections can't be read")] * 2)
    assert run(host.tries(INNOCENT)) is None
    assert host.kernel.committed == listing(INNOCENT)
    assert caplog.messages == ["Connections can't be read; what explains a failed self-test may stay unknown."] * 2


@pytest.mark.parametrize("error", [KernelError("it refuses"), BusyError("it is busy"), ZeroDivisionError("a defect")])
@pytest.mark.parametrize("step", ["stage", "begin_trial", "renew_trial", "commit"])
def test_whatever_a_step_meets_is_raised_and_leaves_nothing(step: str, error: Exception) -> None:
    host = Host()
    host.seconds = 3.0
    host.kernel.fail(step, error)
    with pytest.raises(type(error), match=str(error)):
        run(host.tries(INNOCENT))
    assert host.kernel.steps[-2:] == [step, "rollback"]
    assert host.kernel.committed == Blocklist()
    assert host.is_clean


def test_a_self_test_that_breaks_leaves_nothing() -> None:
    host = Host()
    host.error = OSError("no more files")
    with pytest.raises(OSError, match="no more files"):
        run(host.tries(INNOCENT))
    assert host.kernel.steps == ["stage", "rollback"]
    assert host.is_clean


def test_a_rollback_that_is_refused_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.kernel.fail("commit", KernelError("it refuses"))
    host.kernel.fail("rollback", BusyError("it is busy"))
    with pytest.raises(KernelError, match="it refuses"):
        run(host.tries(INNOCENT))
    assert not host.trial.running
    assert caplog.messages == ["The trial could not be ended (it is busy); the kernel ends it within seconds."]


async def cancelled_in(host: Host, turn: int) -> bool:
    """Cancel a trial in this turn of the loop. Whether it was still under way."""
    task = asyncio.create_task(host.tries(INNOCENT))
    for _ in range(turn):
        # A timer lets time pass where nothing else happens.
        await asyncio.sleep(0.05)
    for _ in range(turn % 7):
        await asyncio.sleep(0)
    under_way = task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() is under_way
    return under_way


def test_whenever_it_is_cancelled_nothing_of_it_is_left() -> None:
    under_way, turn = True, 0
    seen = set[tuple[str, ...]]()
    while under_way:
        host = Host()
        under_way = run(cancelled_in(host, turn))
        assert host.is_clean, turn
        assert (host.kernel.committed == listing(INNOCENT)) is ("commit" in host.kernel.steps)
        seen.add(tuple(host.kernel.steps))
        turn += 1
    # In each part of it.
    assert seen >= {("stage", "rollback"), ("stage", "begin_trial", "rollback"), tuple(STEPS)}


def test_it_says_that_it_goes_on_and_when_it_is_on_trial() -> None:
    host = Host()

    async def work() -> list[tuple[bool, int]]:
        task = asyncio.create_task(host.tries(INNOCENT))
        seen = []
        for _ in range(3):
            await asyncio.sleep(0.9)
            seen.append((host.trial.running, host.changes.times))
        await task
        return seen

    running, changes = zip(*run(work()), strict=True)
    assert running == (False, True, False)
    assert 0 < changes[0] < changes[1] < changes[2]


def test_what_fails_already_before_the_trial_is_said_and_says_nothing_of_the_list(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Ill(Host):
        async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
            ill = ProbeResult("API", Outcome.FAILED, "did not answer")
            return (*await super().run(api_addresses), ill)

    host = Ill()
    assert run(host.tries(INNOCENT)) is None
    assert host.kernel.steps == STEPS
    assert caplog.messages == [
        "Self-test: API did not answer already before the trial; the list is not to blame for it."
    ]
