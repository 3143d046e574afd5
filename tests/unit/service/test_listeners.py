"""What keeps the page and the control socket open, and what it says where it can't."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.errors import ListenError
from sikkerguard.service.listeners import Listening

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

SECONDS = 5.0


@dataclass
class Listener:
    """Opens when it can; until then it says that it is taken."""

    name: str
    can: bool = False
    is_open: bool = False
    tries: int = 0
    holds: asyncio.Event | None = None

    async def open(self) -> None:
        self.tries += 1
        if self.holds is not None:
            await self.holds.wait()
        if not self.can:
            raise ListenError(f"{self.name} is taken")
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False


@dataclass
class Told:
    """What was told, in its order."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, name: str, sentence: str) -> None:
        self.lines.append((name, sentence))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_is_taken_is_said_and_tried_again_until_it_is_had() -> None:
    async def run() -> None:
        page, told = Listener("page"), Told()
        listening = Listening([page], told, retry_seconds=0.01)
        await listening.start()
        await until(lambda: page.tries > 3)
        assert set(told.lines) == {("page", "page is taken.")}
        page.can = True
        await until(lambda: told.lines[-1] == ("page", ""))
        assert page.is_open
        await listening.stop()
        assert not page.is_open

    asyncio.run(run())


def test_it_is_tried_at_once_when_told_to() -> None:
    async def run() -> None:
        page, told = Listener("page"), Told()
        listening = Listening([page], told, retry_seconds=600)
        await listening.start()
        await until(lambda: told.lines)
        page.can = True
        listening.try_now()
        await until(lambda: page.is_open)
        await listening.stop()

    asyncio.run(run())


def test_one_that_waits_for_a_disk_keeps_nothing_waiting() -> None:
    async def run() -> None:
        page, control, told = Listener("page"), Listener("control", holds=asyncio.Event()), Told()
        listening = Listening([control, page], told, retry_seconds=0.01)
        # Not the start either.
        await listening.start()
        await until(lambda: page.tries > 3)
        assert control.tries == 1
        await asyncio.wait_for(listening.stop(), SECONDS)

    asyncio.run(run())


def test_of_an_optional_one_a_single_warning_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        control, told = Listener("control"), Told()
        listening = Listening([control], told, optional=["control"], retry_seconds=0.01)
        await listening.start()
        await until(lambda: control.tries > 3)
        await listening.stop()
        assert told.lines == []

    asyncio.run(run())
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "control is taken.")]


def test_a_defect_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Listener):
        async def open(self) -> None:
            raise ZeroDivisionError("a defect")

    async def run() -> None:
        broken, told = Broken("page"), Told()
        listening = Listening([broken], told, retry_seconds=0.01)
        await listening.start()
        await until(lambda: len(told.lines) > 2)
        assert "Nobody listens (page: ZeroDivisionError: a defect); it is tried again." in str(told.lines[-1])
        await listening.stop()

    asyncio.run(run())
    # With its trace, once.
    (record,) = caplog.records
    assert record.exc_info
