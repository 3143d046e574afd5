"""Report rows: made from the packets of a source, put into requests, and judged by SikkerAPI's answer. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import packed_to_text, parse_prefix
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.ports.lookup import category_of_source, service_of
from sikkerguard.core.ports.protocols import PROTOCOLS, REPLY, TCP
from sikkerguard.errors import Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sikkerguard.core.lists.allowlist import AllowEntry

# The largest request, and a row's longest `protocol`, by SikkerAPI's documentation of /v1/key/bulk-report. "2 MB" is
# read as two million bytes, which is right for either meaning.
MAX_ROWS = 10_000
MAX_BYTES = 2_000_000
MAX_PROTOCOL = 32

_HEAD, _TAIL = b'{"reports":[', b"]}"
# A row that was rejected with one of these reasons may be accepted on another day.
_QUOTA = re.compile(r"quota|(daily|rate|report) limit|limit (is |was )?(reached|exceeded|spent|used)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """A report of one source: its packed `address`, SikkerAPI's category, the service that it aimed at, and how many
    packets it sent, by which rows are ranked: the largest go first."""

    address: bytes
    category: str
    protocol: str
    packets: int

    def ip(self) -> str:
        """The address as text."""
        return packed_to_text(self.address)


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """Rows that are being sent: the number of their request, unique in the outbox, and its body."""

    request: int
    rows: tuple[Row, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """SikkerAPI's answer to a request: `errors` has the address as sent and the reason for each rejected row.
    `remaining` are the rows that the day's quota has left, `limit` those of a whole day; None where the answer did not
    say."""

    total: int
    accepted: int
    errors: tuple[tuple[str, str], ...]
    remaining: int | None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """An answer, applied to its rows: packed addresses that were rejected for good, with the reason, and those that
    only the quota kept out. All others were accepted."""

    rejected: Mapping[bytes, str]
    postponed: frozenset[bytes]


def row_of(
    address: bytes, packets: Mapping[tuple[int, int], int], port_map: Mapping[int, str], *, spoofable: bool
) -> Row | None:
    """The row of a source that sent `packets`, {(IP protocol, port): count}; None where it is withheld.

    Anyone can put any sender on a datagram, so by default a row is made from TCP alone, and from others with
    `spoofable`. Packets of which the kernel did not count the ports, port -1, count for the rank of a row and can't be
    the reason for one. Replies are neither: this host, or whoever forged its address, may have asked for them.
    """
    packets = {key: count for key, count in packets.items() if key[0] != REPLY}
    usable = {
        key: count for key, count in packets.items() if count > 0 and key[1] >= 0 and (spoofable or key[0] == TCP)
    }
    if not usable:
        return None
    named = {(_name(protocol), port): count for (protocol, port), count in usable.items()}
    # The service is the one that decides the category, by the same rule: a row must not contradict itself.
    transport, port = min(named, key=lambda key: (-named[key], key[1], key[0].upper()))
    service = service_of(transport, port, port_map).reported_as
    return Row(
        address,
        category_of_source(named, port_map),
        (transport.lower() if service == "unknown" else service)[:MAX_PROTOCOL],
        sum(usable.values()) + sum(count for (_, port), count in packets.items() if port < 0),
    )


def allow_matcher(entries: Iterable[AllowEntry]) -> Callable[[bytes], bool]:
    """A function that says whether one of these entries covers a packed address. Made for many thousands of questions:
    entries are kept by their length, of which there are a few."""
    firsts: dict[Family, dict[int, set[int]]] = {family: {} for family in Family}
    for entry in entries:
        shift = entry.family.bits - entry.prefix.length
        firsts[entry.family].setdefault(shift, set()).add(entry.prefix.first >> shift)

    def is_allowed(address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return any(number >> shift in known for shift, known in firsts[family_of(address)].items())

    return is_allowed


def first_request(rows: Sequence[Row], max_bytes: int = MAX_BYTES) -> tuple[int, bytes]:
    """Put rows into one request, in their order, as many as fit and at least one. Returns how many, and the body."""
    pieces: list[bytes] = []
    size = len(_HEAD) + len(_TAIL)
    for row in rows[:MAX_ROWS]:
        # Nothing else leaves the host: SikkerAPI does not need it.
        value = {"ip": row.ip(), "category": row.category, "protocol": row.protocol}
        piece = json.dumps(value, separators=(",", ":")).encode()
        size += len(piece) + (1 if pieces else 0)
        if pieces and size > max_bytes:
            break
        pieces.append(piece)
    return len(pieces), _HEAD + b",".join(pieces) + _TAIL


def judge(rows: Sequence[Row], answer: ReportAnswer) -> BatchResult:
    """Apply the answer to these rows, each of which has an address of its own.

    Rows are found by their address, not by their number: whether numbers count from 0 or 1 is not documented.

    Raises:
        Unanswered: the answer contradicts itself, or the rows that were sent.
    """
    waiting = {row.address for row in rows}
    rejected: dict[bytes, str] = {}
    postponed = set[bytes]()
    for text, reason in answer.errors:
        address = _packed(text)
        if address not in waiting:
            raise Unanswered(f"SikkerAPI rejects a row that was not sent ({text!r})")
        waiting.remove(address)
        if _QUOTA.search(reason):
            postponed.add(address)
        else:
            rejected[address] = reason
    if answer.total != len(rows) or answer.accepted != len(waiting):
        raise Unanswered(
            f"SikkerAPI answers for {answer.total} rows, {answer.accepted} of them accepted, and names "
            f"{len(answer.errors)} errors, where {len(rows)} rows were sent"
        )
    return BatchResult(rejected, frozenset(postponed))


def _name(protocol: int) -> str:
    return PROTOCOLS.get(protocol, str(protocol))


def _packed(text: str) -> bytes | None:
    try:
        family, prefix = parse_prefix(text)
    except ValueError:
        return None
    return prefix.first.to_bytes(family.size, "big")
