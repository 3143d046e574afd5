"""The frozen values that pass between the steps.

Addresses travel packed, in network byte order: a million of them is four megabytes, sorts as bytes do, and is
what the kernel wants to be sent.
"""

from __future__ import annotations

import socket
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from enum import Enum
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


_PIECE = 16384


class Family(Enum):
    """An address family: `bits` of an address, `size` of it in bytes, `floor`, the shortest prefix length that a
    list may block (design, section 4), and `number`, the family's constant in the kernel."""

    V4 = ("v4", 32, 8, socket.AF_INET)
    V6 = ("v6", 128, 16, socket.AF_INET6)

    def __init__(self, label: str, bits: int, floor: int, number: int) -> None:
        self.label = label
        self.bits = bits
        self.size = bits // 8
        self.floor = floor
        self.number = int(number)


def family_of(address: bytes) -> Family:
    """The family of a packed address."""
    return Family.V4 if len(address) == Family.V4.size else Family.V6


class Prefix(NamedTuple):
    """A range of addresses: its first address as a number, and its prefix length."""

    first: int
    length: int

    def last(self, family: Family) -> int:
        """The number of the last address that the prefix covers."""
        return self.first | ((1 << (family.bits - self.length)) - 1)


class Interval(NamedTuple):
    """Addresses from `first` to `last`, both included, as numbers."""

    first: int
    last: int


def to_text(family: Family, prefix: Prefix) -> str:
    """`192.0.2.1` for a single address, `192.0.2.0/24` for a range."""
    text = socket.inet_ntop(family.number, prefix.first.to_bytes(family.size, "big"))
    if family is Family.V6 and "." in text:
        # The C library writes the last 32 bits of some addresses as IPv4, which we do not take back.
        text = f"{text.rpartition(':')[0]}:{prefix.first >> 16 & 0xFFFF:x}:{prefix.first & 0xFFFF:x}"
    return text if prefix.length == family.bits else f"{text}/{prefix.length}"


def parse_prefix(text: str) -> tuple[Family, Prefix]:
    """Read an address or a CIDR range; bits behind the prefix length are cleared, as the kernel does.

    Only the forms of RFC 4291 and dotted quads without leading zeros are taken: `inet_pton`, never `inet_aton`.

    Raises:
        ValueError: the text is neither; the message is the reason, in a few words that can be counted.
    """
    address, slash, length_text = text.partition("/")
    family = Family.V6 if ":" in address else Family.V4
    try:
        packed = socket.inet_pton(family.number, address)
    except (OSError, ValueError):
        raise ValueError("not an address") from None
    if family is Family.V6 and "." in address:
        raise ValueError("IPv4 written as IPv6")
    if not slash:
        return family, Prefix(int.from_bytes(packed, "big"), family.bits)
    if not (length_text.isascii() and length_text.isdigit() and len(length_text) <= 3):
        raise ValueError("not a prefix length")
    length = int(length_text)
    if length > family.bits or length_text != str(length):
        raise ValueError("not a prefix length")
    host_bits = family.bits - length
    return family, Prefix(int.from_bytes(packed, "big") >> host_bits << host_bits, length)


@dataclass(frozen=True, slots=True)
class Networks:
    """Addresses of one family, in canonical form: `singles` are packed addresses, ascending, each once; `ranges`
    are ascending and disjoint, and cover none of the singles. Its length is the number of entries."""

    family: Family
    singles: bytes = b""
    ranges: tuple[Prefix, ...] = ()

    def __len__(self) -> int:
        return len(self.singles) // self.family.size + len(self.ranges)

    def single_pieces(self) -> Iterator[list[bytes]]:
        """The single addresses, each packed, in lists of some thousand: as objects they take ten times the room."""
        size = self.family.size
        for start in range(0, len(self.singles), _PIECE * size):
            piece = self.singles[start : start + _PIECE * size]
            yield [piece[at : at + size] for at in range(0, len(piece), size)]

    def single_positions(self, first: int, last: int) -> tuple[int, int]:
        """The half-open span of positions of the singles from address `first` to address `last`."""
        size, singles = self.family.size, self.singles
        positions = range(len(singles) // size)

        def at(position: int) -> bytes:
            return singles[position * size : position * size + size]

        low = bisect_left(positions, first.to_bytes(size, "big"), key=at)
        return low, bisect_right(positions, last.to_bytes(size, "big"), key=at)

    def find(self, address: int) -> Prefix | None:
        """The entry that covers this address, or None."""
        low, high = self.single_positions(address, address)
        if low < high:
            return Prefix(address, self.family.bits)
        index = bisect_right(self.ranges, (address, self.family.bits)) - 1
        if index >= 0 and self.ranges[index].last(self.family) >= address:
            return self.ranges[index]
        return None

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any entry covers an address from `first` to `last`."""
        low, high = self.single_positions(first, last)
        if low < high:
            return True
        index = bisect_right(self.ranges, (last, self.family.bits)) - 1
        return index >= 0 and self.ranges[index].last(self.family) >= first

    def texts(self) -> Iterator[str]:
        """Every entry as text: the singles, then the ranges."""
        for piece in self.single_pieces():
            yield from map(socket.inet_ntop, repeat(self.family.number), piece)
        for prefix in self.ranges:
            yield to_text(self.family, prefix)


@dataclass(frozen=True, slots=True)
class Blocklist:
    """Both families of one list; its length is the number of entries."""

    v4: Networks = field(default_factory=lambda: Networks(Family.V4))
    v6: Networks = field(default_factory=lambda: Networks(Family.V6))

    def __len__(self) -> int:
        return len(self.v4) + len(self.v6)

    def of(self, family: Family) -> Networks:
        """The networks of one family."""
        return self.v4 if family is Family.V4 else self.v6


# Reasons for which an entry is allowed, where someone asks for them.
GATEWAY, RESOLVER, API = "default gateway", "resolver", "SikkerAPI"


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """A range that is never blocked, and why: `default gateway`, `resolver`, ..."""

    family: Family
    prefix: Prefix
    reason: str

    def __str__(self) -> str:
        return f"{to_text(self.family, self.prefix)} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Allowlist:
    """All that is never blocked, in the order in which it was found."""

    entries: tuple[AllowEntry, ...] = ()

    def prefixes(self, family: Family) -> frozenset[Prefix]:
        """The ranges of one family, each once."""
        return frozenset(entry.prefix for entry in self.entries if entry.family is family)

    def protector(self, family: Family, address: int) -> AllowEntry | None:
        """The most specific entry that covers this address, or None."""
        covering = [
            entry
            for entry in self.entries
            if entry.family is family and entry.prefix.first <= address <= entry.prefix.last(family)
        ]
        return max(covering, key=lambda entry: entry.prefix.length, default=None)

    def summary(self) -> str:
        """In the product's words: `8 IPs + 8 CIDR ranges`."""
        distinct = {(entry.family, entry.prefix) for entry in self.entries}
        addresses = sum(1 for family, prefix in distinct if prefix.length == family.bits)
        return f"{addresses} IPs + {len(distinct) - addresses} CIDR ranges"


@dataclass(frozen=True, slots=True)
class Admission:
    """What a list came to: `blocklist` is to be blocked; `removed` counts what was taken out, by reason."""

    blocklist: Blocklist
    removed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ListedSource:
    """One list as it was read: its `name`, its canonical content, and since when it is in force (Unix seconds)."""

    name: str
    content: Blocklist
    since: float


@dataclass(frozen=True, slots=True)
class VerifiedList:
    """A list that passed a trial, as the cache keeps it.

    `sources` are before the allowlist is cut out, so that a changed allowlist can be applied to them anew;
    `verified_at` is in Unix seconds; `fingerprint` names the query and the custom list that it came from; `size` is
    the number of entries that were blocked, and `terminated` says whether the API's list ended with a newline.
    """

    sources: tuple[ListedSource, ...]
    verified_at: float
    fingerprint: str
    size: int
    terminated: bool = True


@dataclass(frozen=True, slots=True)
class Gateway:
    """A default gateway, and the index of the interface behind which it is."""

    family: Family
    address: str
    interface: int


class Outcome(Enum):
    """What one self-test found."""

    PASSED = "passed"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One self-test's finding: the test's `name`, its outcome, and a few words that go on from the name."""

    name: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        return f"{self.name} {self.detail}"


class Count(NamedTuple):
    """So many packets, and the bytes in them."""

    packets: int
    octets: int


NOTHING = Count(0, 0)
# The protocol and the port of packets whose source is known and no more: of one that was after more ports than are
# told apart, and of fragments, which name none.
ANY = -1
# A packed address, the number of its IP protocol, and the port that was aimed at: for ICMP the type times 256 plus the
# code, 0 where the protocol has none, or twice ANY. Of replies, REPLY of `core.protocols` and the port that they came
# from, or REPLY and ANY.
Key = tuple[bytes, int, int]
Hit = tuple[bytes, int, int, int, int]
Source = tuple[bytes, int, int]


@dataclass(frozen=True, slots=True)
class Drain:
    """What the kernel counted since it was asked before.

    `dropped` is what the DROP rules took up to the moment before the sets were read, and `counters` is where they
    stood then. Of each family `hits` has a listing of (address, port, protocol, octets, packets), and `sources` one of
    (address, octets, packets) for those packets that met no entry of `hits`: the first of each entry, and all that were
    not told apart by port. `replies` and `repliers` are the same for what the sources did not begin, and the port is
    the one that it came from.
    """

    dropped: Count = NOTHING
    counters: Mapping[Family, Count] = field(default_factory=dict)
    hits: Sequence[Collection[Hit]] = ()
    sources: Sequence[Collection[Source]] = ()
    replies: Sequence[Collection[Hit]] = ()
    repliers: Sequence[Collection[Source]] = ()


@dataclass(frozen=True, slots=True)
class DropEvent:
    """What one line of the kernel's log says of a dropped packet. `port` is as in `Key`."""

    family: Family
    address: bytes
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Counted:
    """What is known of all that was dropped: in all, and today (in UTC); how many of the packets in all are of sources
    that the kernel had no room to remember, and how many are replies; and of today the number of sources, and the
    busiest ports as ((protocol, port), packets)."""

    dropped: Count = NOTHING
    dropped_today: Count = NOTHING
    unnamed: int = 0
    sources: int = 0
    top_ports: tuple[tuple[tuple[int, int], int], ...] = ()
    replies: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the last pull went: when it ended (Unix seconds), and the sentence that says why it failed, or empty."""

    at: float
    failure: str


@dataclass(frozen=True, slots=True)
class ReportNumbers:
    """How reporting stands: rows ever sent (accepted by SikkerAPI), withheld, rejected and unanswered; rows that wait
    now; what the day's quota has left, None where nobody said; when a row was last sent (Unix seconds); rows and
    sources ever dropped, because too many waited or for too long; and the sentence that says why rows wait, or empty.
    """

    sent: int = 0
    withheld: int = 0
    rejected: int = 0
    unanswered: int = 0
    waiting: int = 0
    quota_remaining: int | None = None
    last_report_at: float | None = None
    dropped: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """All that the outside may know of the service; replaced as a whole, never changed. Times are Unix seconds, but
    `settled_at`, which is on the monotonic clock: when the kernel was last seen to hold what it should."""

    started_at: float
    dry_run: bool
    blocked_v4: int = 0
    blocked_v6: int = 0
    verified_at: float | None = None
    protecting: bool = False
    last_pull: Attempt | None = None
    next_pull_at: float | None = None
    pulls: int = 0
    pulling: bool = False
    quota_remaining: int | None = None
    allowlist: str = ""
    settled_at: float | None = None
    trouble: str = ""
    repairs: int = 0
    last_repair: str = ""
    counted: Counted = field(default_factory=Counted)
    reports: ReportNumbers = field(default_factory=ReportNumbers)
    log_source: str = "counters"
    log_lost: int = 0
    on_trial: bool = False
