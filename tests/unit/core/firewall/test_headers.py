"""What the tests of headers say, of packets that are made of every flag, length and header."""

from __future__ import annotations

import socket
import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.firewall.headers import BEGINS_TCP, MAY_BE_TCP, OF_THE_LINK
from sikkerguard.core.net.family import Family
from tests.unit.u32 import matches

FIN, SYN, RST, PUSH, ACK, URGENT, ECE, CWR = (1 << bit for bit in range(8))
# The extension headers behind which the kernel looks for the transport.
BEFORE_OTHERS = {0, 43, 44, 51, 60}
LINK_LOCAL, GLOBAL = "fe80::1:2", "2001:db8::10"


def v4(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    length = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | length // 4, 0, length + len(payload), 1, fragment, 64, protocol, 0)
    return head + socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + options + payload


def v6(protocol: int, payload: bytes, *, hops: int = 64, target: str = GLOBAL) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
    addresses = (socket.inet_pton(socket.AF_INET6, each) for each in ("2001:db8::1", target))
    return head + b"".join(addresses) + payload


def tcp(flags: int, source: int = 443, target: int = 50_000) -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 7, 9, 0x50, flags, 0xFFFF, 0, 0)


def udp(source: int, target: int) -> bytes:
    return struct.pack("!HHHH", source, target, 8, 0)


def begins(packet: bytes) -> bool:
    return matches(BEGINS_TCP[family_of(packet)], packet)


def may_be_tcp(packet: bytes) -> bool:
    return matches(MAY_BE_TCP[family_of(packet)], packet)


def is_of_the_link(packet: bytes) -> bool:
    return any(matches(each, packet) for each in OF_THE_LINK[family_of(packet)])


def family_of(packet: bytes) -> Family:
    return Family.V4 if packet[0] >> 4 == 4 else Family.V6


@pytest.mark.parametrize("flags", range(256))
def test_tcp_begins_with_syn_and_without_ack_rst_and_fin(flags: int) -> None:
    wanted = flags & (SYN | ACK | RST | FIN) == SYN
    packets = [v4(6, tcp(flags), options=bytes(4 * words)) for words in range(11)]
    packets += [v6(6, tcp(flags)), v4(6, tcp(flags), fragment=0x2000), v4(6, tcp(flags), fragment=0x4000)]
    for packet in packets:
        assert (begins(packet), may_be_tcp(packet)) == (wanted, True)


def test_what_is_cut_off_or_hidden_begins_nothing() -> None:
    syn = tcp(SYN)
    for packet in (
        *(v4(6, syn, fragment=fragment) for fragment in (1, 2, 0x1FFF, 0x2001)),
        *(v4(6, syn[:length]) for length in range(16)),
        *(v4(6, syn[:length], options=bytes(40)) for length in range(16)),
        *(v6(6, syn[:length]) for length in range(16)),
        *(v6(before, bytes([6, 0]) + bytes(6) + syn) for before in BEFORE_OTHERS),
    ):
        assert (begins(packet), may_be_tcp(packet)) == (False, True)


@pytest.mark.parametrize("protocol", range(256))
def test_what_may_be_tcp_is_told_from_what_can_not_be(protocol: int) -> None:
    syn = tcp(SYN)
    assert may_be_tcp(v4(protocol, syn)) == (protocol == 6)
    assert begins(v4(protocol, syn)) == (protocol == 6)
    assert may_be_tcp(v6(protocol, syn)) == (protocol == 6 or protocol in BEFORE_OTHERS)
    assert begins(v6(protocol, syn)) == (protocol == 6)


@given(st.binary(max_size=80), st.sampled_from([4, 6]))
def test_whatever_the_bytes_what_begins_may_be_tcp_and_is_nothing_of_the_link(data: bytes, version: int) -> None:
    packet = bytes([version << 4 | (data[0] & 15 if data else 5)]) + data[1:]
    if begins(packet):
        assert may_be_tcp(packet)
        assert not is_of_the_link(packet)


@pytest.mark.parametrize("hops", [0, 1, 64, 254, 255])
def test_neighbours_are_heard_from_the_link_itself_alone(hops: int) -> None:
    for kind, code in product(range(256), (0, 7)):
        packet = v6(58, bytes([kind, code]) + bytes(22), hops=hops)
        assert is_of_the_link(packet) == (hops == 255 and kind in (135, 136))
    for protocol in set(range(256)) - {58}:
        assert not is_of_the_link(v6(protocol, bytes([135, 0]) + bytes(22), hops=hops))


def test_dhcp_is_from_the_servers_port_to_the_clients() -> None:
    for options in (b"", bytes(4), bytes(40)):
        assert is_of_the_link(v4(17, udp(67, 68) + bytes(240), options=options))
    for packet in (
        *(v4(17, udp(*ports)) for ports in ((68, 67), (67, 67), (68, 68), (67, 69), (1067, 68), (0, 0))),
        *(v4(protocol, udp(67, 68)) for protocol in (6, 1, 136)),
        *(v4(17, udp(67, 68), fragment=fragment) for fragment in (1, 0x2001)),
        *(v4(17, udp(67, 68)[:length]) for length in range(4)),
    ):
        assert not is_of_the_link(packet)


def test_dhcpv6_is_from_the_servers_port_to_the_clients_on_the_link() -> None:
    for target in (LINK_LOCAL, "fe80::", "febf:ffff::1"):
        assert is_of_the_link(v6(17, udp(547, 546) + bytes(64), target=target))
    for packet in (
        *(v6(17, udp(*ports), target=LINK_LOCAL) for ports in ((546, 547), (547, 547), (547, 545), (67, 68))),
        *(v6(17, udp(547, 546), target=target) for target in (GLOBAL, "fec0::1", "fe7f::1", "ff02::1:2", "fd00::1")),
        *(v6(protocol, udp(547, 546), target=LINK_LOCAL) for protocol in (6, 58, 0, 44)),
    ):
        assert not is_of_the_link(packet)
