"""A line of our LOG rule to the drop that it tells of.

The form is that of the kernel's net/netfilter/nf_log_syslog.c, for kernels from 5.10 on: words with one space after
each. A word that we take is only taken with its space, so that a line cut off in the middle of a number or an address
gives nothing, not a wrong one: `DPT=2` at the very end may have been `DPT=23 `. What follows the last word that we take
may be cut, or grow with a newer kernel.

Addresses count by their place alone: an ICMP error has the packet that it answers behind it, in brackets, and that
packet's source is most often this very host.
"""

from __future__ import annotations

import re
import socket

from sikkerguard.core.firewall.names import LOG_PREFIX
from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.sample import DropEvent

# Protocols that the kernel writes by name (IANA's numbers). All others are written by number.
_PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "UDPLITE": 136, "ICMP": 1, "ICMPv6": 58, "ESP": 50, "AH": 51}
# Written by number though they have a port, or a type and code, that the line does not tell. (ICMP in IPv6 and ICMPv6
# in IPv4 are among them: the kernel knows neither.)
_PORTLESS_LINES = frozenset({1, 6, 17, 33, 58, 132, 136})
_ICMP_FAMILY = {"ICMP": Family.V4, "ICMPv6": Family.V6}

# Nothing but single characters is repeated possessively: Python 3.11.2, Debian 12's, does so wrongly with groups
# (CPython issue 106052). Each word ends with its space, so there is no second way to match and nothing to try twice.
_NUMBER = "(?:0|[1-9][0-9]{0,4})"
_LINE = re.compile(
    rf"""
    {re.escape(LOG_PREFIX)}IN=[^ \n]++[ ]OUT=[ ]     # before routing: one interface in, none out
    (?:(?!SRC=|DST=)[A-Z]++=[^ \n]*+[ ])*    # PHYSIN, MAC or MACSRC and so on, TUNNEL
    SRC=([0-9a-fA-F:.]++)[ ]DST=([0-9a-fA-F:.]++)[ ]
    (?:(?!PROTO=|SRC=|DST=)[^ \n\[\]]++[ ])* # LEN, TOS, TTL, DF, FRAG:, OPT ( ) and so on
    PROTO=(?:
        (TCP|UDP|UDPLITE)[ ]SPT={_NUMBER}[ ]DPT=({_NUMBER})[ ]
      | (ICMP|ICMPv6)[ ]TYPE=({_NUMBER})[ ]CODE=({_NUMBER})[ ]
      | (AH|ESP|{_NUMBER})[ ]
    )
    [^\n\[\]]*+(?:\[[^\n]*+)?\Z
    """,
    re.VERBOSE,
)


def parse_drop_line(message: str) -> DropEvent | None:
    """What a message of the kernel's log, without header and newline, says of a dropped packet.

    None for every message that is not a line of our rule, or not a whole one, and where the line does not tell the
    port: of later fragments, of packets too short for one, of SCTP and DCCP, and of ESP in IPv6, where it does not
    even tell the protocol. The kernel counts those all the same.
    """
    found = _LINE.match(message)
    # A second source is not ours to choose from.
    if found is None or message.find(" SRC=", found.end(2)) >= 0:
        return None
    source, target, ported, port, icmp, kind, code, other = found.groups()
    family = Family.V6 if ":" in source else Family.V4
    number = family.number
    try:
        address = socket.inet_pton(number, source)
        socket.inet_pton(number, target)
    except OSError:
        return None
    if ported:
        aimed = int(port)
        return DropEvent(family, address, _PROTOCOL_NUMBERS[ported], aimed) if aimed <= 65535 else None
    if icmp:
        high, low = int(kind), int(code)
        fits = high <= 255 and low <= 255 and _ICMP_FAMILY[icmp] is family
        return DropEvent(family, address, _PROTOCOL_NUMBERS[icmp], high * 256 + low) if fits else None
    protocol = _PROTOCOL_NUMBERS.get(other) or int(other)
    return DropEvent(family, address, protocol, 0) if protocol <= 255 and protocol not in _PORTLESS_LINES else None
