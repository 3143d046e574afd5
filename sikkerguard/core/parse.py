"""Bytes to networks: every line is taken whole, or counted with the reason why it was not.

Two readers share one way of reading a line. `ApiParser` reads what SikkerAPI answers and is strict: its contract
is plain ASCII, one entry a line, so a byte that can't be part of it (a carriage return, a byte order mark, a NUL,
markup) means that something else answered, or that something on the way rewrote the list. `read_custom` reads a
file that a person wrote and forgives what editors do; a line it can't read is named and skipped.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from itertools import repeat
from operator import length_hint
from typing import TYPE_CHECKING

from sikkerguard.core.model import Blocklist, Family, Prefix, parse_prefix
from sikkerguard.core.ranges import Sorter, canonical
from sikkerguard.core.special import is_shorter
from sikkerguard.errors import ListError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The longest entry is 43 characters (IPv6 with a prefix length); what is left is room for a comment.
LONGEST_LINE = 1024
# A list of which more than this share can't be read is not a list with a flaw but something else.
TOLERATED_SHARE = 0.01
# Lines of the API's list that are not addresses, ranges, comments or blank are shown up to this many.
SAMPLE = 3

# The shortest prefix lengths that a source may block: nobody's list of attackers names wider ranges, and the owner of a
# host may know of some.
API_FLOORS = {Family.V4: 16, Family.V6: 32}
LOCAL_FLOORS = {Family.V4: 8, Family.V6: 16}

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


@dataclass(slots=True)
class _Collector:
    """Gathers entries and rejected lines; the only mutable thing here, and it never leaves this module."""

    floors: Mapping[Family, int]
    v4: Sorter = field(default_factory=lambda: Sorter(Family.V4))
    v6: Sorter = field(default_factory=lambda: Sorter(Family.V6))
    v4_ranges: list[Prefix] = field(default_factory=list)
    v6_ranges: list[Prefix] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    line_number: int = 0
    short: int = 0

    def add_lines(self, lines: list[str]) -> None:
        """Take each line. Plain IPv4 addresses, nearly all of a list, go through one C loop; a line that it
        can't take ends the loop, is read by itself, and the loop goes on behind it."""
        remaining = iter(lines)
        v4: list[bytes] = []
        v6: list[bytes] = []
        while True:
            before = len(v4)
            try:
                v4.extend(map(socket.inet_pton, repeat(Family.V4.number), remaining))
            except (OSError, ValueError):
                self.line_number += len(v4) - before + 1
                self.add_line(lines[len(lines) - length_hint(remaining) - 1], v4, v6)
            else:
                self.line_number += len(v4) - before
                break
        self.v4.add(v4)
        self.v6.add(v6)

    def add_line(self, line: str, v4: list[bytes], v6: list[bytes]) -> str | None:
        """Take one line of any kind, a single address into one of the lists; the answer is the reason why it was
        rejected, or None."""
        text = line.partition("#")[0].strip(" \t")
        if not text:
            return None
        try:
            family, prefix = parse_prefix(text)
        except ValueError as error:
            return self.reject(str(error), text)
        floor = self.floors[family]
        if is_shorter(family, prefix, floor):
            self.short += 1
            return self.reject(f"wider than /{floor}", text)
        if prefix.length == family.bits:
            packed = prefix.first.to_bytes(family.size, "big")
            (v4 if family is Family.V4 else v6).append(packed)
        else:
            (self.v4_ranges if family is Family.V4 else self.v6_ranges).append(prefix)
        return None

    def reject(self, reason: str, text: str) -> str:
        self.rejected[reason] += 1
        if len(self.samples) < SAMPLE:
            self.samples.append(f"line {self.line_number}: {text[:60]!r}: {reason}")
        return reason

    def entries(self) -> int:
        return self.v4.count + self.v6.count + len(self.v4_ranges) + len(self.v6_ranges)

    def parsed(self, terminated: bool) -> Parsed:
        content = Blocklist(
            canonical(Family.V4, self.v4, self.v4_ranges), canonical(Family.V6, self.v6, self.v6_ranges)
        )
        return Parsed(content, self.entries(), dict(self.rejected), tuple(self.samples), terminated, self.short)


class ApiParser:
    """Reads the API's plain text list as it arrives, piece by piece, so that memory stays flat."""

    def __init__(self) -> None:
        self._collector = _Collector(API_FLOORS)
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body, cut anywhere.

        Raises:
            ListError: the body is not a list.
        """
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
            raise ListError(
                f"the answer is not a list of addresses: {rejected} of {collector.entries() + rejected} lines "
                f"can't be used ({'; '.join(collector.samples)})"
            )
        if not collector.entries() and not collector.short:
            raise ListError(
                "the answer has no address in it; an empty list is an error of the API, never the news that there "
                "are no attackers"
            )
        return collector.parsed(terminated=not self._tail)


def read_custom(name: str, content: bytes) -> tuple[Parsed, tuple[str, ...]]:
    """Read a list that a person keeps: the networks, and one sentence for each line that was skipped.

    Carriage returns, a UTF-8 byte order mark and comments behind `#` or `;` are forgiven. `name` is the file's,
    for the sentences. A file of comments alone is an empty list on purpose.

    Raises:
        ListError: the file is empty, or nothing in it can be read: it was cut off, or something else wrote it.
    """
    collector = _Collector(LOCAL_FLOORS)
    skipped: list[str] = []
    v4: list[bytes] = []
    v6: list[bytes] = []
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    if not text.strip():
        raise ListError(f"{name} is empty; to block nothing by it, leave a comment in it or take the setting out")
    for number, line in enumerate(text.split("\n"), start=1):
        collector.line_number = number
        reason = collector.add_line(line.partition(";")[0].strip(), v4, v6)
        if reason:
            skipped.append(f"{name}, line {number}: {line.strip()[:60]!r} is skipped: {reason}")
    collector.v4.add(v4)
    collector.v6.add(v6)
    if not collector.entries() and collector.rejected:
        raise ListError(f"nothing in {name} can be read ({'; '.join(collector.samples)})")
    return collector.parsed(terminated=True), tuple(skipped)


def merge_content(contents: Iterable[Blocklist]) -> Blocklist:
    """Several lists as one, in canonical form."""
    parts = [content for content in contents if len(content)]
    if len(parts) == 1:
        return parts[0]
    merged = {}
    for family in Family:
        sorter = Sorter(family)
        prefixes: list[Prefix] = []
        for part in parts:
            for piece in part.of(family).single_pieces():
                sorter.add(piece)
            prefixes += part.of(family).ranges
        merged[family] = canonical(family, sorter, prefixes)
    return Blocklist(merged[Family.V4], merged[Family.V6])
