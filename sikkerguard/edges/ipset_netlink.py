"""The ipset protocol, spoken straight over netlink: bulk loading, headers, look-ups and dumps.

pyroute2 sends one message for each entry; the kernel takes thousands in one, which makes loading some hundred
times faster. Numbers and layouts are those of the kernel's `include/uapi/linux/netfilter/ipset/ip_set.h` and
`include/uapi/linux/netlink.h`, protocol version 7 (which kernels since 4.19 speak; 6 is answered by all).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sikkerguard.core.model import Family, Ranges
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from sikkerguard.core.model import Hit, Prefix, Source

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 6 << 8
_PROTOCOL = 6

_CMD_LIST, _CMD_ADD, _CMD_DEL, _CMD_TEST = 7, 9, 10, 11
_ATTR_PROTOCOL, _ATTR_SETNAME, _ATTR_TYPENAME, _ATTR_FAMILY, _ATTR_FLAGS = 1, 2, 3, 5, 6
_ATTR_DATA, _ATTR_ADT, _ATTR_LINENO = 7, 8, 9
_DATA_IP, _DATA_CIDR, _DATA_PORT, _DATA_TIMEOUT, _DATA_PROTO = 1, 3, 4, 6, 7
_DATA_MAXELEM, _DATA_ELEMENTS, _DATA_REFERENCES = 19, 24, 25
_DATA_BYTES, _DATA_PACKETS, _DATA_FLAGS = 24, 25, 8
_FLAG_COUNTERS = 1 << 3
_FLAG_LIST_SETNAME, _FLAG_LIST_HEADER = 1 << 1, 1 << 2
_NESTED, _NET_BYTEORDER, _TYPE_MASK = 0x8000, 0x4000, 0x3FFF
# How `struct` writes an unsigned number of so many bytes.
_FORMS = {1: "B", 2: "H", 4: "I", 8: "Q"}

_REQUEST, _ACK, _DUMP, _EXCLUSIVE = 1, 4, 0x300, 0x200
_MESSAGE_ERROR, _MESSAGE_DONE = 2, 3

# Entries in one message: from about 800 on the number no longer matters to speed, and the attribute that holds them
# all has 16 bits for its length.
_BATCH = 2000
_LONGEST_ATTRIBUTE = 0xFFFF - 4
_RECEIVE = 1 << 18

# ip_set.h, enum ipset_errno and its hash type's extension.
_ERRORS = {
    4097: "protocol error",
    4098: "the kernel has no such set type",
    4099: "the kernel's limit of sets is reached",
    4100: "the set is in use",
    4101: "a set of that name exists already",
    4102: "the two sets are of different types",
    4103: "the entry exists already, or does not exist",
    4107: "the set has no time limits, or other ones",
    4108: "the set is in use by a rule",
    4352: "the set is full",
}
_ENTRY_MISSING = 4103


class SetHeader(NamedTuple):
    """What the kernel says of a set: its type, the number of its family (AF_INET, AF_INET6), `entries` it holds, the
    `limit` of entries, how many rules refer to it, and whether its entries have counters, and a `timeout`."""

    type_name: str
    family: int
    entries: int
    limit: int
    references: int
    counters: bool
    timeout: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a set. `protocol` and `port` are 0, and the counters 0, in sets that have none; `timeout` is
    in seconds, or None."""

    address: bytes
    length: int
    protocol: int
    port: int
    packets: int
    bytes: int
    timeout: int | None


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def _address(family: Family, packed: bytes) -> bytes:
    kind = 1 if family is Family.V4 else 2
    return _attribute(_DATA_IP | _NESTED, _attribute(kind | _NET_BYTEORDER, packed))


def _frames(family: Family, suffix: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the packed address in an entry with these further attributes.

    An address is 4 or 16 bytes, so that no padding depends on it and a million entries are one `join`.
    """
    whole = _attribute(_ATTR_DATA | _NESTED, _address(family, bytes(family.size)) + suffix)
    head = len(whole) - family.size - len(suffix)
    return whole[:head], suffix


def encode_batches(
    family: Family, singles: bytes, ranges: Iterable[Prefix] = (), timeout: int | None = None
) -> Iterator[bytes]:
    """The bodies of ADT attributes, each with a good thousand entries, ready for `NetlinkSets.add`.

    `singles` are packed addresses in a row; ranges are grouped by prefix length, since entries with equal attributes
    can be joined at once. `timeout` is in seconds.
    """
    seconds = b"" if timeout is None else _attribute(_DATA_TIMEOUT | _NET_BYTEORDER, struct.pack(">I", timeout))
    yield from _joined(family.size, singles, *_frames(family, seconds))
    for length, addresses in Ranges.of(family, ranges).by_length().items():
        frames = _frames(family, _attribute(_DATA_CIDR, bytes([length])) + seconds)
        yield from _joined(family.size, addresses, *frames)


def _joined(size: int, addresses: bytes, before: bytes, behind: bytes) -> Iterator[bytes]:
    between = behind + before
    step = size * min(_BATCH, _LONGEST_ATTRIBUTE // (len(between) + size))
    for start in range(0, len(addresses), step):
        batch = addresses[start : start + step]
        yield before + between.join([batch[at : at + size] for at in range(0, len(batch), size)]) + behind


class NetlinkSets:
    """A netlink socket for sets. Not for use by two threads at once; a context manager that closes it.

    Every method raises `KernelError` with the set's name and the kernel's reason when the kernel refuses.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        except OSError as error:
            raise KernelError(
                f"netlink can't be opened ({error.strerror}); is ipset missing from the kernel?"
            ) from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        # The kernel answers at once or never: without a limit a lost answer would hang its caller for good.
        self._socket.settimeout(30)
        self._sequence = 0

    def __enter__(self) -> NetlinkSets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def add(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        """Add entries made by `encode_batches`; one that is there already is refreshed, not refused."""
        self._change(_CMD_ADD, name, family, batches)

    def delete(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        """Take entries out; one that is not there is passed over."""
        self._change(_CMD_DEL, name, family, batches)

    def _change(self, command: int, name: str, family: Family, batches: Iterable[bytes]) -> None:
        # ip_set_core.c wants a line number beside an ADT, to report the entry that failed by it.
        head = self._named(name) + _attribute(_ATTR_LINENO, struct.pack("=I", 0))
        for batch in batches:
            code = self._acknowledged(command, family, head + _attribute(_ATTR_ADT | _NESTED, batch))
            if code:
                raise _refused("changed", name, code)

    def contains(self, name: str, family: Family, address: bytes) -> bool:
        """Whether the set matches this packed address."""
        data = _attribute(_ATTR_DATA | _NESTED, _address(family, address))
        code = self._acknowledged(_CMD_TEST, family, self._named(name) + data)
        if code not in (0, _ENTRY_MISSING):
            raise _refused("asked", name, code)
        return not code

    def header(self, name: str) -> SetHeader | None:
        """The set's header, or None where there is no such set."""
        flags = _attribute(_ATTR_FLAGS | _NET_BYTEORDER, struct.pack(">I", _FLAG_LIST_HEADER))
        for message in self._dump(name, flags):
            attributes = dict(_attributes(message))
            data = dict(_attributes(attributes[_ATTR_DATA]))
            return SetHeader(
                attributes[_ATTR_TYPENAME].rstrip(b"\0").decode("ascii"),
                _number(attributes[_ATTR_FAMILY]),
                _number(data[_DATA_ELEMENTS]),
                _number(data.get(_DATA_MAXELEM, b"")),
                _number(data[_DATA_REFERENCES]),
                bool(_number(data.get(_DATA_FLAGS, b"")) & _FLAG_COUNTERS),
                _DATA_TIMEOUT in data,
            )
        return None

    def names(self) -> list[str]:
        """The names of all sets of the network namespace."""
        sequence = self._send(
            _CMD_LIST,
            _REQUEST | _ACK | _DUMP,
            Family.V4,
            _attribute(_ATTR_PROTOCOL, bytes([_PROTOCOL]))
            + _attribute(_ATTR_FLAGS | _NET_BYTEORDER, struct.pack(">I", _FLAG_LIST_SETNAME)),
        )
        return [
            attributes[_ATTR_SETNAME].rstrip(b"\0").decode("ascii", "replace")
            for message in self._messages(sequence, "all sets")
            if _ATTR_SETNAME in (attributes := dict(_attributes(message)))
        ]

    def entries(self, name: str, family: Family) -> Iterator[Entry]:
        """Every entry of the set; nothing where there is no such set."""
        for message in self._dump(name):
            for kind, value in _attributes(message):
                if kind == _ATTR_ADT:
                    for _, data in _attributes(value):
                        yield _entry(family, dict(_attributes(data)))

    def hits(self, name: str, family: Family) -> Collection[Hit]:
        """Every entry of a set by address and port, with counters: (address, port, protocol, octets, packets)."""
        return Listing(self._listed(name, family), (_DATA_IP, _DATA_PORT, _DATA_PROTO, _DATA_BYTES, _DATA_PACKETS))

    def counts(self, name: str, family: Family) -> Collection[Source]:
        """Every entry of a set by address, with counters: (address, octets, packets)."""
        return Listing(self._listed(name, family), (_DATA_IP, _DATA_BYTES, _DATA_PACKETS))

    def _listed(self, name: str, family: Family) -> bytes:
        return b"".join(
            value for message in self._dump(name) for kind, value in _attributes(message) if kind == _ATTR_ADT
        )

    def packets(self, name: str, family: Family, prefix: Prefix) -> int:
        """How many packets matched this entry of the set since it was put there; 0 if there is none."""
        address = prefix.first.to_bytes(family.size, "big")
        total = 0
        for message in self._dump(name):
            # Decoding a million entries to find one would take seconds; most messages are passed over unread.
            if address in message:
                total += sum(
                    entry.packets
                    for kind, value in _attributes(message)
                    if kind == _ATTR_ADT
                    for entry in (_entry(family, dict(_attributes(data))) for _, data in _attributes(value))
                    if entry.address == address and entry.length == prefix.length
                )
        return total

    def _named(self, name: str) -> bytes:
        return _attribute(_ATTR_PROTOCOL, bytes([_PROTOCOL])) + _attribute(_ATTR_SETNAME, name.encode() + b"\0")

    def _send(self, command: int, flags: int, family: Family, payload: bytes) -> int:
        self._sequence += 1
        generic = struct.pack("=BBH", family.number, 0, 0)
        header = struct.pack("=IHHII", 20 + len(payload), _SUBSYSTEM | command, flags, self._sequence, 0)
        try:
            self._socket.send(header + generic + payload)
        except PermissionError as error:
            raise _not_allowed() from error
        except OSError as error:
            raise KernelError(f"the kernel took no request over netlink ({error.strerror})") from error
        return self._sequence

    def _acknowledged(self, command: int, family: Family, payload: bytes) -> int:
        """The kernel's answer to one request: 0, or the number of the error."""
        sequence = self._send(command, _REQUEST | _ACK, family, payload)
        for kind, body in self._received(sequence):
            if kind == _MESSAGE_ERROR:
                return -int(struct.unpack_from("=i", body)[0])
        raise KernelError("the kernel sent no answer over netlink")

    def _dump(self, name: str, extra: bytes = b"") -> Iterator[bytes]:
        """The attributes of each message of a listing; none where there is no such set."""
        sequence = self._send(_CMD_LIST, _REQUEST | _ACK | _DUMP, Family.V4, self._named(name) + extra)
        return self._messages(sequence, name)

    def _messages(self, sequence: int, name: str) -> Iterator[bytes]:
        for kind, body in self._received(sequence):
            if kind == _MESSAGE_ERROR:
                code = -int(struct.unpack_from("=i", body)[0])
                if code not in (0, errno.ENOENT):
                    raise _refused("listed", name, code)
                return
            yield body[4:]

    def _received(self, sequence: int) -> Iterator[tuple[int, bytes]]:
        """Messages that answer this request, until the kernel says that it is done. Answers to an earlier one,
        whose reader stopped half way, are dropped."""
        while True:
            try:
                block = self._socket.recv(_RECEIVE)
            except OSError as error:
                raise KernelError(f"the kernel's answer over netlink was lost ({error})") from error
            offset = 0
            while offset + 16 <= len(block):
                length, kind, _flags, answered, _port = struct.unpack_from("=IHHII", block, offset)
                body = block[offset + 16 : offset + length]
                offset += (length + 3) & ~3
                if answered != sequence:
                    continue
                if kind == _MESSAGE_DONE:
                    return
                yield kind, body


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each attribute in a row."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
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
        return sum(1 for _ in _attributes(self._listed))

    def __iter__(self) -> Iterator[Any]:
        if self._form is not None:
            return self._form.iter_unpack(self._listed)
        return self._each()

    def __contains__(self, entry: object) -> bool:
        return any(entry == each for each in self)

    def _each(self) -> Iterator[tuple[Any, ...]]:
        for _, entry in _attributes(self._listed):
            data = dict(_attributes(entry))
            yield tuple(data[kind][4:] if kind == _DATA_IP else _number(data.get(kind, b"")) for kind in self._kinds)


def _common_form(listed: bytes, kinds: tuple[int, ...]) -> struct.Struct | None:
    """How to unpack these attributes, in this order, from every entry; None where that is not the same for all."""
    if not listed:
        return None
    (size,) = struct.unpack_from("=H", listed)
    places = [place for place in _places(listed[:size]) if place[0] in kinds]
    form, at, constant = ">", 0, set(range(size))
    for kind, offset, length in places:
        form += f"{offset - at}x" + (f"{length}s" if kind == _DATA_IP else _FORMS[length])
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
        if kind & _TYPE_MASK == _DATA_IP:
            yield _DATA_IP, offset + 8, length - 8
        else:
            yield kind & _TYPE_MASK, offset + 4, length - 4
        offset += (length + 3) & ~3


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _entry(family: Family, data: dict[int, bytes]) -> Entry:
    return Entry(
        address=data[_DATA_IP][4:],
        length=data[_DATA_CIDR][0] if _DATA_CIDR in data else family.bits,
        protocol=_number(data.get(_DATA_PROTO, b"")),
        port=_number(data.get(_DATA_PORT, b"")),
        packets=_number(data.get(_DATA_PACKETS, b"")),
        bytes=_number(data.get(_DATA_BYTES, b"")),
        timeout=_number(data[_DATA_TIMEOUT]) if _DATA_TIMEOUT in data else None,
    )


def _not_allowed() -> KernelError:
    return KernelError(
        "sets and rules can't be reached without CAP_NET_ADMIN and CAP_NET_RAW; run as root or give them"
    )


def _refused(what: str, name: str, code: int) -> KernelError:
    if code in (errno.EPERM, errno.EACCES):
        return _not_allowed()
    reason = _ERRORS.get(code) or os.strerror(code)
    return KernelError(f"set {name} could not be {what}: {reason}")
