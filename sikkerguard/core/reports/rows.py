"""From the packets of a source to the row that reports it, and from an answer to what became of each row. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import parse_prefix, to_text
from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix
from sikkerguard.core.services.lookup import category_of_source, service_of
from sikkerguard.core.services.protocols import PROTOCOLS, REPLY, TCP
from sikkerguard.errors import UnansweredError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sikkerguard.core.lists.allowlist import AllowEntry
    from sikkerguard.core.reports.stats import ReportStats

# The bounds of one request and of a row's `protocol`, as SikkerAPI's documentation of /v1/key/bulk-report has them.
# It says 2 MB: the smaller reading is right either way.
MOST_ROWS = 10_000
MOST_BYTES = 2_000_000
MOST_PROTOCOL = 32

_HEAD, _TAIL = b'{"reports":[', b"]}"
_NAMED = 5
_NAMED_REJECTED = 20
# Words by which a rejected row tells that nothing is wrong with it but the hour.
_QUOTA = re.compile(r"quota|(daily|rate|report) limit|limit (is |was )?(reached|exceeded|spent|used)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One source, packed, under one category. `packets` rank it: who sent most is reported first."""

    address: bytes
    category: str
    protocol: str
    packets: int

    def ip(self) -> str:
        """The address as text."""
        family = family_of(self.address)
        return to_text(family, Prefix(int.from_bytes(self.address, "big"), family.bits))


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """Rows on their way: the number of their request, unique in the outbox, and the body that has exactly them."""

    request: int
    rows: tuple[Row, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What the server made of a request: `errors` has the address as sent and the reason for each rejected row.
    `remaining` are the rows that the day's quota has left, `limit` those that it has on a whole day, None where the
    answer did not say."""

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

    Anyone can put any sender on a datagram, so by default a row is made from TCP alone. Packets that the kernel did
    not tell apart, port -1, count for the rank of a row and can't be the reason for one. Replies are neither: the host
    itself, or who forged its address, may have asked for them.
    """
    packets = {key: count for key, count in packets.items() if key[0] != REPLY}
    telling = {
        key: count for key, count in packets.items() if count > 0 and key[1] >= 0 and (spoofable or key[0] == TCP)
    }
    if not telling:
        return None
    named = {(_name(protocol), port): count for (protocol, port), count in telling.items()}
    # The service is the one that decides the category, by the same rule: a row must not contradict itself.
    transport, port = min(named, key=lambda key: (-named[key], key[1], key[0].upper()))
    service = service_of(transport, port, port_map).reported_as
    return Row(
        address,
        category_of_source(named, port_map),
        (transport.lower() if service == "unknown" else service)[:MOST_PROTOCOL],
        sum(telling.values()) + sum(count for (_, port), count in packets.items() if port < 0),
    )


def sparing(entries: Iterable[AllowEntry]) -> Callable[[bytes], bool]:
    """Says of a packed address whether one of these entries covers it. Asked for each of many thousands: ranges lie by
    their lengths, of which there are a few."""
    firsts: dict[Family, dict[int, set[int]]] = {family: {} for family in Family}
    for entry in entries:
        shift = entry.family.bits - entry.prefix.length
        firsts[entry.family].setdefault(shift, set()).add(entry.prefix.first >> shift)

    def spared(address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return any(number >> shift in known for shift, known in firsts[family_of(address)].items())

    return spared


def first_request(rows: Sequence[Row], most_bytes: int = MOST_BYTES) -> tuple[int, bytes]:
    """How many of these rows go into one request, in their order, and its body. At least one does."""
    pieces: list[bytes] = []
    size = len(_HEAD) + len(_TAIL)
    for row in rows[:MOST_ROWS]:
        # Bare of everything else: what the service does not need to know stays here.
        value = {"ip": row.ip(), "category": row.category, "protocol": row.protocol}
        piece = json.dumps(value, separators=(",", ":")).encode()
        size += len(piece) + (1 if pieces else 0)
        if pieces and size > most_bytes:
            break
        pieces.append(piece)
    return len(pieces), _HEAD + b",".join(pieces) + _TAIL


def judge(rows: Sequence[Row], answer: ReportAnswer) -> BatchResult:
    """What the answer says of each of these rows, which have an address each.

    Rows are known by their address, not by their number: whether numbers count from 0 or 1 is not documented.

    Raises:
        UnansweredError: it contradicts itself, or the rows that were sent.
    """
    waiting = {row.address for row in rows}
    rejected: dict[bytes, str] = {}
    postponed = set[bytes]()
    for text, reason in answer.errors:
        address = _packed(text)
        if address not in waiting:
            raise UnansweredError(f"SikkerAPI rejects a row that was not sent ({text!r})")
        waiting.remove(address)
        if _QUOTA.search(reason):
            postponed.add(address)
        else:
            rejected[address] = reason
    if answer.total != len(rows) or answer.accepted != len(waiting):
        raise UnansweredError(
            f"SikkerAPI tells of {answer.total} rows, {answer.accepted} of them accepted, and of {len(answer.errors)} "
            f"errors, where {len(rows)} rows were sent"
        )
    return BatchResult(rejected, frozenset(postponed))


def reported_line(counts: Mapping[str, int]) -> str:
    """In the product's words: `Reported 247 blocked IPs (ssh: 89, http: 63, ...)`; `counts` are rows by protocol."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name}: {count}" for name, count in ordered[:_NAMED]] + ["..."] * (len(ordered) > _NAMED)
    return f"Reported {sum(counts.values())} blocked IPs ({', '.join(named)})"


def spent_line(numbers: ReportStats) -> str:
    """Why rows wait, where the day's quota is the reason; else nothing."""
    if numbers.quota_remaining != 0 or not numbers.waiting:
        return ""
    return (
        f"The day's quota of reports is used up; blocking and counting go on, {numbers.waiting} rows wait for midnight "
        "UTC."
    )


def dropped_line(dropped: int) -> str:
    """What became of sources that are not reported for want of room or of time."""
    return (
        f"{dropped} sources had no room among what waits to be reported, or waited for more than a day; their packets "
        "are counted."
    )


def rejected_line(rejected: Iterable[tuple[str, str]]) -> str:
    """One sentence that names the first rejected rows by address and reason, and counts the others."""
    rows = list(rejected)
    named = [f"{ip} ({reason})" for ip, reason in rows[:_NAMED_REJECTED]]
    if len(rows) > _NAMED_REJECTED:
        named.append(f"and {len(rows) - _NAMED_REJECTED} more")
    return f"SikkerAPI rejected these reports, which are dropped: {', '.join(named)}."


def _name(protocol: int) -> str:
    return PROTOCOLS.get(protocol, str(protocol))


def _packed(text: str) -> bytes | None:
    try:
        family, prefix = parse_prefix(text)
    except ValueError:
        return None
    return prefix.first.to_bytes(family.size, "big")
