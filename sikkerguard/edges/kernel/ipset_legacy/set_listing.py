"""Listings of sets as the kernel writes them: read in one go where all entries look alike, one by one where not.

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
# What is matched is not to match: `nomatch` (enum ipset_cadt_flags).
_NOMATCH = 1 << 2
# How `struct` writes an unsigned number of so many bytes.
_FORMS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each attribute in a row."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        yield kind & TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Listing(Collection[Any]):
    """The entries of one set as they came, each a tuple of these attributes: the address packed, the rest as numbers.

    A hundred thousand entries are six megabytes this way, and some twenty as objects. They look alike: what stands
    where in the first is looked for in all at once, which is twenty times as fast as to read each. Where one looks
    different, each is read.
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
    """How to unpack these attributes, in this order, from every entry; None where that is not the same for all."""
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
    # Values may differ between entries, and what stands between them may not.
    alike = not odd and all(listed[offset::size].count(listed[offset]) == number for offset in constant)
    if not alike or tuple(kind for kind, _, _ in places) != kinds:
        return None
    return struct.Struct(form + f"{size - at}x")


def _places(entry: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, offset and length of each value within an entry; of an address, those of the address itself."""
    offset = 4
    while offset + 4 <= len(entry):
        length, kind = struct.unpack_from("=HH", entry, offset)
        if kind & TYPE_MASK == DATA_IP:
            yield DATA_IP, offset + 8, length - 8
        else:
            yield kind & TYPE_MASK, offset + 4, length - 4
        offset += (length + 3) & ~3


def number(data: bytes) -> int:
    """An attribute's number, in network byte order."""
    return int.from_bytes(data, "big")


def listed_prefixes(listed: bytes, bits: int) -> Iterator[tuple[bytes, int, bool]]:
    """Packed address, prefix length and whether it is `nomatch`, of each of these entries. Without a prefix length in
    it an entry stands for a single address, of so many `bits`."""
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
        length = data[DATA_CIDR][0] if DATA_CIDR in data else bits
        yield data[DATA_IP][4:], length, is_nomatch(data)


def is_nomatch(data: dict[int, bytes]) -> bool:
    """Whether the attributes of an entry say that what it matches is not to match."""
    return bool(number(data.get(DATA_FLAGS, b"")) & _NOMATCH)
