"""Reading a feed: from its bytes to a new version of its source."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from sikkerguard.core.lists.admission import describe_removed, without_special
from sikkerguard.core.lists.coverage import extent_of
from sikkerguard.core.lists.generations import Change
from sikkerguard.core.lists.parse import ApiParser, read_custom
from sikkerguard.core.lists.size_guard import Offer
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI

if TYPE_CHECKING:
    from sikkerguard.core.interfaces import Feed, Signal
    from sikkerguard.core.lists.parse import Parsed

log = logging.getLogger(__name__)

_TITLES = {SIKKERAPI: "SikkerAPI's list", LOCAL_FILE: "the file of SIKKER_CUSTOM_BLACKLIST"}
# Lines of a person's file that can't be read and are named one by one.
_SHOWN_LINES = 20


async def read_strictly(feed: Feed, query: tuple[str, ...], changes: Signal) -> Change:
    """Pull and read a list that a program made, of which every line has to be an entry or a comment. `query` is what
    its size depends on; `changes` is set as the work makes progress.

    Raises:
        FetchError: the list could not be had.
        ListError: what came is not a list.
    """
    parser = ApiParser()
    async with aclosing(feed.stream()) as pieces:
        async for piece in pieces:
            # In a thread, so that the loop goes on answering while a megabyte is read.
            await asyncio.to_thread(parser.feed, piece)
            changes.set()
    parsed = await asyncio.to_thread(parser.finish)
    change = await asyncio.to_thread(_change_to, feed.name, parsed, query)
    if parsed.rejected and change.offer is not None:
        shown = f"{change.offer.name[:1].upper()}{change.offer.name[1:]}"
        log.warning("%s: %s skipped (%s).", shown, describe_removed(parsed.rejected), "; ".join(parsed.samples))
    return change


async def read_forgivingly(feed: Feed, place: str) -> Change:
    """Read a list that a person wrote, in the file at `place`. Lines that can't be read are named in the log.

    Raises:
        ListError: the file can't be read, is empty, or nothing in it can be understood.
    """
    async with aclosing(feed.stream()) as pieces:
        # Of a single piece, however large, this makes no copy.
        content = b"".join([piece async for piece in pieces])
    parsed, skipped = await asyncio.to_thread(read_custom, place, content)
    del content
    for sentence in skipped[:_SHOWN_LINES]:
        log.warning("%s: %s.", feed.name, sentence)
    if len(skipped) > _SHOWN_LINES:
        log.warning("%s: %d more lines of %s are skipped.", feed.name, len(skipped) - _SHOWN_LINES, place)
    if not parsed.lines and not parsed.short:
        return Change(feed.name, parsed.content)  # comments alone: nothing is to be blocked by it
    return await asyncio.to_thread(_change_to, feed.name, parsed, (place,), local=True)


def _change_to(name: str, parsed: Parsed, query: tuple[str, ...], *, local: bool = False) -> Change:
    """The new version of a source. It is as large as its entries are as they were read: those that touch become one,
    and many wide ranges few."""
    offer = Offer(
        _TITLES.get(name, f"the list of {name}"),
        extent_of(without_special(parsed.content))._replace(entries=parsed.lines),
        lines=parsed.lines + parsed.short,
        short=parsed.short,
        # The key is part of it, since the tier limits the list; only a digest of it is kept.
        query=hashlib.sha256("\0".join(query).encode()).hexdigest(),
        local=local,
        terminated=parsed.terminated,
    )
    return Change(name, parsed.content, offer)
