"""Entries of the kernel's connection tracking, as ctnetlink sends them, and the flows that they stand for.

Numbers are those of the kernel's `include/uapi/linux/netfilter/nfnetlink_conntrack.h` and `nf_conntrack_common.h`; an
entry's attributes come in the order of `ctnetlink_fill_info` in `net/netfilter/nf_conntrack_netlink.c`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.host.flows import flow_with
from sikkerguard.core.host.netlink import attributes
from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import TCP

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from sikkerguard.core.host.flows import Flow

# The subsystem's number, and the command that lists entries.
GET = 1 << 8 | 1

_ORIGINAL, _REPLY, _STATUS = 1, 2, 3
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_ADDRESSES = {Family.V4: (1, 2), Family.V6: (3, 4)}  # source, destination
_NUMBER, _SOURCE_PORT, _TARGET_PORT = 1, 2, 3
_SEEN_REPLY, _ASSURED = 1 << 1, 1 << 2
_NESTED = 0x8000
_FAMILIES = {family.number: family for family in Family}


class Entry(NamedTuple):
    """One tracked exchange: the first packet went from `source` to `target`; answers come from `answering` and go to
    `answered`, which differ from these where addresses are translated. Addresses are packed; ports are 0 where the
    protocol has none. `status` has the kernel's IPS_ bits."""

    status: int
    protocol: int
    source: bytes
    target: bytes
    source_port: int
    target_port: int
    answering: bytes
    answered: bytes
    answering_port: int
    answered_port: int


def _header(kind: int, size: int) -> bytes:
    return struct.pack("=HH", size + 4, kind)


def _form(family: Family) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """How to unpack an entry that begins as nearly all do, with both directions of a protocol with ports and the
    status; and the attributes' headers that it then has. In front of it is the nfgenmsg of four bytes."""
    size = family.size
    source, target = _ADDRESSES[family]
    heads = []
    for direction in (_ORIGINAL, _REPLY):
        heads += [
            _header(direction | _NESTED, 2 * (size + 4) + 32)
            + _header(_TUPLE_IP | _NESTED, 2 * (size + 4))
            + _header(source, size),
            _header(target, size),
            _header(_TUPLE_PROTOCOL | _NESTED, 24) + _header(_NUMBER, 1),
            _header(_SOURCE_PORT, 2),
            _header(_TARGET_PORT, 2),
        ]
    one = f"12s{size}s4s{size}s8sB3x4sH2x4sH2x"
    return struct.Struct(f">4x{one}{one}4sI"), (*heads, _header(_STATUS, 4))


_FORMS = {family.number: _form(family) for family in Family}


def read_entry(block: bytes, start: int, end: int) -> Entry | None:
    """The entry in the body of one message (an nfgenmsg and attributes); None for what is none of IPv4 or IPv6.

    It is read as most entries are made up where that fits, which takes about a microsecond, and else one attribute
    after the other.
    """
    if end - start < 4:
        return None
    form = _FORMS.get(block[start])
    if form is None:
        return None
    layout, heads = form
    if end - start >= layout.size:
        h0, source, h1, target, h2, protocol, h3, source_port, h4, target_port, *rest = layout.unpack_from(block, start)
        k0, answering, k1, answered, k2, _, k3, answering_port, k4, answered_port, k5, status = rest
        if (h0, h1, h2, h3, h4, k0, k1, k2, k3, k4, k5) == heads:
            return Entry(
                status,
                protocol,
                source,
                target,
                source_port,
                target_port,
                answering,
                answered,
                answering_port,
                answered_port,
            )
    return _walked(_FAMILIES[block[start]], block, start + 4, end)


def _walked(family: Family, block: bytes, start: int, end: int) -> Entry | None:
    parts = attributes(block, start, end)
    if not {_ORIGINAL, _REPLY, _STATUS} <= parts.keys():
        return None
    original, reply = (_direction(family, block, *parts[kind]) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return None
    protocol, source, target, source_port, target_port = original
    return Entry(_number(block, *parts[_STATUS]), protocol, source, target, source_port, target_port, *reply[1:])


def _direction(family: Family, block: bytes, start: int, end: int) -> tuple[int, bytes, bytes, int, int] | None:
    """Protocol, source, destination, and their ports."""
    parts = attributes(block, start, end)
    nothing = (0, 0)
    ip = attributes(block, *parts.get(_TUPLE_IP, nothing))
    protocol = attributes(block, *parts.get(_TUPLE_PROTOCOL, nothing))
    source, target = (block[slice(*ip.get(kind, nothing))] for kind in _ADDRESSES[family])
    if len(source) != family.size or len(target) != family.size or _NUMBER not in protocol:
        return None
    # Of ICMP there are types and identifiers, under other numbers.
    number, source_port, target_port = (
        _number(block, *protocol.get(kind, nothing)) for kind in (_NUMBER, _SOURCE_PORT, _TARGET_PORT)
    )
    return number, source, target, source_port, target_port


def _number(block: bytes, start: int, end: int) -> int:
    return int.from_bytes(block[start:end], "big")


def flows_of(
    entry: Entry,
    own: Container[bytes],
    wanted: Callable[[bytes], bool],
    listens: Callable[[bytes, int], bool],
    behind: Callable[[bytes], bool],
) -> tuple[Flow, ...]:
    """What an entry says of each of its ends that is `wanted` and not our `own`.

    Outgoing is what an own address sent first, or one that is `behind` this host or leaves under an own address, and
    what this host passes on by a translation of its own. Of what anyone else sent first, both ends are incoming. An
    entry that begins with a TCP packet from a port on which this host `listens` was picked up half way, by what was an
    answer: it is incoming.
    """
    status, protocol, source, target, source_port, target_port, answering, answered, answering_port, _ = entry
    # Asked first, since it is the answer for nearly all: nobody is interested in either end.
    caller = source not in own and wanted(source)
    callee = answering not in own and answering != source and wanted(answering)
    if not caller and not callee:
        return ()
    replied, assured = bool(status & _SEEN_REPLY), bool(status & _ASSURED)

    def incoming(peer: bytes, port: int, here: bool) -> Flow:
        # One reply of ours proves nothing of who a stranger is; the third packet of a handshake does.
        return flow_with(peer, protocol, port, outgoing=False, here=here, established=assured, unanswered=not assured)

    def outgoing(here: bool) -> Flow:
        return flow_with(
            answering, protocol, answering_port, outgoing=True, here=here, established=replied, unanswered=not replied
        )

    if source in own:
        if protocol == TCP and listens(source, source_port):
            return (incoming(answering, source_port, True),)
        return (outgoing(True),)
    # The port as it was named on arrival, before translation.
    flows = [incoming(source, target_port, answering in own)] if caller else []
    if callee:
        if target in own or answered in own or behind(source):
            flows.append(outgoing(False))
        else:
            flows.append(incoming(answering, answering_port, False))
    return tuple(flows)
