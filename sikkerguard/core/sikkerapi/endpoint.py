"""Which addresses requests may be sent to, and so may never be blocked: those that proved whose they are.

A name's addresses come from DNS, which anyone may forge and which has no end. So an address of SikkerAPI counts only
once it completed a verified handshake, and a proxy's once it took a connection; at most `MAX_ADDRESSES` are tried at a
time, and kept. An address that the operator wrote himself needs no proof."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.net.address import parse_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_ADDRESSES = 16
# For so long an address that proved itself is used without being asked again. Where other addresses stand beside it in
# DNS that did not, they are asked no more often either.
FRESH_SECONDS = 3600.0
# For so long it stays allowed while no address proves itself, since the line or SikkerAPI may be down.
KEPT_SECONDS = 86400.0
# How many addresses that proved nothing are remembered, so that others have their turn before them.
_MAX_REFUSED = 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What requests connect to, SikkerAPI itself or a proxy: the `reason` for which its addresses are allowed, the
    `scheme` that is spoken there, and a name or an address with its port."""

    reason: str
    scheme: str
    host: str
    port: int

    @property
    def literal(self) -> str:
        """The address, where the operator wrote one, without its zone; else empty."""
        address = self.host.partition("%")[0]
        return address if is_address(address) else ""

    def __str__(self) -> str:
        return f"{self.reason} {self.scheme}://{self.host}:{self.port}"


class Proof(NamedTuple):
    """An address, and when it last proved itself (Unix seconds)."""

    address: str
    at: float


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a way's addresses: at most `MAX_ADDRESSES` `proofs`, the newest first; when others were last
    tried in vain (`refused`); when any was last tried (`tried_at`); and whether no proof counts as fresh (`doubted`),
    since they are of an earlier run, or nothing proved itself when it was last asked. Times are Unix seconds."""

    proofs: tuple[Proof, ...] = ()
    refused: Mapping[str, float] = field(default_factory=dict)
    tried_at: float = -math.inf
    doubted: bool = False


def is_address(text: str) -> bool:
    """Whether this is one address, as `parse_prefix` reads them."""
    try:
        family, prefix = parse_prefix(text)
    except ValueError:
        return False
    return prefix.length == family.bits and "/" not in text


def entry_of(address: str, reason: str) -> AllowEntry:
    """The allowlist's entry for an address. Raises `ValueError` where it is none."""
    return AllowEntry(*parse_prefix(address), reason)


def is_due(known: Known, resolved: Iterable[str], now: float) -> bool:
    """Whether addresses have to prove themselves before a request. `resolved` are those that the name stands for now,
    or none where it does not resolve.

    At once where none of them proved itself lately: the way has moved. Where some did and others did not, once an hour.
    """
    if known.doubted:
        return True
    fresh = {proof.address for proof in known.proofs if 0 <= now - proof.at < FRESH_SECONDS}
    wanted = set(resolved)
    if not (fresh & wanted if wanted else fresh):
        return True
    return not wanted <= fresh and not 0 <= now - known.tried_at < FRESH_SECONDS


def candidates(known: Known, resolved: Iterable[str]) -> tuple[str, ...]:
    """The addresses that are to prove themselves now, at most `MAX_ADDRESSES`.

    Half of the places are for those that did before, if there are so many, first those that the name still stands for;
    half are for new ones, both families in turn. Of these the ones come first that were never tried, then those whose
    turn was longest ago: a name with thousands of addresses is walked through, request by request.
    """
    wanted = tuple(dict.fromkeys(resolved))
    named = set(wanted)
    old = [proof.address for proof in sorted(known.proofs, key=lambda proof: (proof.address not in named, proof.at))]
    known_before = set(old)

    def turn(address: str) -> float:
        return known.refused.get(address, -math.inf)

    waiting = sorted((address for address in wanted if address not in known_before), key=turn)
    fresh = [address for _, group in groupby(waiting, turn) for address in _alternating(list(group))]
    room = max(MAX_ADDRESSES // 2, MAX_ADDRESSES - len(fresh))
    return tuple([*old[:room], *fresh][:MAX_ADDRESSES])


def _alternating(addresses: list[str]) -> list[str]:
    """The same with one of each family in turn, the first one's first, as long as there are both (RFC 8305, section 4):
    where one family leads nowhere, the other must not have to wait."""
    first = [address for address in addresses if (":" in address) == (":" in addresses[0])]
    other = [address for address in addresses if (":" in address) != (":" in addresses[0])]
    pairs = [address for pair in zip(first, other, strict=False) for address in pair]
    return pairs + first[len(other) :] + other[len(first) :]


def settled(known: Known, tried: Mapping[str, bool], now: float) -> Known:
    """What is known once these addresses were tried: True for each that proved itself.

    Where one did, the others that were tried are forgotten. Where none did, the line or SikkerAPI may be down, and what
    proved itself within the last day stays.
    """
    proved = [Proof(address, now) for address, good in tried.items() if good]
    # A clock that was put back must not make a proof last longer.
    kept = [
        Proof(proof.address, min(proof.at, now))
        for proof in known.proofs
        if now - proof.at < KEPT_SECONDS and (proof.address not in tried if proved else True)
    ]
    proofs = sorted([*proved, *kept], key=lambda proof: -proof.at)[:MAX_ADDRESSES]
    refused = {address: at for address, at in known.refused.items() if address not in tried}
    refused |= {address: now for address, good in tried.items() if not good}
    return Known(tuple(proofs), dict(list(refused.items())[-_MAX_REFUSED:]), now, doubted=not proved)


def usable(known: Known, resolved: Iterable[str]) -> tuple[str, ...]:
    """The addresses to send requests to, the best first: those that the name stands for, and that proved themselves
    most recently."""
    named = set(resolved)
    ranked = sorted(known.proofs, key=lambda proof: (proof.address not in named, -proof.at))
    return tuple(proof.address for proof in ranked)


@dataclass(frozen=True, slots=True)
class EndpointMemory:
    """What outlives a restart: the endpoint, as `Endpoint` is written, and the proofs of its addresses."""

    endpoint: str = ""
    proofs: tuple[Proof, ...] = ()

    def as_json(self) -> dict[str, object]:
        """What `memory_from_json` reads."""
        return {"way": self.endpoint, "proofs": [list(proof) for proof in self.proofs]}

    def recall(self, endpoint: Endpoint, now: float) -> Known:
        """What was known of this endpoint; nothing where that was another one, or too old to be kept. `now` in Unix
        seconds."""
        if self.endpoint != str(endpoint):
            return Known()
        proofs = [Proof(proof.address, min(proof.at, now)) for proof in self.proofs if now - proof.at < KEPT_SECONDS]
        return Known(tuple(sorted(proofs, key=lambda proof: -proof.at)[:MAX_ADDRESSES]), doubted=True)


def memory_from_json(record: Mapping[str, object]) -> EndpointMemory:
    """What `as_json` gave; whatever can't be read of it is left out."""
    proofs = []
    rows = record.get("proofs")
    for row in rows if isinstance(rows, list) else ():
        match row:
            case [str(address), float() | int() as at] if is_address(address):
                proofs.append(Proof(address, float(at)))
    return EndpointMemory(str(record.get("way", "")), tuple(proofs))
