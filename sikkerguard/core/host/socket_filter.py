"""A socket filter that lets through what may be the first packet of an exchange, and little else.

A program for the kernel's classic filter machine (Documentation/networking/filter.rst, `include/uapi/linux/filter.h`):
instructions of eight bytes. It runs where a packet begins with its IP header. What it lets through is judged again by
whoever reads it; what it keeps out costs no copy.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sikkerguard.core.net.family import Family
from sikkerguard.core.ports.protocols import ICMP, TCP, TUNNELS, UDP

if TYPE_CHECKING:
    from collections.abc import Iterable

# Instructions: load a word, half a word, a byte; the same behind the IP header; jump; answer.
_WORD, _HALF, _BYTE = 0x20, 0x28, 0x30
_HALF_BEHIND, _BYTE_BEHIND = 0x48, 0x50
_HEADER_LENGTH, _INDEX = 0xB1, 0x01  # X = 4 * (the low half of a byte), X = a constant
_AND, _JUMP, _EQUAL, _SET, _ANSWER = 0x54, 0x05, 0x15, 0x45, 0x06
_STORE, _RECALL = 0x02, 0x60
# What is not in the packet: SKF_AD_OFF and what follows it.
_PROTOCOL, _KIND, _INTERFACE = 0xFFFFF000, 0xFFFFF004, 0xFFFFF008

TO_US, FROM_US = 0, 4  # PACKET_HOST and PACKET_OUTGOING of linux/if_packet.h
_ETHERTYPE = {Family.V4: 0x0800, Family.V6: 0x86DD}
_LOOPBACK_INTERFACE = 1  # it is the first of every network namespace
ECHO_REQUEST = {Family.V4: 8, Family.V6: 128}
# The longest IPv4 header, and what of TCP's is looked at.
SNAP = 60 + 20

# The kernel takes 4,096 instructions; a port takes two, an address of IPv4 two, and one of IPv6 nine.
_MOST_PORTS = 1000
_MOST_OWN = 100

_Instruction = tuple[int, int, int, int]


def first_packets(own: Iterable[bytes], bound: Iterable[int]) -> bytes:
    """The program, by what it lets through on any interface but loopback.

    - From an `own` address: TCP's first packet (SYN alone), echo requests, tunnels, and UDP from a port that is not in
      `bound`.
    - To us: UDP to a port that is not in `bound`.

    Of many own addresses or ports not all are known to it; then it lets through more.
    """
    addresses = sorted(own)
    ports = [
        instruction
        for port in sorted(set(bound))[:_MOST_PORTS]
        for instruction in (_jump(_EQUAL, port, 0, 1), _answer(0))
    ]
    program = [
        _simple(_WORD, _INTERFACE),
        _jump(_EQUAL, _LOOPBACK_INTERFACE, 0, 1),
        _answer(0),
        _simple(_WORD, _KIND),
        _jump(_EQUAL, TO_US, 2, 0),
        *_refuse_unless(FROM_US),
        _simple(_STORE, 0),
    ]
    v4 = _network(Family.V4, [address for address in addresses if len(address) == Family.V4.size])
    v6 = _network(Family.V6, [address for address in addresses if len(address) == Family.V6.size])
    program += [
        _simple(_WORD, _PROTOCOL),
        _jump(_EQUAL, _ETHERTYPE[Family.V4], 0, 1),
        _simple(_JUMP, 3),
        *_refuse_unless(_ETHERTYPE[Family.V6]),
        _simple(_JUMP, len(v4) + 1),
        *v4,
        _simple(_JUMP, len(v6)),
        *v6,
    ]
    return b"".join(struct.pack("=HBBI", *each) for each in [*program, *_transport(ports)])


def _network(family: Family, own: list[bytes]) -> list[_Instruction]:
    """Leaves the protocol in A and the length of the header in X, and refuses what is not from an own address and
    fragments that are not the first."""
    source = 12 if family is Family.V4 else 8
    check: list[_Instruction] = []
    if len(own) <= _MOST_OWN:
        words = family.size // 4
        for at, address in enumerate(own):
            # Over the rest of the addresses, and the refusal.
            rest = (len(own) - at - 1) * (2 * words + 1) + 1
            for number, word in enumerate(struct.unpack(f">{words}I", address)):
                check += [_simple(_WORD, source + 4 * number), _jump(_EQUAL, word, 0, 2 * (words - number) - 1)]
            check.append(_simple(_JUMP, rest))
        check.append(_answer(0))
    # Only of what goes out.
    guarded = [_simple(_RECALL, 0), _jump(_EQUAL, FROM_US, 1, 0), _simple(_JUMP, len(check)), *check]
    if family is Family.V6:
        return [*guarded, _simple(_INDEX, 40), _simple(_BYTE, 6)]
    return [
        *guarded,
        _simple(_HALF, 6),
        _jump(_SET, 0x1FFF, 0, 1),
        _answer(0),
        _simple(_HEADER_LENGTH, 0),
        _simple(_BYTE, 9),
    ]


def _transport(ports: list[_Instruction]) -> list[_Instruction]:
    """By the protocol in A, with X at the header that it has."""
    outgoing = [_simple(_RECALL, 0), *_refuse_unless(FROM_US)]
    tcp = [
        *outgoing,
        _simple(_BYTE_BEHIND, 13),
        _simple(_AND, 0x17),  # FIN, SYN, RST, ACK
        *_refuse_unless(0x02),
        _answer(SNAP),
    ]
    icmp = [
        (ICMP[family], [*outgoing, _simple(_BYTE_BEHIND, 0), *_refuse_unless(ECHO_REQUEST[family]), _answer(SNAP)])
        for family in Family
    ]
    tunnel = [*outgoing, _answer(SNAP)]
    # Our port: the source of what goes out, the destination of what comes in.
    udp = [
        _simple(_RECALL, 0),
        _jump(_EQUAL, FROM_US, 0, 2),
        _simple(_HALF_BEHIND, 0),
        _simple(_JUMP, 1),
        _simple(_HALF_BEHIND, 2),
        *ports,
        _answer(SNAP),
    ]
    cases = [(TCP, tcp), *icmp, *((number, tunnel) for number in TUNNELS)]
    program: list[_Instruction] = []
    for protocol, steps in cases:
        program += [_jump(_EQUAL, protocol, 0, len(steps)), *steps]
    return [*program, *_refuse_unless(UDP), *udp]


def _refuse_unless(value: int) -> list[_Instruction]:
    return [_jump(_EQUAL, value, 1, 0), _answer(0)]


def _simple(code: int, constant: int) -> _Instruction:
    return (code, 0, 0, constant)


def _jump(code: int, value: int, true: int, false: int) -> _Instruction:
    return (code, true, false, value)


def _answer(octets: int) -> _Instruction:
    """So much of the packet is let through."""
    return (_ANSWER, 0, 0, octets)
