"""When lists are pulled, read and admitted anew, what a failure means, and that a cancellation leaves nothing behind:
in virtual time, without a kernel, a network or a disk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.sources import SIKKERAPI, ListedSource, VerifiedList
from sikkerguard.errors import (
    BusyError,
    KernelError,
    KeyRefused,
    ListError,
    QuotaSpent,
    SettingsRefused,
    SikkerGuardError,
    Unreachable,
)
from tests.unit.core.host.test_connections import flow, own
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.assembly import AT_HOME, CROWD, FILE, NOWHERE, Assembly, FakeAdapters, assembled, entries, lines
from tests.unit.service.fakes import FAILS, WORKS, HostConnections, Probes
from tests.unit.service.virtual_time import BEGINNING, run, run_cancelled_at

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def played(
    play: Callable[[Assembly], Coroutine[Any, Any, None]], adapters: FakeAdapters | None = None, **settings: Any
) -> Assembly:
    """Make the parts, do what a start does, and play this while the pull loop runs."""

    async def main() -> Assembly:
        made = assembled(adapters, **settings)
        await made.begin()
        async with made.pulling():
            await play(made)
        return made

    return run(main())


async def one_pull(made: Assembly) -> None:
    await made.pulled(1)


def test_a_list_is_pulled_and_its_size_remembered() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        assert abs(made.pause() - DAY) < 1

    made = played(play)
    assert made.blocked() == 2000
    (source,) = made.parts.runner.state.sources
    assert (source.entries, source.covered_v4) == (2000, 2000 / 2**32)
    assert made.adapters.store.pulls.unfinished == 0
    assert made.adapters.store.verified is not None
    # Staged, tried, committed, and never anything else.
    steps = [step for step in made.adapters.backend.steps if step not in ("adopt", "repair", "allow", "read_traffic")]
    assert steps == ["read_committed", "stage", "begin_trial", "commit"]


def test_the_next_pull_comes_when_the_interval_has_passed() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        await asyncio.sleep(DAY - MINUTE)
        assert made.parts.pulls.state.pulls == 1
        await asyncio.sleep(2 * MINUTE)
        assert made.parts.pulls.state.pulls == 2

    played(play)


@pytest.mark.parametrize(
    ("error", "first", "longest", "needs_correction"),
    [
        (Unreachable("no answer"), 5.0, HOUR, False),
        (Unreachable("busy", retry_after=120.0), 150.0, HOUR, False),
        (QuotaSpent("says no (429)"), 15 * MINUTE, 6 * HOUR, False),
        (QuotaSpent("says no (429)", retry_after=3 * HOUR), 3 * HOUR + 30, 3 * HOUR + 30, False),
        (KeyRefused("does not know this key (401)"), HOUR, DAY, True),
        (SettingsRefused("redirects in a circle"), HOUR, DAY, True),
        (ListError("a page came instead of a list"), 15 * MINUTE, 6 * HOUR, False),
        (ValueError("of a library"), 5 * MINUTE, 6 * HOUR, False),
        (MemoryError(), 15 * MINUTE, 6 * HOUR, False),
    ],
)
def test_each_failure_has_its_own_pauses_which_double_up_to_an_end(
    error: Exception, first: float, longest: float, needs_correction: bool
) -> None:
    async def play(made: Assembly) -> None:
        pauses = []
        made.adapters.sikkerapi.fail("stream", *[error] * 15)
        await made.pulled(1)
        for pulls in range(1, 16):
            assert made.parts.pulls.state.pulls == pulls
            assert made.failure()
            assert made.parts.pulls.needs_correction == needs_correction
            pauses.append(made.pause())
            await asyncio.sleep(made.pause() + 1)
        assert abs(pauses[0] - first) < 3
        assert abs(pauses[-1] - longest) < 3
        assert all(later > earlier - 3 for earlier, later in pairwise(pauses))
        await made.pulled(16)
        assert not made.failure()
        assert not made.parts.pulls.needs_correction
        assert made.blocked() == 2000

    played(play)


STEPS = ("stage", "begin_trial", "commit")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error", [KernelError("it refused"), BusyError("a set is listed"), ValueError("of a library"), MemoryError()]
)
def test_a_kernel_that_refuses_at_any_step_keeps_the_list_before_and_is_asked_again(
    step: str, error: Exception
) -> None:
    async def play(made: Assembly) -> None:
        backend = made.adapters.backend
        await made.pulled(1)
        made.adapters.sikkerapi.pieces = [lines(*CROWD[:1500])]
        backend.fail(step, error)
        made.parts.pulls.pull_now()
        await made.pulled(2)
        assert made.failure()
        assert (backend.staged, backend.on_trial) == (None, False)
        assert made.blocked() == 2000
        assert made.parts.runner.state.blocked == 2000
        assert made.adapters.store.pulls.unfinished == 0
        await made.until(lambda: made.parts.pulls.state.pulls == 3, DAY)
        assert made.blocked() == 1500

    played(play)


def test_a_rollback_that_fails_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def play(made: Assembly) -> None:
        made.adapters.backend.fail("commit", KernelError("it refused"))
        made.adapters.backend.fail("rollback", KernelError("it refused that too"))
        await made.pulled(1)
        assert made.failure() == "it refused"

    played(play)
    assert "The trial could not be ended (it refused that too); the kernel ends it within seconds." in caplog.text


def test_a_failed_self_test_keeps_the_list_before(caplog: pytest.LogCaptureFixture) -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        made.adapters.tests.results = [WORKS, FAILS, WORKS]
        made.adapters.sikkerapi.pieces = [lines(*CROWD[:1500])]
        made.parts.pulls.pull_now()
        await made.pulled(2)
        assert made.blocked() == 2000
        assert 4 * MINUTE < made.pause() < 6 * MINUTE

    played(play)
    assert "the list verified" in caplog.text
    assert "(2000 entries) stays in force; next try in 5m." in caplog.text


def test_a_cancellation_at_any_point_leaves_nothing_half_done() -> None:
    """Of two updates, from the first request to the last file; and what the next start finds is in order."""
    seen = set[tuple[int, int]]()
    turn, cancelled = 0, True
    while cancelled:
        turn += 1
        adapters = FakeAdapters()
        adapters.sikkerapi.pieces = [lines(*CROWD[:3])]
        adapters.file.write(lines("203.0.113.7"))
        cancelled = run_cancelled_at(turn, two_updates(adapters))
        backend, verified = adapters.backend, adapters.store.verified
        assert (backend.staged, backend.on_trial) == (None, False), turn
        assert adapters.store.pulls.unfinished == 0, turn
        kept = 0 if verified is None else sum(len(source.content) for source in verified.sources)
        # What is on disk was committed before.
        assert kept <= len(backend.committed), turn
        seen.add((len(backend.committed), kept))
    assert turn > 100
    assert {(0, 0), (1, 1), (4, 4)} <= seen


async def two_updates(adapters: FakeAdapters) -> None:
    made = assembled(adapters, custom_blacklist=FILE)
    await made.begin()
    try:
        async with asyncio.timeout(30):
            await made.parts.pulls.run()
    except TimeoutError:
        pass
    finally:
        await made.parts.disk.finish()


def test_a_process_that_dies_in_a_pull_leaves_a_mark_by_which_the_next_one_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    marks: list[int] = []

    async def die(made: Assembly) -> None:
        made.adapters.sikkerapi.held.clear()
        await made.until(lambda: made.adapters.store.pulls.unfinished)
        marks.append(made.adapters.store.pulls.unfinished)

    made = played(die)
    # A stop in the middle of a pull is no death.
    assert marks == [1]
    assert made.adapters.store.pulls.unfinished == 0
    for died, longest in ((1, MINUTE), (4, MINUTE)):
        adapters = FakeAdapters()
        adapters.store.pulls = PullMemory(unfinished=died)

        async def wait(made: Assembly, longest: float = longest) -> None:
            await asyncio.sleep(1)
            assert not made.adapters.sikkerapi.steps
            assert made.pause() <= longest

        caplog.clear()
        played(wait, adapters)
        assert "The last run ended in the middle of an update" in caplog.text
        assert (", as did 3 before it" in caplog.text) == (died == 4)


def test_what_is_held_back_is_asked_for_again_after_a_quarter_of_an_hour() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        made.adapters.sikkerapi.pieces = [lines(*CROWD[:600])]
        made.parts.pulls.pull_now()
        await made.pulled(2)
        assert 10 * MINUTE < made.pause() <= 15 * MINUTE
        assert made.blocked() == 2000
        await asyncio.sleep(15 * MINUTE)
        assert made.blocked() == 600
        assert made.pause() > HOUR

    played(play)


@pytest.mark.parametrize("first", ["SikkerAPI", "the file"])
def test_a_source_s_first_version_is_never_held_back_for_what_it_cuts(first: str) -> None:
    adapters = FakeAdapters()
    adapters.connections = HostConnections([*own(6), *(flow(f"198.51.200.{number}") for number in range(9))])
    more = [f"198.51.200.{number}" for number in range(9)]

    async def play(made: Assembly) -> None:
        await made.pulled(1)
        made.change(custom_blacklist=FILE)
        made.parts.settings.reload()
        made.parts.local_file.want()
        await made.until(lambda: made.blocked() == 2001)
        if first == "SikkerAPI":
            # A later version is, once.
            made.adapters.sikkerapi.pieces = [lines(*CROWD, *more)]
            made.parts.pulls.pull_now()
            await made.pulled(2)
            assert "cuts connections" in made.failure()
            made.parts.pulls.pull_now()
            await made.until(lambda: made.blocked() == 2010)

    adapters.file.write(lines("203.0.113.7") if first == "SikkerAPI" else lines(*CROWD))
    adapters.sikkerapi.pieces = [lines(*CROWD) if first == "SikkerAPI" else lines("203.0.113.7")]
    played(play, adapters)


def test_a_server_that_takes_its_time_keeps_the_file_from_nothing() -> None:
    async def play(made: Assembly) -> None:
        made.adapters.sikkerapi.held.clear()
        await made.until(lambda: made.parts.pulls.state.pulling)
        made.adapters.file.write(lines("203.0.113.7"))
        await made.until(lambda: made.blocked() == 1)
        assert made.parts.pulls.state.pulling
        # Another update has ended, and the pull is still under way.
        assert made.adapters.store.pulls.unfinished == 1

    assert played(play, custom_blacklist=FILE).adapters.store.pulls.unfinished == 0


def test_a_server_that_takes_its_time_keeps_a_changed_allowlist_from_nothing() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        made.adapters.sikkerapi.held.clear()
        made.parts.pulls.pull_now()
        await made.until(lambda: made.parts.pulls.state.pulling)
        await allow(made, CROWD[7])
        await made.until(lambda: made.blocked() == 1999)
        assert made.parts.pulls.state.pulling

    played(play)


async def allow(made: Assembly, *addresses: str) -> None:
    """Have the host stand behind these too."""
    made.adapters.observer.found = replace(AT_HOME, allowed=(*AT_HOME.allowed, *entries(*addresses)))
    await made.parts.tracker.follow()


def test_a_changed_allowlist_is_applied_through_a_trial_and_the_rhythm_of_pulls_is_not_touched() -> None:
    async def play(made: Assembly) -> None:
        backend = made.adapters.backend
        await made.pulled(1)
        due = made.parts.pulls.state.next_pull_at
        await allow(made, CROWD[7])
        await made.until(lambda: made.blocked() == 1999)
        # What is on no list needs no trial.
        trials = backend.steps.count("begin_trial")
        await allow(made, CROWD[7], "203.0.113.200")
        await asyncio.sleep(5)
        assert backend.steps.count("begin_trial") == trials
        # What is no longer allowed is blocked again, and a trial that fails is made again.
        backend.fail("stage", KernelError("it refused"))
        await allow(made)
        await asyncio.sleep(MINUTE)
        assert made.blocked() == 1999
        await asyncio.sleep(6 * MINUTE)
        assert made.blocked() == 2000
        assert made.parts.pulls.state.pulls == 1
        assert made.parts.pulls.state.next_pull_at == due

    played(play)


def test_a_host_that_changes_in_the_middle_of_an_update_has_it_applied_behind_it() -> None:
    async def play(made: Assembly) -> None:
        await made.until(lambda: made.adapters.backend.on_trial)
        await allow(made, CROWD[7])
        await made.until(lambda: made.blocked() == 1999)

    played(play)


def test_a_reload_in_the_middle_of_a_fetch_breaks_it_off_and_asks_by_the_new_settings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapters = FakeAdapters()
    adapters.sikkerapi.held.clear()
    adapters.store.verified = VerifiedList((ListedSource(SIKKERAPI, listing("203.0.113.7"), BEGINNING),), BEGINNING)

    async def play(made: Assembly) -> None:
        # The wish to take a list of whatever size is for the one that is broken off, and then for the next.
        made.parts.pulls.pull_now(accept=True)
        await made.until(lambda: made.adapters.sikkerapi.scores)
        made.adapters.sikkerapi.held.set()
        made.change(score_min=90)
        number = made.parts.reload.now()
        await made.pulled(1)
        assert made.adapters.sikkerapi.scores == [50, 90]
        assert made.parts.pulls.state.pull_answered == number
        assert made.adapters.store.pulls.unfinished == 0
        assert made.blocked() == 2000

    with caplog.at_level("INFO"):
        played(play, adapters)
    assert "broken off, and begun anew" in caplog.text


def test_a_reload_in_the_middle_of_a_trial_lets_it_come_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def play(made: Assembly) -> None:
        await made.until(lambda: made.adapters.backend.on_trial)
        numbers = [made.parts.pulls.pull_now() for _ in range(2)]
        await made.until(lambda: made.parts.pulls.state.pulls == 1)
        # The one that was under way answers neither wish, the one behind it both.
        assert made.parts.pulls.state.pull_answered < numbers[0]
        await made.pulled(2)
        assert made.parts.pulls.state.pull_answered == numbers[1]
        assert "rollback" not in made.adapters.backend.steps

    with caplog.at_level("INFO"):
        played(play)
    assert "broken off" not in caplog.text


@pytest.mark.parametrize("where", ["fetch", "file", "trial"])
def test_what_nobody_expected_is_a_failed_pull_and_the_next_one_is_made(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("Invalid IPv6 URL \x1b[2J")

    async def play(made: Assembly) -> None:
        adapters = made.adapters
        failing = {"fetch": adapters.sikkerapi, "file": adapters.file, "trial": adapters.backend}[where]
        failing.fail("stage" if where == "trial" else "stream", *[error] * 20)
        for pulls in (1, 2, 3):
            await made.pulled(pulls)
            if where == "file":
                assert made.blocked() == 2000
            else:
                assert made.failure() == "an error that nobody expected (ValueError: Invalid IPv6 URL ?[2J)"
            made.parts.pulls.pull_now()
        failing.failures.clear()
        made.parts.pulls.pull_now()
        await made.until(lambda: made.blocked() == 2001)
        assert made.failure() == ""

    adapters = FakeAdapters()
    adapters.file.write(lines("203.0.113.7"))
    played(play, adapters, custom_blacklist=FILE)
    # Its trace is told once, however often it comes.
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert "\x1b" not in "".join(record.getMessage() for record in caplog.records)


# The local file


def test_want_of_memory_in_the_file_leaves_the_list(caplog: pytest.LogCaptureFixture) -> None:
    adapters = FakeAdapters()
    adapters.file.write(lines("203.0.113.7"))
    adapters.file.fail("stream", MemoryError())
    assert played(one_pull, adapters, custom_blacklist=FILE).blocked() == 2000
    assert "not enough memory for the list" in caplog.text


def test_a_bad_file_keeps_sikkerapi_s_first_list_from_nothing() -> None:
    for found in (None, listing("203.0.113.9")):
        adapters = FakeAdapters()
        if found is not None:
            # As after a start that found a list in the kernel and none on the disk.
            adapters.backend.committed = found
        adapters.file.write(lines("203.0.113.7") * 20 + b"2.0.0.0/7\n")
        assert played(one_pull, adapters, custom_blacklist=FILE).blocked() == 2000


def test_a_file_waits_where_only_the_kernel_knows_what_to_block() -> None:
    adapters = FakeAdapters()
    adapters.backend.committed = listing("203.0.113.9")
    adapters.file.write(lines("203.0.113.7"))
    adapters.sikkerapi.fail("stream", Unreachable("no answer"))

    async def play(made: Assembly) -> None:
        await made.pulled(1)
        assert made.adapters.file.steps.count("stream") == 0
        await made.until(lambda: made.blocked() == 2001)

    played(play, adapters, custom_blacklist=FILE)


def test_a_list_that_an_earlier_version_took_though_it_covers_too_much_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wide = listing(*(f"{first}.0.0.0/8" for first in range(1, 224)))
    mine = listing("203.0.113.7")
    adapters = FakeAdapters()
    adapters.store.verified = VerifiedList(
        (ListedSource(SIKKERAPI, wide, 0.0), ListedSource("SIKKER_CUSTOM_BLACKLIST", mine, 0.0)), BEGINNING
    )
    adapters.file.write(lines("203.0.113.7"))

    async def play(made: Assembly) -> None:
        assert made.parts.lists.blocklist == mine
        # What is pulled then is a first version.
        await made.pulled(1)
        assert made.blocked() == 2001

    played(play, adapters, custom_blacklist=FILE)
    assert "The list of SikkerAPI that is kept on disk covers 86.2% of IPv4" in caplog.text


def test_the_file_is_read_again_only_where_it_may_have_changed() -> None:
    marks: list[int] = []

    async def play(made: Assembly) -> None:
        file = made.adapters.file
        await made.pulled(1)
        readings = file.steps.count("stream")
        made.parts.pulls.pull_now()
        await made.pulled(2)
        assert file.steps.count("stream") == readings
        file.write(lines("203.0.113.7"))
        await made.until(lambda: made.blocked() == 2001)

    adapters = FakeAdapters()
    adapters.file.write(b"<html>\n")
    played(play, adapters, custom_blacklist=FILE)
    assert marks == []


def test_a_file_that_never_rests_is_read_in_the_end() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        made.adapters.file.restless = True
        made.adapters.file.write(lines("203.0.113.7", "203.0.113.8"))
        await made.until(lambda: made.blocked() == 2002, 20)

    adapters = FakeAdapters()
    adapters.file.write(lines("203.0.113.7"))
    played(play, adapters, custom_blacklist=FILE)


def test_the_file_is_in_force_while_sikkerapi_does_not_answer() -> None:
    async def play(made: Assembly) -> None:
        file = made.adapters.file
        await made.pulled(1)
        assert made.blocked() == 1
        file.write(lines("203.0.113.7", "203.0.113.8"))
        await made.until(lambda: made.blocked() == 2)
        file.write(b"")
        await made.until(lambda: all(source.trouble for source in made.parts.runner.state.sources))
        assert len(made.parts.runner.state.sources) == 2
        file.write(b"# nobody\n")
        await made.until(lambda: made.blocked() == 0)
        assert not made.parts.runner.state.protecting
        assert made.adapters.sikkerapi.steps.count("stream") == 1

    adapters = FakeAdapters()
    adapters.sikkerapi.fail("stream", QuotaSpent("SikkerAPI says no (429)"))
    adapters.file.write(lines("203.0.113.7"))
    played(play, adapters, custom_blacklist=FILE)


def test_a_file_that_can_not_be_read_holds_up_nothing() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        assert made.blocked() == 2000
        made.adapters.file.write(lines("203.0.113.7"))
        await made.until(lambda: made.blocked() == 2001)

    adapters = FakeAdapters()
    adapters.file.fail("stream", ListError("it can't be read"))
    played(play, adapters, custom_blacklist=FILE)


def test_the_wish_to_accept_counts_for_both_sources_and_once() -> None:
    async def play(made: Assembly) -> None:
        await made.pulled(1)
        made.adapters.sikkerapi.pieces = [lines(*CROWD[:20])]
        made.adapters.file.write(lines(*(f"203.0.{number >> 8}.{number & 255}" for number in range(3000))))
        made.parts.pulls.pull_now(accept=True)
        await made.pulled(2)
        assert made.blocked() == 3020
        # 20 addresses are in force: their 100-fold is within what four weeks have seen, and no more is accepted.
        made.adapters.sikkerapi.pieces = [lines(*CROWD)]
        made.parts.pulls.pull_now()
        await made.pulled(3)
        assert made.blocked() == 5000

    adapters = FakeAdapters()
    adapters.file.write(lines("203.0.113.7"))
    played(play, adapters, custom_blacklist=FILE, max_growth=1.1)


# The network


def test_a_host_without_a_way_out_waits_for_one_but_not_for_ever() -> None:
    adapters = FakeAdapters()
    adapters.observer.found = NOWHERE

    async def wait(made: Assembly) -> None:
        await asyncio.sleep(29)
        assert not made.adapters.sikkerapi.steps
        await made.pulled(1)

    played(wait, adapters)

    async def find_one(made: Assembly) -> None:
        await asyncio.sleep(5)
        made.adapters.observer.found = AT_HOME
        await made.parts.tracker.follow()
        await asyncio.sleep(1)
        assert not made.adapters.sikkerapi.steps
        await asyncio.sleep(1.5)
        assert made.adapters.sikkerapi.steps

    adapters = FakeAdapters()
    adapters.observer.found = NOWHERE
    played(find_one, adapters)


@pytest.mark.parametrize("error", [Unreachable("the line is down"), QuotaSpent("says no")])
def test_another_way_out_has_only_an_unreachable_server_asked_again_soon(error: SikkerGuardError) -> None:
    async def play(made: Assembly) -> None:
        made.adapters.sikkerapi.fail("stream", *[error] * 7)
        made.adapters.observer.found = NOWHERE
        await made.parts.tracker.follow()
        await made.pulled(1)
        for pulls in range(2, 8):
            await asyncio.sleep(made.pause() + 1)
            assert made.parts.pulls.state.pulls == pulls
        assert made.pause() > 200
        made.adapters.observer.found = AT_HOME
        await made.parts.tracker.follow()
        await asyncio.sleep(5)
        assert made.parts.pulls.state.pulls == (8 if isinstance(error, Unreachable) else 7)

    played(play)


def test_a_dry_run_keeps_nothing_on_disk() -> None:
    made = played(one_pull, dry_run=True)
    assert made.blocked() == 2000
    assert not [step for step in made.adapters.store.steps if step.startswith("save")]


def test_probes_are_those_of_the_settings() -> None:
    adapters = FakeAdapters()
    adapters.tests = Probes(WORKS)
    made = played(one_pull, adapters)
    assert set(made.adapters.tests.asked) == {("203.0.113.80",)}
