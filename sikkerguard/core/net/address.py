"""Addresses and prefixes as text and as numbers."""

from __future__ import annotations

import socket
from typing import NamedTuple

from sikkerguard.core.net.family import Family, family_of
from sikkerguard.core.net.packed import Prefix


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


def packed_to_text(address: bytes) -> str:
    """`192.0.2.1`, from a packed address."""
    family = family_of(address)
    return to_text(family, Prefix(int.from_bytes(address, "big"), family.bits))


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
