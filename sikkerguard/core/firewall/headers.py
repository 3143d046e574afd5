"""Tests of a packet's headers, for the u32 match (iptables-extensions(8)), which reads 32 bits at an offset from the
IP header and compares them.

The matches that know protocols (`-p` of ip6tables, tcp, udp, icmp6) drop a packet by themselves whose header is cut
off or hidden in a fragment, past the counter of our DROP rule (`hotdrop` in net/netfilter/xt_tcpudp.c and
net/ipv6/netfilter/ip6_tables.c). u32 does not match what it can't read. Where something has to be proven, only a match
proves it.

The expressions are as iptables 1.8.9 and 1.8.11 print them, numbers in hexadecimal and no spaces, so that a rule reads
back equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sikkerguard.core.net.family import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

# IPv4 (RFC 791): the 4 bytes at 6 are flags and fragment offset, time to live, protocol. The lower half of the first
# byte is the header's length in words: `0>>22&0x3c` is that length in bytes, and `@` moves behind the header.
_V4_PROTOCOL: Final = "0x6&0xff"
_V4_WHOLE_OR_FIRST_FRAGMENT_OF: Final = "0x6&0x1fff00ff"
_V4_BEHIND: Final = "0x0>>0x16&0x3c@"
# IPv6 (RFC 8200): the 4 bytes at 4 are length, next header, hop limit; the destination is at 24, and what the next
# header says at 40.
_V6_NEXT_HEADER: Final = "0x4&0xff00"
_V6_NEXT_HEADER_AND_HOP_LIMIT: Final = "0x4&0xffff"
# TCP (RFC 9293): the 4 bytes at 12 are offset, flags, window. SYN is set, and ACK, RST and FIN are not: `--syn` of
# iptables.
_SYN: Final = "0x170000=0x20000"

# The first packet of a TCP connection, from the side that begins it. In IPv6 only where no extension header comes
# before TCP.
BEGINS_TCP: Final[Mapping[Family, str]] = {
    Family.V4: f"{_V4_WHOLE_OR_FIRST_FRAGMENT_OF}=0x6&&{_V4_BEHIND}0xc&{_SYN}",
    Family.V6: f"{_V6_NEXT_HEADER}=0x600&&0x34&{_SYN}",
}
# Whatever may be TCP: its fragments too, and in IPv6 everything with an extension header that the kernel looks behind
# (`ipv6_ext_hdr`): hop-by-hop 0, routing 43, fragment 44, authentication 51, destination 60.
MAY_BE_TCP: Final[Mapping[Family, str]] = {
    Family.V4: f"{_V4_PROTOCOL}=0x6",
    Family.V6: f"{_V6_NEXT_HEADER}=0x0,0x600,0x2b00:0x2c00,0x3300,0x3c00",
}
# What neighbours on the link send and no host can do without: it is never dropped.
OF_THE_LINK: Final[Mapping[Family, tuple[str, ...]]] = {
    # DHCP (RFC 2131): UDP from port 67 to port 68.
    Family.V4: (f"{_V4_WHOLE_OR_FIRST_FRAGMENT_OF}=0x11&&{_V4_BEHIND}0x0=0x430044",),
    Family.V6: (
        # Neighbour solicitation (ICMPv6 type 135) and advertisement (136). No router forwards a hop limit of 255
        # (RFC 4861, section 7.1).
        f"{_V6_NEXT_HEADER_AND_HOP_LIMIT}=0x3aff&&0x28>>0x18=0x87:0x88",
        # DHCPv6 (RFC 8415): UDP from port 547 to port 546 of a link-local address, fe80::/10.
        f"{_V6_NEXT_HEADER}=0x1100&&0x18>>0x16=0x3fa&&0x28=0x2230222",
    ),
}
