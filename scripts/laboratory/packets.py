"""Packets of as many sources as one likes, at the pace of the kernel: frames put onto the wire ready-made."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
from typing import TYPE_CHECKING

from scripts.laboratory.network import HOST, HOST_V6

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scripts.laboratory.network import Laboratory

_ETHERNET = {4: b"\x08\x00", 6: b"\x86\xdd"}
_TARGETS = {4: socket.inet_aton(HOST), 6: socket.inet_pton(socket.AF_INET6, HOST_V6)}


class Wire:
    """The laboratory's line from the internet to the host."""

    def __init__(self, lab: Laboratory) -> None:
        (link,) = json.loads(lab.host.run("ip", "-json", "link", "show", "wan"))
        self._ethernet = bytes.fromhex(link["address"].replace(":", "")) + bytes.fromhex("020000000001")
        self._lab = lab

    def send(self, packets: Iterable[bytes]) -> int:
        """Put these IP packets onto the line, one after the other; the number of them."""

        def put() -> int:
            sent = 0
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
                line.bind(("lan", 0))
                for packet in packets:
                    line.send(self._ethernet + _ETHERNET[packet[0] >> 4] + packet)
                    sent += 1
            return sent

        return self._lab.internet.inside(put)


FIN, SYN, RST, ACK = 1, 2, 4, 16


def tcp(source: str | int, port: int, flags: int = SYN, *, origin: int = 40_000) -> bytes:
    """TCP to this port of the host, if not otherwise said the first packet of a connection."""
    return packet(source, socket.IPPROTO_TCP, segment(port, flags, origin=origin))


def segment(port: int, flags: int = SYN, *, origin: int = 40_000) -> bytes:
    """What TCP puts into an IP packet."""
    return struct.pack("!HHIIBBHHH", origin, port, 1, 0, 0x50, flags, 1024, 0, 0)


def udp(source: str | int, port: int) -> bytes:
    """An empty datagram to this port of the host."""
    return packet(source, socket.IPPROTO_UDP, struct.pack("!HHHH", 40_000, port, 8, 0))


def packet(source: str | int, protocol: int, payload: bytes, *, fragment: int = 0, hops: int = 64) -> bytes:
    """An IP packet to the host. Checksums of what it carries are left out: nobody reads them before it is dropped.
    `fragment` is the offset, in units of 8 bytes, of a fragment that is not the first one."""
    address = ipaddress.ip_address(source)
    if address.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
        return head + address.packed + _TARGETS[6] + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, hops, protocol, 0)
    head += address.packed + _TARGETS[4]
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + payload


def crossed(sources: Sequence[str | int], ports: Sequence[int]) -> list[bytes]:
    """A SYN of each source to each port, port by port."""
    return [tcp(source, port) for port in ports for source in sources]


def repeated(packets: Sequence[bytes], number: int) -> Iterator[bytes]:
    """The same packets again and again, so many in all."""
    for count in range(0, number, len(packets)):
        yield from packets[: number - count]
