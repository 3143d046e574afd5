"""Reads listings of sets as the kernel writes them: at once where all entries have one layout, one by one where not.

Numbers are those of the kernel's `include/uapi/linux/netfilter/ipset/ip_set.h`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TYPE_MASK = 0x3FFF
DATA_IP, DATA_CIDR, DATA_PORT, DATA_TIMEOUT, DATA_PROTO, DATA_FLAGS = 1, 3, 4, 6, 7, 8
DATA_BYTES, DATA_PACKETS = 24, 25
# `nomatch` of enum ipset_cadt_flags: what the entry covers does not match.
_NOMATCH = 1 << 2
# Format characters of `struct` for unsigned numbers, by their size in bytes.
_FORMS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, payload) of each of these netlink attributes in a row."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        yield kind & TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Listing(Collection[Any]):
    """The entries of one set, kept as the kernel sent them. Each is a tuple of the attributes of these kinds: the
    address packed, the others as numbers.

    A hundred thousand entries take six megabytes this way, and some twenty as objects. They usually have one layout:
    that of the first is used to unpack all at once, which is twenty times as fast as reading each by itself, as is done
    where one has another layout.
    """

    def __init__(self, listed: bytes, kinds: tuple[int, ...]) -> None:
        self._listed = listed
        self._kinds = kinds
        self._form = _common_form(listed, kinds)

    def __len__(self) -> int:
        if self._form is not None:
            return len(self._listed) // self._form.size
        return sum(1 for _ in attributes(self._listed))

    def __iter__(self) -> Iterator[Any]:
        if self._form is not None:
            return self._form.iter_unpack(self._listed)
        return self._each()

    def __contains__(self, entry: object) -> bool:
        return any(entry == each for each in self)

    def _each(self) -> Iterator[tuple[Any, ...]]:
        for _, entry in attributes(self._listed):
            data = dict(attributes(entry))
            yield tuple(data[kind][4:] if kind == DATA_IP else number(data.get(kind, b"")) for kind in self._kinds)


def _common_form(listed: bytes, kinds: tuple[int, ...]) -> struct.Struct | None:
    """How to unpack these attributes, in this order, from every entry; None where not all have one layout."""
    if not listed:
        return None
    (size,) = struct.unpack_from("=H", listed)
    places = [place for place in _places(listed[:size]) if place[0] in kinds]
    form, at, constant = ">", 0, set(range(size))
    for kind, offset, length in places:
        form += f"{offset - at}x" + (f"{length}s" if kind == DATA_IP else _FORMS[length])
        at = offset + length
        constant -= set(range(offset, at))
    number, odd = divmod(len(listed), size)
    # Between entries only values may differ, and not the bytes between them.
    alike = not odd and all(listed[offset::size].count(listed[offset]) == number for offset in constant)
    if not alike or tuple(kind for kind, _, _ in places) != kinds:
        return None
    return struct.Struct(form + f"{size - at}x")


def _places(entry: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, offset, length) of each value within an entry; of an address, those of the packed address itself."""
    offset = 4
    while offset + 4 <= len(entry):
        length, kind = struct.unpack_from("=HH", entry, offset)
        if kind & TYPE_MASK == DATA_IP:
            yield DATA_IP, offset + 8, length - 8
        else:
            yield kind & TYPE_MASK, offset + 4, length - 4
        offset += (length + 3) & ~3


def number(data: bytes) -> int:
    """An attribute's number, which is in network byte order; 0 of nothing."""
    return int.from_bytes(data, "big")


def prefix_length(data: dict[int, bytes], bits: int) -> int:
    """The prefix length in an entry's attributes; without one it is a single address, of so many bits."""
    return data[DATA_CIDR][0] if DATA_CIDR in data else bits


def listed_prefixes(listed: bytes, bits: int) -> Iterator[tuple[bytes, int, bool]]:
    """(packed address, prefix length, whether it is `nomatch`) of each of these entries, whose addresses have so many
    bits."""
    if not listed:
        return
    (size,) = struct.unpack_from("=H", listed)
    kinds = {kind for kind, _, _ in _places(listed[:size])}
    wanted = (DATA_IP, DATA_CIDR) if DATA_CIDR in kinds else (DATA_IP,)
    form = None if DATA_FLAGS in kinds else _common_form(listed, wanted)
    if form is not None:
        for values in form.iter_unpack(listed):
            yield values[0], values[1] if len(wanted) > 1 else bits, False
        return
    for _, entry in attributes(listed):
        data = dict(attributes(entry))
        nomatch = bool(number(data.get(DATA_FLAGS, b"")) & _NOMATCH)
        yield data[DATA_IP][4:], prefix_length(data, bits), nomatch
