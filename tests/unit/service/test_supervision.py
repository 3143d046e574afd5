"""Loops that fail in ways that nobody thought of, and go on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sikkerguard.errors import BusyError, FetchError, KernelError, ListError, UnexpectedError
from sikkerguard.service.supervision import Supervisor, UnexpectedErrors
from tests.unit.service.fakes import Changes
from tests.unit.service.virtual_time import VirtualClock, run


class Loop:
    """Fails so many times, in this way, and then works."""

    work = "following the host"

    def __init__(self, failures: int, error: BaseException | None) -> None:
        self.begun: list[float] = []
        self.cleaned = 0
        self._failures = failures
        self._error = error

    async def run(self) -> None:
        self.begun.append(asyncio.get_running_loop().time())
        try:
            if len(self.begun) <= self._failures:
                if self._error is None:
                    return
                raise self._error
            await asyncio.Event().wait()
        finally:
            self.cleaned += 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Invalid URL"),
        KeyError(),
        MemoryError(),
        ExceptionGroup("two", [OSError(5, "x")]),
        asyncio.CancelledError(),
        None,
    ],
)
def test_a_loop_goes_on_after_whatever_it_raised(error: BaseException | None, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(5, error)

    async def work() -> None:
        changes = Changes()
        supervisor = Supervisor(UnexpectedErrors(), VirtualClock(), changes)
        task = asyncio.create_task(supervisor.keep(loop))
        await asyncio.sleep(1)
        said = supervisor.troubles["following the host"]
        assert said.startswith("Following the host was stopped by an error that nobody expected (")
        assert said.endswith("); what is blocked stays blocked; it begins anew.")
        await asyncio.sleep(5 + 10 + 20 + 40 + 80 + 50)
        # It runs again, but has yet to show that it works.
        assert len(loop.begun) == 6
        assert supervisor.troubles
        await asyncio.sleep(60)
        assert supervisor.troubles == {}
        assert changes.times == 6
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.cleaned == 6

    with caplog.at_level(logging.ERROR):
        run(work())
    assert [after - before for before, after in zip(loop.begun, loop.begun[1:], strict=False)] == [5, 10, 20, 40, 80]
    # Once, however often it comes.
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_no_pause_is_longer_than_ten_minutes_and_one_that_worked_begins_anew_soon() -> None:
    class Weary(Loop):
        async def run(self) -> None:
            await super().run()
            raise AssertionError("never reached")

    loop = Weary(40, ValueError("x"))

    async def work() -> None:
        supervisor = Supervisor(UnexpectedErrors(), VirtualClock(chance=1.0), Changes())
        task = asyncio.create_task(supervisor.keep(loop))
        await asyncio.sleep(40 * 750)
        task.cancel()

    run(work())
    pauses = [after - before for before, after in zip(loop.begun, loop.begun[1:], strict=False)]
    assert max(pauses) == 750  # a quarter more than ten minutes, by chance
    assert pauses == sorted(pauses)


def test_a_loop_that_worked_for_a_minute_is_begun_anew_as_after_a_first_failure() -> None:
    begun = []

    class Lasting(Loop):
        async def run(self) -> None:
            begun.append(asyncio.get_running_loop().time())
            await asyncio.sleep(61)
            raise ValueError("x")

    async def work() -> None:
        supervisor = Supervisor(UnexpectedErrors(), VirtualClock(), Changes())
        task = asyncio.create_task(supervisor.keep(Lasting(0, None)))
        await asyncio.sleep(3 * 66 + 1)
        task.cancel()

    run(work())
    assert begun == [0, 66, 132, 198]


# Errors that nobody expected


def test_what_an_error_says_can_not_act_on_a_terminal() -> None:
    unexpected = UnexpectedErrors()
    assert unexpected.sentence(ValueError("\x1b[2J" + "x" * 1000)) == (
        f"an error that nobody expected (ValueError: ?[2J{'x' * 181}...)"
    )
    assert unexpected.sentence(KeyError()) == "an error that nobody expected (KeyError)"


@pytest.mark.parametrize("kind", [KernelError, UnexpectedError])
def test_whatever_is_no_error_of_ours_becomes_one(kind: type[KernelError | UnexpectedError]) -> None:
    unexpected = UnexpectedErrors()
    no_memory = ListError("there is not enough memory")
    with pytest.raises(kind) as found, unexpected.as_kind(kind, no_memory):
        raise KeyError("x")
    assert str(found.value) == "an error that nobody expected (KeyError: 'x')"
    assert isinstance(found.value.__cause__, KeyError)
    with pytest.raises(ListError) as memory, unexpected.as_kind(kind, no_memory):
        raise MemoryError
    assert memory.value is no_memory
    for ours in (BusyError("busy"), FetchError("nothing came")):
        with pytest.raises(type(ours)) as same, unexpected.as_kind(kind, no_memory):
            raise ours
        assert same.value is ours


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt()])
def test_what_ends_a_task_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)), UnexpectedErrors().as_kind(KernelError, KernelError("no memory")):
        raise error


def fail(error: Exception) -> None:
    raise error


def test_what_is_survived_is_logged_with_what_follows_from_it(caplog: pytest.LogCaptureFixture) -> None:
    unexpected = UnexpectedErrors()
    with unexpected.survived("Changes are not seen at once (%s)."):
        fail(ValueError("x"))
    with unexpected.survived("Changes are not seen at once (%s)."):
        fail(ValueError("x"))
    with unexpected.survived():
        fail(ValueError("y"))
    said = "Changes are not seen at once (an error that nobody expected (ValueError: x))."
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        ("This should not have happened; please report it with these lines.", True),
        (said, False),
        (said, False),
        ("This should not have happened; please report it with these lines.", True),
    ]


@pytest.mark.parametrize("error", [KernelError("it refuses"), asyncio.CancelledError()])
def test_errors_of_ours_and_a_cancellation_are_not_survived(error: BaseException) -> None:
    with pytest.raises(type(error)), UnexpectedErrors().survived():
        raise error
