"""What a person mends is noticed within a second, and nothing else is acted on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sikkerguard.service.settings_watch import SettingsWatch

from sikkerguard.edges.list_file import ListFile

if TYPE_CHECKING:
    from pathlib import Path


class Service:
    """Needs a correction until it is told of one, unless it still does then."""

    def __init__(self, *files: Path, needed: bool = True, content: bool = True) -> None:
        self.needed = needed
        self.content = content
        self.mended: list[float] = []
        self.corrections = SettingsWatch(lambda: files, ListFile().stamp, lambda: self.needed, self.mend)

    def mend(self) -> None:
        self.mended.append(time.monotonic())
        self.needed = not self.content


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_key_that_is_corrected_counts_within_a_second(tmp_path: Path) -> None:
    key, other = tmp_path / "api-key", tmp_path / "sikkerguard.env"
    key.write_text("sk_free_wrong\n")
    service = Service(key, other)

    async def run() -> None:
        watching = asyncio.create_task(service.corrections.watch_forever())
        began = time.monotonic()
        key.write_text("sk_free_right\n")
        await until(lambda: service.mended)
        assert service.mended[0] - began < 1
        # Nothing is to be mended any more: another change waits for a reload.
        other.write_text("SIKKER_SCORE_MIN=60\n")
        await asyncio.sleep(1)
        assert len(service.mended) == 1
        # Until something is. What was written in between counts.
        service.needed = True
        await until(lambda: len(service.mended) == 2)
        watching.cancel()

    asyncio.run(run())


def test_what_is_still_wrong_is_tried_once(tmp_path: Path) -> None:
    key = tmp_path / "api-key"
    service = Service(key, content=False)

    async def run() -> None:
        watching = asyncio.create_task(service.corrections.watch_forever())
        key.write_text("sk_free_wrong\n")
        await until(lambda: service.mended)
        await asyncio.sleep(1)
        assert len(service.mended) == 1
        # What was read by a reload is not read again.
        key.write_text("sk_free_other\n")
        service.corrections.note()
        await asyncio.sleep(1)
        assert len(service.mended) == 1
        watching.cancel()

    asyncio.run(run())


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    key = tmp_path / "api-key"
    service = Service(key)

    async def run() -> None:
        watching = asyncio.create_task(service.corrections.watch_forever())
        for number in range(40):
            key.write_text("x" * number)
            await asyncio.sleep(0.025)
        assert not service.mended
        await until(lambda: service.mended)
        watching.cancel()

    asyncio.run(run())
