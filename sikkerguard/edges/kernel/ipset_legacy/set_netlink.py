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
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Ranges
from sikkerguard.edges.kernel.ipset_legacy.set_listing import (
    DATA_BYTES,
    DATA_CIDR,
    DATA_FLAGS,
    DATA_IP,
    DATA_PACKETS,
    DATA_PORT,
    DATA_PROTO,
    DATA_TIMEOUT,
    Listing,
    attributes,
    listed_prefixes,
    number,
)
from sikkerguard.errors import BusyError, FullError, KernelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from types import TracebackType

    from sikkerguard.core.net.packed import Prefix
    from sikkerguard.core.traffic.sample import Hit, Source

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 6 << 8
_PROTOCOL = 6

_CMD_SWAP, _CMD_LIST, _CMD_ADD, _CMD_DEL, _CMD_TEST = 6, 7, 9, 10, 11
_ATTR_PROTOCOL, _ATTR_SETNAME, _ATTR_TYPENAME, _ATTR_FAMILY, _ATTR_FLAGS = 1, 2, 3, 5, 6
_ATTR_DATA, _ATTR_ADT, _ATTR_LINENO = 7, 8, 9
_DATA_NAME = 18
_DATA_BITMASK, _DATA_MAXELEM, _DATA_NETMASK, _DATA_ELEMENTS, _DATA_REFERENCES = 12, 19, 20, 24, 25
_FLAG_COUNTERS = 1 << 3
_FLAG_LIST_SETNAME, _FLAG_LIST_HEADER = 1 << 1, 1 << 2
_NESTED, _NET_BYTEORDER = 0x8000, 0x4000

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
_ENTRY_MISSING, _FULL = 4103, 4352
# What an operation on a set is refused with while it is being listed: a swap by the one, a removal by the other, which
# it also is while a rule or another set refers to it.
BUSY = frozenset({errno.EBUSY, 4100})


class SetHeader(NamedTuple):
    """What the kernel says of a set: its type, the number of its family (AF_INET, AF_INET6), `entries` it holds, the
    `limit` of entries, how many rules and other sets refer to it, whether its entries have counters, and a `timeout`,
    and whether it takes addresses `whole`, and does not mask them."""

    type_name: str
    family: int
    entries: int
    limit: int
    references: int
    counters: bool
    timeout: bool
    whole: bool = True


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
    return _attribute(DATA_IP | _NESTED, _attribute(kind | _NET_BYTEORDER, packed))


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
    seconds = b"" if timeout is None else _attribute(DATA_TIMEOUT | _NET_BYTEORDER, struct.pack(">I", timeout))
    yield from _joined(family.size, singles, *_frames(family, seconds))
    for length, addresses in Ranges.of(family, ranges).by_length().items():
        frames = _frames(family, _attribute(DATA_CIDR, bytes([length])) + seconds)
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

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets. `BusyError` is raised at once: pyroute2, up to 0.7, asks for nine seconds
        by itself, in which nobody would renew a trial."""
        # IPSET_ATTR_SETNAME2 is another name for the attribute of a type's name.
        names = self._named(one) + _attribute(_ATTR_TYPENAME, other.encode() + b"\0")
        code = self._acknowledged(_CMD_SWAP, Family.V4, names)
        if code:
            raise _refused("swapped", one, code)

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
            described = dict(attributes(message))
            data = dict(attributes(described[_ATTR_DATA]))
            return SetHeader(
                described[_ATTR_TYPENAME].rstrip(b"\0").decode("ascii"),
                number(described[_ATTR_FAMILY]),
                number(data[_DATA_ELEMENTS]),
                number(data.get(_DATA_MAXELEM, b"")),
                number(data[_DATA_REFERENCES]),
                bool(number(data.get(DATA_FLAGS, b"")) & _FLAG_COUNTERS),
                DATA_TIMEOUT in data,
                not data.keys() & {_DATA_NETMASK, _DATA_BITMASK},
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
            described[_ATTR_SETNAME].rstrip(b"\0").decode("ascii", "replace")
            for message in self._messages(sequence, "all sets")
            if _ATTR_SETNAME in (described := dict(attributes(message)))
        ]

    def members(self, name: str) -> list[str]:
        """The sets that are members of a set of sets; nothing of one of another kind."""
        header = self.header(name)
        if header is None or header.type_name != "list:set":
            return []
        return [
            dict(attributes(data))[_DATA_NAME].rstrip(b"\0").decode("ascii", "replace")
            for message in self._dump(name)
            for kind, value in attributes(message)
            if kind == _ATTR_ADT
            for _, data in attributes(value)
        ]

    def entries(self, name: str, family: Family) -> Iterator[Entry]:
        """Every entry of the set; nothing where there is no such set."""
        for message in self._dump(name):
            for kind, value in attributes(message):
                if kind == _ATTR_ADT:
                    for _, data in attributes(value):
                        yield _entry(family, dict(attributes(data)))

    def prefixes(self, name: str, family: Family) -> Iterator[tuple[bytes, int, bool]]:
        """Packed address, prefix length, and whether it is `nomatch`, of every entry of a set of addresses or ranges;
        ten times as fast as `entries`."""
        for message in self._dump(name):
            for kind, value in attributes(message):
                if kind == _ATTR_ADT:
                    yield from listed_prefixes(value, family.bits)

    def hits(self, name: str, family: Family) -> Collection[Hit]:
        """Every entry of a set by address and port, with counters: (address, port, protocol, octets, packets)."""
        return Listing(self._listed(name, family), (DATA_IP, DATA_PORT, DATA_PROTO, DATA_BYTES, DATA_PACKETS))

    def counts(self, name: str, family: Family) -> Collection[Source]:
        """Every entry of a set by address, with counters: (address, octets, packets)."""
        return Listing(self._listed(name, family), (DATA_IP, DATA_BYTES, DATA_PACKETS))

    def _listed(self, name: str, family: Family) -> bytes:
        return b"".join(
            value for message in self._dump(name) for kind, value in attributes(message) if kind == _ATTR_ADT
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
                    for kind, value in attributes(message)
                    if kind == _ATTR_ADT
                    for entry in (_entry(family, dict(attributes(data))) for _, data in attributes(value))
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


def _entry(family: Family, data: dict[int, bytes]) -> Entry:
    return Entry(
        address=data[DATA_IP][4:],
        length=data[DATA_CIDR][0] if DATA_CIDR in data else family.bits,
        protocol=number(data.get(DATA_PROTO, b"")),
        port=number(data.get(DATA_PORT, b"")),
        packets=number(data.get(DATA_PACKETS, b"")),
        bytes=number(data.get(DATA_BYTES, b"")),
        timeout=number(data[DATA_TIMEOUT]) if DATA_TIMEOUT in data else None,
    )


def _not_allowed() -> KernelError:
    return KernelError(
        "sets and rules can't be reached without CAP_NET_ADMIN and CAP_NET_RAW; run as root or give them"
    )


def _refused(what: str, name: str, code: int) -> KernelError:
    if code in (errno.EPERM, errno.EACCES):
        return _not_allowed()
    reason = _ERRORS.get(code) or os.strerror(code)
    kind = FullError if code == _FULL else BusyError if code in BUSY else KernelError
    return kind(f"set {name} could not be {what}: {reason}")
