"""Reads plain list files: one address or CIDR range a line, optionally with a count behind a tab."""

from __future__ import annotations

import time
from pathlib import Path

from sikkerguard.errors import SikkerGuardError
from tests.standin.entries import Entry

SAMPLE = Path(__file__).with_name("sample.txt")
"""A sample of real public lists; its sources and licences are beside it."""

UNCOUNTED_CONFIDENCE = 75


def confidence_of(count: int) -> int:
    """The confidence level of an address that `count` public lists name: 50 for one list, 5 more for each
    further one, at most 100. So the default scoreMinimum of 50 lets every line through, and each step of 5
    drops one level of the ipsum format (https://github.com/stamparm/ipsum)."""
    return min(100, 45 + 5 * count)


def parse_list(text: str, *, source: str = "the list", now: float | None = None) -> list[Entry]:
    """The entries of a plain list; `#` starts a comment, blank lines mean nothing.

    The first line counts as seen at `now` (Unix seconds, the present unless given) and each further one a
    second earlier, so that lines of one confidence are served in the order of the file. Duplicates stay.
    Raises SikkerGuardError naming `source` and the line for a line that can't be read.
    """
    seen = int(time.time() if now is None else now)
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            entries.append(_entry(words, seen - len(entries)))
        except ValueError as error:
            raise SikkerGuardError(f"Line {number} of {source} can't be served: {error}.") from error
    return entries


def load_list(path: Path, *, now: float | None = None) -> list[Entry]:
    """`parse_list` over a file. Raises SikkerGuardError if it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SikkerGuardError(f"The list {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SikkerGuardError(f"The list {path} can't be read: it is no UTF-8 text.") from error
    return parse_list(text, source=str(path), now=now)


def _entry(words: list[str], last_seen: int) -> Entry:
    address, *counts = words
    if len(counts) > 1:
        raise ValueError("it has more than an address and a count")
    if not counts:
        return Entry(address, confidence=UNCOUNTED_CONFIDENCE, last_seen=last_seen)
    if not (counts[0].isascii() and counts[0].isdigit() and int(counts[0]) > 0):
        raise ValueError(f"its count {counts[0]!r} is no whole number above 0")
    count = int(counts[0])
    return Entry(address, confidence=confidence_of(count), last_seen=last_seen, sessions=count)
