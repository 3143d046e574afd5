"""What keeps the page and the control socket open, and what it says where it can't."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.errors import ListenError
from sikkerguard.service.listeners import Listeners
from tests.unit.service.fakes import Changes
from tests.unit.service.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    import pytest


@dataclass
class Page:
    """Opens when it can; until then it says that it is taken."""

    name: str
    can: bool = False
    is_open: bool = False
    tries: int = 0
    hangs: bool = False
    defect: Exception | None = None

    async def open(self) -> None:
        self.tries += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.defect is not None:
            raise self.defect
        if not self.can:
            raise ListenError(f"{self.name} is taken")
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False


def listening(
    work: Callable[[Listeners, Changes], Coroutine[Any, Any, None]], *pages: Page, optional: tuple[str, ...] = ()
) -> None:
    """Run this while these are kept open."""

    async def whole() -> None:
        changes = Changes()
        listeners = Listeners(pages, changes, optional)
        listeners.start()
        try:
            await work(listeners, changes)
        finally:
            await listeners.stop()
        assert not any(page.is_open for page in pages)

    run(whole())


def test_what_is_taken_is_said_and_tried_again_until_it_is_had() -> None:
    page = Page("page")

    async def work(listeners: Listeners, changes: Changes) -> None:
        await asyncio.sleep(100)
        assert page.tries == 4
        assert (listeners.troubles, changes.times) == ({"page": "page is taken."}, 1)
        page.can = True
        await asyncio.sleep(30)
        assert page.is_open
        assert (listeners.troubles, changes.times) == ({}, 2)

    listening(work, page)


def test_one_that_is_open_is_looked_at_all_the_same() -> None:
    page = Page("page", can=True)

    async def work(listeners: Listeners, changes: Changes) -> None:
        await asyncio.sleep(1)
        assert page.is_open
        page.can = False
        await asyncio.sleep(30)
        assert (listeners.troubles, changes.times) == ({"page": "page is taken."}, 1)

    listening(work, page)


def test_it_is_tried_at_once_when_told_to() -> None:
    page = Page("page")

    async def work(listeners: Listeners, changes: Changes) -> None:
        await asyncio.sleep(1)
        page.can = True
        listeners.try_now()
        await asyncio.sleep(1)
        assert page.is_open

    listening(work, page)


def test_one_that_waits_for_a_disk_keeps_nothing_waiting() -> None:
    page, control = Page("page"), Page("control", hangs=True)

    async def work(listeners: Listeners, changes: Changes) -> None:
        await asyncio.sleep(100)
        assert (page.tries, control.tries) == (4, 1)

    # Neither the start nor the stop, which both come to their end here.
    listening(work, control, page)


def test_of_an_optional_one_a_single_warning_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    control = Page("control")

    async def work(listeners: Listeners, changes: Changes) -> None:
        await asyncio.sleep(100)
        assert control.tries == 4
        assert (listeners.troubles, changes.times) == ({}, 0)

    listening(work, control, optional=("control",))
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "control is taken.")]


def test_a_defect_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    page = Page("page", defect=ZeroDivisionError("a defect"))

    async def work(listeners: Listeners, changes: Changes) -> None:
        await asyncio.sleep(100)
        assert page.tries == 4
        assert listeners.troubles == {
            "page": "Nobody listens (page: ZeroDivisionError: a defect); it is tried again.",
        }

    listening(work, page)
    # With its trace, once.
    (record,) = caplog.records
    assert record.exc_info


def test_that_nobody_looks_after_them_any_more_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Changes):
        def set(self) -> None:
            raise ZeroDivisionError("a defect")

    async def work() -> None:
        listeners = Listeners([Page("page")], Broken())
        listeners.start()
        await asyncio.sleep(1)
        await listeners.stop()

    run(work())
    (record,) = caplog.records
    assert record.getMessage() == "Nobody looks after the page and the control socket any more."
    assert record.exc_info
