"""The frozen values that pass between the steps.

Addresses travel packed, in network byte order: a million of them is four megabytes, sorts as bytes do, and is
what the kernel wants to be sent.
"""

from __future__ import annotations

import socket
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.packed import Prefix as Prefix
from sikkerguard.core.packed import Ranges as Ranges
from sikkerguard.core.packed import pieces, position

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


class Family(Enum):
    """An address family: `bits` of an address, `size` of it in bytes, and `number`, the family's constant in the
    kernel."""

    V4 = ("v4", 32, socket.AF_INET)
    V6 = ("v6", 128, socket.AF_INET6)

    def __init__(self, label: str, bits: int, number: int) -> None:
        self.label = label
        self.bits = bits
        self.size = bits // 8
        self.number = int(number)


def family_of(address: bytes) -> Family:
    """The family of a packed address."""
    return Family.V4 if len(address) == Family.V4.size else Family.V6


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


def parse_address(text: str) -> tuple[Family, int]:
    """Read one address, to its number: the forms of `parse_prefix`, but no range.

    Raises:
        ValueError: the text is none.
    """
    if "/" in text:
        raise ValueError("not one address")
    family, prefix = parse_prefix(text)
    return family, prefix.first


_NO_RANGES = Ranges(Family.V4)


@dataclass(frozen=True, slots=True)
class Networks:
    """Addresses of one family, in canonical form: `singles` are packed addresses, ascending, each once; `ranges`
    are ascending and disjoint, and cover none of the singles. Its length is the number of entries."""

    family: Family
    singles: bytes = b""
    ranges: Ranges = _NO_RANGES

    def __len__(self) -> int:
        return len(self.singles) // self.family.size + len(self.ranges)

    def single_pieces(self) -> Iterator[list[bytes]]:
        """The single addresses, each packed, in lists of some thousand: as objects they take ten times the room."""
        return pieces(self.singles, self.family.size)

    def single_positions(self, first: int, last: int) -> tuple[int, int]:
        """The half-open span of positions of the singles from address `first` to address `last`."""
        size, singles = self.family.size, self.singles
        low = position(singles, size, first.to_bytes(size, "big"))
        return low, position(singles, size, last.to_bytes(size, "big"), low, behind=True)

    def find(self, address: int) -> Prefix | None:
        """The entry that covers this address, or None."""
        size, singles = self.family.size, self.singles
        packed = address.to_bytes(size, "big")
        at = size * bisect_left(
            range(len(singles) // size), packed, key=lambda place: singles[place * size : place * size + size]
        )
        if singles[at : at + size] == packed:
            return Prefix(address, self.family.bits)
        low, high = self.ranges.span(address, address)
        return self.ranges[low] if low < high else None

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any entry covers an address from `first` to `last`."""
        return any(low < high for low, high in (self.single_positions(first, last), self.ranges.span(first, last)))

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
GATEWAY, RESOLVER, API, PROXY, SSH = "default gateway", "resolver", "SikkerAPI", "proxy", "SSH session"


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
        """The ranges of one family that no other one covers, each once: the fewest entries that allow all of it."""
        kept: list[Prefix] = []
        end = -1
        # Two ranges are disjoint or one covers the other, and that one comes first.
        for prefix in sorted({entry.prefix for entry in self.entries if entry.family is family}):
            if prefix.first > end:
                kept.append(prefix)
                end = prefix.last(family)
        return frozenset(kept)

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


# The names of the sources.
SIKKERAPI, LOCAL_FILE = "SikkerAPI", "SIKKER_CUSTOM_BLACKLIST"


@dataclass(frozen=True, slots=True)
class ListedSource:
    """One list as it was read: its `name`, its canonical content, and since when it is in force (Unix seconds)."""

    name: str
    content: Blocklist
    since: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An address that is listed and not blocked, because with it the host lost a connection in a trial. `test` names
    the self-test that failed."""

    family: Family
    address: int
    test: str

    def __str__(self) -> str:
        return to_text(self.family, Prefix(self.address, self.family.bits))


@dataclass(frozen=True, slots=True)
class VerifiedList:
    """A list that passed a trial, as the cache keeps it.

    `sources` are before the allowlist and `left_out` are cut out, so that a changed allowlist can be applied to them
    anew; `verified_at`, in Unix seconds, is when SikkerAPI's part passed, or all of it where it has none.
    """

    sources: tuple[ListedSource, ...]
    verified_at: float
    left_out: tuple[LeftOut, ...] = ()

    def content_of(self, name: str) -> tuple[ListedSource, ...]:
        """The generations of one source, oldest first."""
        return tuple(source for source in self.sources if source.name == name)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A way out: a default gateway, and the index of the interface behind which it is. `address` is empty where the
    default route leads straight out of the interface, as with ppp, WireGuard and other tunnels."""

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
    """One self-test's finding: the test's `name`, its outcome, and a few words that go on from the name.

    Tests of the same `subject` are witnesses of one connection, of which one that passes is enough. Without a subject
    the test stands for itself.
    """

    name: str
    outcome: Outcome
    detail: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.detail}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where this host stands: what is allowed because of it, in the order in which it was found (an address may be
    there twice, for different reasons), and its ways out."""

    allowed: tuple[AllowEntry, ...]
    gateways: frozenset[Gateway]


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
class SourceStatus:
    """One source of the list in force: its entries, when that version was taken (Unix seconds), the shares of IPv4 and
    IPv6 that it covers, from 0 to 1, and the sentence that says why a newer version is not used, or empty."""

    name: str
    entries: int
    taken_at: float | None
    covered_v4: float
    covered_v6: float
    trouble: str = ""


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
    `settled_at`, which is on the monotonic clock: when the kernel was last seen to hold what it should. `troubles` are
    named sentences on what does not work though the list blocks: an operator has to hear of them. Wishes for a pull are
    numbered from 1, and `pull_answered` is the last one that a finished pull has answered."""

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
    pull_answered: int = 0
    quota_remaining: int | None = None
    allowlist: str = ""
    lists: tuple[SourceStatus, ...] = ()
    covered_v4: float = 0.0
    covered_v6: float = 0.0
    left_out: tuple[str, ...] = ()
    settled_at: float | None = None
    trouble: str = ""
    troubles: tuple[tuple[str, str], ...] = ()
    repairs: int = 0
    last_repair: str = ""
    counted: Counted = field(default_factory=Counted)
    reports: ReportNumbers = field(default_factory=ReportNumbers)
    log_source: str = "counters"
    log_lost: int = 0
    on_trial: bool = False
