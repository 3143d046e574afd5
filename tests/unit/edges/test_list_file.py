"""The owner's file as a feed: its content, its versions, and a disk that hangs."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.lists.parse import LARGEST_FILE
from sikkerguard.core.lists.sources import LOCAL_FILE
from sikkerguard.edges.list_file import LocalListFile
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sikkerguard.core.interfaces import Feed

LIST = b"192.0.2.1\n198.51.100.0/24\n"


@pytest.fixture(name="disk")
def _disk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as disk:
        yield disk


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_bytes(LIST)
    return path


def rewrite(path: Path) -> None:
    path.write_bytes(b"192.0.2.2\n")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    rewrite(other)
    other.rename(path)


async def content(feed: Feed) -> bytes:
    return b"".join([piece async for piece in feed.stream()])


def test_it_is_a_feed_that_says_itself_when_there_is_something_new(path: Path, disk: ThreadPoolExecutor) -> None:
    feed: Feed = LocalListFile(path, disk)
    assert (feed.name, feed.interval, feed.remaining) == (LOCAL_FILE, math.inf, None)
    assert asyncio.run(content(feed)) == LIST


def test_an_empty_file_has_no_piece(path: Path, disk: ThreadPoolExecutor) -> None:
    path.write_bytes(b"")
    assert asyncio.run(content(LocalListFile(path, disk))) == b""


def test_a_version_differs_once_the_file_was_changed_replaced_or_removed(path: Path, disk: ThreadPoolExecutor) -> None:
    async def main() -> None:
        feed = LocalListFile(path, disk)
        versions = [await feed.version()]
        assert await feed.version() == versions[0]
        for change in (rewrite, replace, Path.unlink):
            change(path)
            versions.append(await feed.version())
        assert len(set(versions)) == 4
        assert None not in versions

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "NUL", "large"])
def test_what_can_not_be_a_list_is_named_by_its_path(tmp_path: Path, disk: ThreadPoolExecutor, kind: str) -> None:
    path = tmp_path / ("a\0b" if kind == "NUL" else "mine.txt")
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            with path.open("wb") as file:
                file.truncate(LARGEST_FILE + 1)
    with pytest.raises(ListError) as caught:
        asyncio.run(content(LocalListFile(path, disk)))
    assert str(caught.value).startswith(str(path))
    assert "SikkerAPI" not in str(caught.value)


def test_the_largest_file_is_read_whole(path: Path, disk: ThreadPoolExecutor) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE)
    assert len(asyncio.run(content(LocalListFile(path, disk)))) == LARGEST_FILE


def test_a_disk_that_hangs_holds_nobody_up_and_gets_no_further_work(path: Path, disk: ThreadPoolExecutor) -> None:
    """Its thread is held as a system call that does not return would hold it."""

    async def main() -> None:
        feed = LocalListFile(path, disk, version_seconds=0.05, read_seconds=0.05)
        before = await feed.version()
        released = threading.Event()
        disk.submit(released.wait)
        rewrite(path)
        for _ in range(3):
            # The last answer counts as long as there is no other.
            assert await feed.version() == before
        with pytest.raises(ListError, match=r"its disk has not answered for 0\.05 s") as caught:
            await content(feed)
        assert str(path) in str(caught.value)
        assert disk._work_queue.qsize() == 1
        released.set()
        assert await LocalListFile(path, disk).version() != before
        assert await content(feed) == b"192.0.2.2\n"
        assert await feed.version() != before

    asyncio.run(main())


def test_a_stream_that_is_closed_while_its_disk_hangs_ends_at_once(path: Path, disk: ThreadPoolExecutor) -> None:
    async def main() -> None:
        released = threading.Event()
        disk.submit(released.wait)
        task = asyncio.create_task(content(LocalListFile(path, disk)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(1):
                await task
        released.set()

    asyncio.run(main())
