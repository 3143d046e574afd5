"""The ipset protocol, spoken straight over netlink: bulk loading, headers, look-ups and listings.

pyroute2 (0.7 to 0.9) sends one message for each entry; the kernel takes thousands in one, which makes loading some
hundred times faster. Numbers and layouts are those of the kernel's `include/uapi/linux/netfilter/ipset/ip_set.h` and
`include/uapi/linux/netlink.h`, in protocol version 6, which all kernels understand.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.host.netlink import DONE, DUMP, ERROR, attribute, error_code, messages, request
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
    prefix_length,
)
from sikkerguard.errors import BusyError, FullError, KernelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sikkerguard.core.net.packed import Prefix
    from sikkerguard.core.traffic.attribution import Hit, Source

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 6 << 8
_PROTOCOL = 6

_CMD_FLUSH, _CMD_SWAP, _CMD_LIST, _CMD_ADD, _CMD_DEL, _CMD_TEST = 4, 6, 7, 9, 10, 11
_ATTR_PROTOCOL, _ATTR_SETNAME, _ATTR_TYPENAME, _ATTR_FAMILY, _ATTR_FLAGS = 1, 2, 3, 5, 6
_ATTR_DATA, _ATTR_ADT, _ATTR_LINENO = 7, 8, 9
_DATA_NAME = 18
_DATA_BITMASK, _DATA_MAXELEM, _DATA_NETMASK, _DATA_ELEMENTS, _DATA_REFERENCES = 12, 19, 20, 24, 25
_FLAG_COUNTERS = 1 << 3
_FLAG_LIST_SETNAME, _FLAG_LIST_HEADER = 1 << 1, 1 << 2
_NESTED, _NET_BYTEORDER = 0x8000, 0x4000

_ACK = 4

# Entries in one message: from about 800 on their number no longer matters to speed, and the attribute that holds them
# has 16 bits for its length.
_MAX_BATCH = 2000
_MAX_ATTRIBUTE = 0xFFFF - 4
_RECEIVE_BYTES = 1 << 18

# enum ipset_errno of ip_set.h, and what ip_set_hash.h adds to it.
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
# The errors of a swap and of a removal while another program lists the set; the latter also while a rule or another set
# refers to it.
BUSY = frozenset({errno.EBUSY, 4100})


class SetHeader(NamedTuple):
    """What the kernel says of a set: its type; the number of its family (AF_INET, AF_INET6); how many entries it holds,
    and at most; how many rules and other sets refer to it; whether its entries have counters, and timeouts; and whether
    it takes addresses whole, rather than masking them."""

    type_name: str
    family: int
    entries: int
    limit: int
    references: int
    counters: bool
    timeout: bool
    whole: bool = True


def _address(family: Family, packed: bytes) -> bytes:
    kind = 1 if family is Family.V4 else 2
    return attribute(DATA_IP | _NESTED, attribute(kind | _NET_BYTEORDER, packed))


def _frames(family: Family, suffix: bytes) -> tuple[bytes, bytes]:
    """What comes before and after the packed address in an entry with these further attributes. An address is 4 or 16
    bytes, so that no padding depends on it, and a million entries are one `join`."""
    whole = attribute(_ATTR_DATA | _NESTED, _address(family, bytes(family.size)) + suffix)
    head = len(whole) - family.size - len(suffix)
    return whole[:head], suffix


def encode_batches(
    family: Family, singles: bytes, ranges: Iterable[Prefix] = (), timeout: int | None = None
) -> Iterator[bytes]:
    """Entries for `NetlinkSets.add` and `delete`, some thousand in each batch (the body of an ADT attribute).

    `singles` are packed addresses in a row. Ranges are grouped by prefix length, since only entries with equal
    attributes can be joined at once. `timeout` is in seconds.
    """
    seconds = b"" if timeout is None else attribute(DATA_TIMEOUT | _NET_BYTEORDER, struct.pack(">I", timeout))
    yield from _joined(family.size, singles, *_frames(family, seconds))
    for length, addresses in Ranges.of(family, ranges).by_length().items():
        frames = _frames(family, attribute(DATA_CIDR, bytes([length])) + seconds)
        yield from _joined(family.size, addresses, *frames)


def _joined(size: int, addresses: bytes, before: bytes, behind: bytes) -> Iterator[bytes]:
    between = behind + before
    step = size * min(_MAX_BATCH, _MAX_ATTRIBUTE // (len(between) + size))
    for start in range(0, len(addresses), step):
        batch = addresses[start : start + step]
        yield before + between.join([batch[at : at + size] for at in range(0, len(batch), size)]) + behind


class NetlinkSets:
    """A netlink socket for sets, to be used by one thread.

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

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def add(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        """Add entries made by `encode_batches`; one that is there already gets its timeout again. `FullError` where the
        set has no room."""
        self._change(_CMD_ADD, name, family, batches)

    def delete(self, name: str, family: Family, batches: Iterable[bytes]) -> None:
        """Remove entries made by `encode_batches`; one that is not there is ignored."""
        self._change(_CMD_DEL, name, family, batches)

    def _change(self, command: int, name: str, family: Family, batches: Iterable[bytes]) -> None:
        # ip_set_core.c wants a line number beside an ADT, to report the entry that failed by it.
        head = self._named(name) + attribute(_ATTR_LINENO, struct.pack("=I", 0))
        for batch in batches:
            code = self._acknowledged(command, family, head + attribute(_ATTR_ADT | _NESTED, batch))
            if code:
                raise _refused("changed", name, code)

    def flush(self, name: str) -> None:
        """Remove every entry of the set."""
        if code := self._acknowledged(_CMD_FLUSH, Family.V4, self._named(name)):
            raise _refused("emptied", name, code)

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets, in one step. `BusyError` is raised at once: pyroute2 before 0.9 retries
        for nine seconds by itself, in which nobody would renew a trial."""
        # IPSET_ATTR_SETNAME2 is another name for the attribute of a type's name.
        names = self._named(one) + attribute(_ATTR_TYPENAME, other.encode() + b"\0")
        if code := self._acknowledged(_CMD_SWAP, Family.V4, names):
            raise _refused("swapped", one, code)

    def contains(self, name: str, family: Family, address: bytes) -> bool:
        """Whether an entry of the set covers this packed address, and none excepts it (`nomatch`)."""
        data = attribute(_ATTR_DATA | _NESTED, _address(family, address))
        code = self._acknowledged(_CMD_TEST, family, self._named(name) + data)
        if code not in (0, _ENTRY_MISSING):
            raise _refused("searched", name, code)
        return not code

    def header(self, name: str) -> SetHeader | None:
        """The set's header, or None where there is no such set."""
        flags = attribute(_ATTR_FLAGS | _NET_BYTEORDER, struct.pack(">I", _FLAG_LIST_HEADER))
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
        """The names of all sets in this network namespace, whoever's."""
        sequence = self._send(
            _CMD_LIST,
            _ACK | DUMP,
            Family.V4,
            attribute(_ATTR_PROTOCOL, bytes([_PROTOCOL]))
            + attribute(_ATTR_FLAGS | _NET_BYTEORDER, struct.pack(">I", _FLAG_LIST_SETNAME)),
        )
        return [
            described[_ATTR_SETNAME].rstrip(b"\0").decode("ascii", "replace")
            for message in self._messages(sequence, "all sets")
            if _ATTR_SETNAME in (described := dict(attributes(message)))
        ]

    def members(self, name: str) -> list[str]:
        """The sets that are members of a set of sets; none where it is of another kind."""
        header = self.header(name)
        if header is None or header.type_name != "list:set":
            return []
        return [
            dict(attributes(data))[_DATA_NAME].rstrip(b"\0").decode("ascii", "replace")
            for listed in self._listed(name)
            for _, data in attributes(listed)
        ]

    def prefixes(self, name: str, family: Family) -> Iterator[tuple[bytes, int, bool]]:
        """(packed address, prefix length, whether it is `nomatch`) of every entry of a set of addresses or ranges;
        nothing where there is no such set."""
        for listed in self._listed(name):
            yield from listed_prefixes(listed, family.bits)

    def hits(self, name: str) -> Collection[Hit]:
        """(packed address, port, protocol, bytes, packets) of every entry of a set by address and port that counts."""
        return Listing(b"".join(self._listed(name)), (DATA_IP, DATA_PORT, DATA_PROTO, DATA_BYTES, DATA_PACKETS))

    def counts(self, name: str) -> Collection[Source]:
        """(packed address, bytes, packets) of every entry of a set by address that counts."""
        return Listing(b"".join(self._listed(name)), (DATA_IP, DATA_BYTES, DATA_PACKETS))

    def packets(self, name: str, family: Family, prefix: Prefix) -> int:
        """How many packets matched this entry of a set that counts, since it was added; 0 if there is none."""
        packed, total = prefix.first.to_bytes(family.size, "big"), 0
        # Read to its end: the kernel begins no other listing on this socket before (EBUSY).
        for listed in self._listed(name):
            # Decoding a million entries to find one would take seconds; most messages are passed over unread.
            if packed in listed:
                for _, entry in attributes(listed):
                    data = dict(attributes(entry))
                    if (data[DATA_IP][4:], prefix_length(data, family.bits)) == (packed, prefix.length):
                        total += number(data.get(DATA_PACKETS, b""))
        return total

    def _listed(self, name: str) -> Iterator[bytes]:
        """All entries of a set, as attributes in a row, some thousand at once; nothing where there is no such set."""
        return (value for message in self._dump(name) for kind, value in attributes(message) if kind == _ATTR_ADT)

    def _named(self, name: str) -> bytes:
        return attribute(_ATTR_PROTOCOL, bytes([_PROTOCOL])) + attribute(_ATTR_SETNAME, name.encode() + b"\0")

    def _send(self, command: int, flags: int, family: Family, payload: bytes) -> int:
        self._sequence += 1
        generic = struct.pack("=BBH", family.number, 0, 0)
        try:
            self._socket.send(request(_SUBSYSTEM | command, flags, self._sequence, generic + payload))
        except PermissionError as error:
            raise _not_allowed() from error
        except OSError as error:
            raise KernelError(f"the kernel took no request over netlink ({error.strerror})") from error
        return self._sequence

    def _acknowledged(self, command: int, family: Family, payload: bytes) -> int:
        """The kernel's answer to one request: 0, or the number of the error."""
        sequence = self._send(command, _ACK, family, payload)
        for kind, body in self._received(sequence):
            if kind == ERROR:
                return error_code(body, 0, len(body))
        raise KernelError("the kernel sent no answer over netlink")

    def _dump(self, name: str, extra: bytes = b"") -> Iterator[bytes]:
        """The attributes of each message of a set's listing; nothing where there is no such set."""
        sequence = self._send(_CMD_LIST, _ACK | DUMP, Family.V4, self._named(name) + extra)
        return self._messages(sequence, name)

    def _messages(self, sequence: int, name: str) -> Iterator[bytes]:
        for kind, body in self._received(sequence):
            if kind == ERROR:
                code = error_code(body, 0, len(body))
                if code not in (0, errno.ENOENT):
                    raise _refused("listed", name, code)
                return
            yield body[4:]

    def _received(self, sequence: int) -> Iterator[tuple[int, bytes]]:
        """Messages that answer this request, until the kernel says that it is done. Answers to an earlier one,
        whose reader stopped half way, are dropped."""
        while True:
            try:
                block = self._socket.recv(_RECEIVE_BYTES)
            except OSError as error:
                raise KernelError(f"the kernel's answer over netlink was lost ({error})") from error
            for kind, _flags, start, end in messages(block, sequence):
                if kind == DONE:
                    return
                yield kind, block[start:end]


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
