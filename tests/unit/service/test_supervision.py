"""Loops that fail in ways that nobody thought of, and go on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sikkerguard.service.supervision import Supervisor, Unknown

NAME = "following the host"


class Loop:
    """Fails so many times, in this way, and then works."""

    def __init__(self, failures: int, error: BaseException | None) -> None:
        self.begun = 0
        self.cleaned = 0
        self._failures = failures
        self._error = error
        self.works = asyncio.Event()

    async def run(self) -> None:
        self.begun += 1
        try:
            if self.begun <= self._failures:
                if self._error is None:
                    return
                raise self._error
            self.works.set()
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
    async def work(supervisor: Supervisor) -> None:
        loop = Loop(5, error)
        task = asyncio.create_task(supervisor.keep(NAME, loop.run))
        async with asyncio.timeout(5):
            await loop.works.wait()
            while not told or told[-1][1]:
                await asyncio.sleep(0.005)
        assert loop.begun == 6
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.cleaned == 6

    told: list[tuple[str, str]] = []

    async def run() -> None:
        await work(
            Supervisor(
                lambda name, sentence: told.append((name, sentence)), Unknown(), pauses=(0.001, 0.004), settled=0.05
            )
        )

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert told[-1] == (NAME, "")
    assert len(told) == 6
    assert told[0][1].startswith("Following the host was stopped by an error that nobody expected (")
    # Once, however often it comes.
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_what_an_error_says_can_not_act_on_a_terminal() -> None:
    assert Unknown().sentence(ValueError("\x1b[2J" + "x" * 1000)) == (
        f"an error that nobody expected (ValueError: ?[2J{'x' * 181}...)"
    )
    assert Unknown().sentence(KeyError()) == "an error that nobody expected (KeyError)"
