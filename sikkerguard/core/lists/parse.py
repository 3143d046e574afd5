"""Bytes to networks: every line is taken whole, or counted with the reason why it was not.

A list may have so many entries, and so many lines that are none; one with more is refused as soon as that is seen, so
that what a list can cost, in memory and in time, does not depend on who wrote it.

Two readers share one way of reading a line. `ApiParser` reads what SikkerAPI answers and is strict: its contract
is plain ASCII, one entry a line, so a byte that can't be part of it (a carriage return, a byte order mark, a NUL,
markup) means that something else answered, or that something on the way rewrote the list. `read_custom` reads a
file that a person wrote and forgives what editors do; a line it can't read is named and skipped.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from dataclasses import dataclass
from itertools import repeat
from operator import length_hint
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import canonical
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Ranges, Runs, pack
from sikkerguard.core.net.special import is_shorter
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# The longest entry is 43 characters (IPv6 with a prefix length); what is left is room for a comment.
LONGEST_LINE = 1024
# A list of which more than this share can't be read is not a list with a flaw but something else.
TOLERATED_SHARE = 0.01
# Lines of the API's list that are not addresses, ranges, comments or blank are shown up to this many.
SAMPLE = 3
# Ceilings for one list, duplicates included, and for several as one. By docs/safety.md ("Memory") a list at all of them
# needs less than the service is given.
MOST_ENTRIES = 2_000_000
MOST_V6 = 500_000
MOST_RANGES = 250_000
# Comments, blank lines, and lines that can't be read: reading one of these costs as much as reading an entry.
MOST_OTHER_LINES = 1_000_000
# Whatever else is in it, a list with more unreadable lines than that has more than the tolerated share.
MOST_REJECTED = int(MOST_ENTRIES * TOLERATED_SHARE / (1 - TOLERATED_SHARE))
# The largest file that a person may keep; as much as SikkerAPI may send.
LARGEST_FILE = 64 << 20

# The shortest prefix lengths that a source may block: nobody's list of attackers names wider ranges, and the owner of a
# host may know of some.
API_FLOORS = {Family.V4: 16, Family.V6: 32}
LOCAL_FLOORS = {Family.V4: 8, Family.V6: 16}

# Bytes that are lines, as objects, at the same time.
_SLICE = 256 << 10
_NOT_PLAIN = re.compile(rb"[^\n\t -~]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The canonical content of a list; the number of entries read, duplicates included; the lines that were rejected,
    counted by reason, `short` of them because they are ranges wider than the source may block; the first few of them as
    samples; and whether the last line ended with a newline."""

    content: Blocklist
    lines: int
    rejected: Mapping[str, int]
    samples: tuple[str, ...]
    terminated: bool
    short: int = 0


class _Collector:
    """Gathers entries and rejected lines; the only mutable thing here, and it never leaves this module. `floors` are
    the shortest prefix lengths that the source may block. `name` is the list's, and `remedy` what to do if there is too
    much in it, for the sentences."""

    def __init__(self, floors: Mapping[Family, int], name: str, remedy: str) -> None:
        self._floors = floors
        self.short = 0
        self.name = name
        self._remedy = remedy
        self.v4, self.v6 = Runs(Family.V4.size), Runs(Family.V6.size)
        self.v4_ranges, self.v6_ranges = Runs(Family.V4.size + 1), Runs(Family.V6.size + 1)
        self.rejected: Counter[str] = Counter()
        self.samples: list[str] = []
        self.line_number = 0

    def add_lines(self, lines: list[str]) -> None:
        """Take each line. Plain IPv4 addresses, nearly all of a list, go through one C loop; a line that it
        can't take ends the loop, is read by itself, and the loop goes on behind it.

        Raises:
            ListError: there is too much of something.
        """
        remaining = iter(lines)
        v4: list[bytes] = []
        while True:
            before = len(v4)
            try:
                v4.extend(map(socket.inet_pton, repeat(Family.V4.number), remaining))
            except (OSError, ValueError):
                self.line_number += len(v4) - before + 1
                self.add_line(lines[len(lines) - length_hint(remaining) - 1])
            else:
                self.line_number += len(v4) - before
                break
        self.v4.add(v4)
        self._check_ceilings()

    def add_line(self, line: str) -> str | None:
        """Take one line of any kind; the answer is the reason why it was rejected, or None."""
        text = line.partition("#")[0].strip(" \t")
        if not text:
            return None
        try:
            family, prefix = parse_prefix(text)
        except ValueError as error:
            return self.reject(str(error), text)
        floor = self._floors[family]
        if is_shorter(family, prefix, floor):
            self.short += 1
            return self.reject(f"wider than /{floor}", text)
        if prefix.length == family.bits:
            (self.v4 if family is Family.V4 else self.v6).add([prefix.first.to_bytes(family.size, "big")])
        else:
            (self.v4_ranges if family is Family.V4 else self.v6_ranges).add([pack(family, *prefix)])
        return None

    def reject(self, reason: str, text: str) -> str:
        self.rejected[reason] += 1
        if len(self.samples) < SAMPLE:
            self.samples.append(f"line {self.line_number}: {text[:60]!r}: {reason}")
        return reason

    def entries(self) -> int:
        return sum(self._counts())

    def _counts(self) -> tuple[int, int, int, int]:
        return self.v4.count, self.v6.count, self.v4_ranges.count, self.v6_ranges.count

    def _check_ceilings(self) -> None:
        _check_ceilings(self.name, self._counts(), self._remedy)
        if self.line_number - self.entries() > MOST_OTHER_LINES:
            raise ListError(
                f"{self.name} has more than {MOST_OTHER_LINES:,} lines that are no entries: comments, blank ones, or "
                "ones that can't be read"
            )
        if self.rejected.total() > MOST_REJECTED:
            raise self.not_a_list()

    def not_a_list(self) -> ListError:
        """For a list with more unreadable lines than are tolerated."""
        rejected = self.rejected.total()
        return ListError(
            f"{self.name} is not a list of addresses: {rejected} of {self.entries() + rejected} lines "
            f"can't be used ({'; '.join(self.samples)})"
        )

    def parsed(self, terminated: bool) -> Parsed:
        lines = self.entries()
        content = Blocklist(
            canonical(Family.V4, self.v4, Ranges(Family.V4, self.v4_ranges.blob())),
            canonical(Family.V6, self.v6, Ranges(Family.V6, self.v6_ranges.blob())),
        )
        return Parsed(content, lines, dict(self.rejected), tuple(self.samples), terminated, self.short)


def _check_ceilings(name: str, counts: tuple[int, int, int, int], remedy: str) -> None:
    v4, v6, v4_ranges, v6_ranges = counts
    ranges = v4_ranges + v6_ranges
    for count, most, what in (
        (v4 + v6 + ranges, MOST_ENTRIES, "entries"),
        (v6, MOST_V6, "single addresses of IPv6"),
        (ranges, MOST_RANGES, "ranges"),
    ):
        if count > most:
            raise ListError(f"{name} has more than {most:,} {what}, the most that are loaded; {remedy}")


class ApiParser:
    """Reads the API's plain text list as it arrives, piece by piece, so that memory stays flat."""

    def __init__(self) -> None:
        self._collector = _Collector(API_FLOORS, "the answer", "raise SIKKER_SCORE_MIN to be sent fewer")
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body, cut anywhere.

        Raises:
            ListError: the body is not a list, or one with too much in it.
        """
        for start in range(0, len(piece), _SLICE):
            self._feed(piece[start : start + _SLICE])

    def _feed(self, piece: bytes) -> None:
        foreign = _NOT_PLAIN.search(piece)
        if foreign:
            raise ListError(
                f"the answer is not a list of addresses: it has the byte 0x{foreign[0][0]:02x} "
                f"near line {self._collector.line_number + piece.count(10, 0, foreign.start()) + 1}, where plain "
                "ASCII lines are agreed"
            )
        body, newline, tail = (self._tail + piece).rpartition(b"\n")
        if newline:
            lines = body.decode("ascii").split("\n")
            if len(max(lines, key=len)) > LONGEST_LINE:
                raise self._too_long()
            self._collector.add_lines(lines)
        self._tail = tail
        if len(tail) > LONGEST_LINE:
            raise self._too_long()

    def _too_long(self) -> ListError:
        return ListError(
            f"the answer is not a list of addresses: a line behind line {self._collector.line_number} is longer "
            f"than {LONGEST_LINE} characters"
        )

    def finish(self) -> Parsed:
        """The whole list, once the last piece was fed.

        Raises:
            ListError: there is no entry in it, or so many unreadable lines that it can't be a list.
        """
        self._collector.add_lines([self._tail.decode("ascii")])
        collector = self._collector
        # Ranges that are too wide can be read: whether the list may have so many is not decided here.
        rejected = collector.rejected.total() - collector.short
        if rejected > TOLERATED_SHARE * (collector.entries() + rejected):
            raise collector.not_a_list()
        if not collector.entries() and not collector.short:
            raise ListError(
                "the answer has no address in it; an empty list is an error of the API, never the news that there "
                "are no attackers"
            )
        return collector.parsed(terminated=not self._tail)


def read_custom(name: str, content: bytes) -> tuple[Parsed, tuple[str, ...]]:
    """Read a local file, a list that a person keeps: the networks, and one sentence for each line that was skipped.

    Carriage returns, a UTF-8 byte order mark and comments behind `#` or `;` are forgiven. `name` is the file's,
    for the sentences. A file of comments alone is an empty list on purpose.

    Raises:
        ListError: there is too much of something in it; or it is empty, or nothing in it can be read: it was cut off,
            or something else wrote it.
    """
    if len(content) > LARGEST_FILE:
        raise ListError(f"{name} is larger than {LARGEST_FILE >> 20} MiB, the most that is read; shorten it")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content or content.isspace():
        raise ListError(f"{name} is empty; to block nothing by it, leave a comment in it or take the setting out")
    collector = _ForgivingCollector(name)
    for lines in _slices(content):
        collector.add_lines([_readable(line) for line in lines])
    if not collector.entries() and collector.rejected:
        raise ListError(f"nothing in {name} can be read ({'; '.join(collector.samples)})")
    return collector.parsed(terminated=True), tuple(collector.skipped)


class _ForgivingCollector(_Collector):
    """Forgives what editors do, and keeps a sentence for each line that is skipped."""

    def __init__(self, name: str) -> None:
        super().__init__(LOCAL_FLOORS, name, "shorten it")
        self.skipped: list[str] = []

    def add_line(self, line: str) -> str | None:
        """The same, with a sentence."""
        reason = super().add_line(line.partition(";")[0].strip())
        if reason:
            self.skipped.append(f"{self.name}, line {self.line_number}: {line[:60]!r} is skipped: {reason}")
        return reason


def _slices(content: bytes) -> Iterator[list[bytes]]:
    """The lines, without their ends, in lists of some thousand."""
    start = 0
    while start <= len(content):
        end = content.find(b"\n", start + _SLICE)
        end = len(content) if end < 0 else end
        yield content[start:end].split(b"\n")
        start = end + 1


def _readable(line: bytes) -> str:
    # No entry is longer than that, and a comment is not read: an endless line is as good as its beginning, with a mark
    # that keeps half an entry from being one.
    cut = line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + b"..."
    return cut.decode("utf-8", errors="replace").strip()


def merge_content(contents: Iterable[Blocklist]) -> Blocklist:
    """Several lists as one, in canonical form."""
    parts = [content for content in contents if len(content)]
    if len(parts) == 1:
        return parts[0]
    merged = {}
    for family in Family:
        singles, ranges = Runs(family.size), Runs(family.size + 1)
        for part in parts:
            singles.add_row(part.of(family).singles)
            ranges.add_row(part.of(family).ranges.packed)
        merged[family] = canonical(family, singles, Ranges(family, ranges.blob()))
    return Blocklist(merged[Family.V4], merged[Family.V6])


def check_together(contents: Iterable[Blocklist]) -> None:
    """Refuse lists that have too many entries together, before they are merged; what two have counts twice.

    Raises:
        ListError: more than may be loaded.
    """
    parts = tuple(contents)
    v4_ranges, v6_ranges = sum(len(part.v4.ranges) for part in parts), sum(len(part.v6.ranges) for part in parts)
    v4, v6 = sum(len(part.v4) for part in parts) - v4_ranges, sum(len(part.v6) for part in parts) - v6_ranges
    _check_ceilings("the sum of all lists", (v4, v6, v4_ranges, v6_ranges), "shorten one of them")
