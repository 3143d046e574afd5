"""From a protocol and a port to the service's name and the category in which its attackers are reported.

The table of services and the reasoning behind its categories are in `port_table`. Pure: no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sikkerguard.core.ports.port_table import SERVICES
from sikkerguard.core.ports.protocols import PROTOCOLS, WITH_PORTS

if TYPE_CHECKING:
    from collections.abc import Mapping

# How many distinct ports make a source a scanner, whatever it was after at each. The two detectors that others run
# by default, Zeek's scan.zeek and CrowdSec's iptables-scan-multi_ports, both say 15, and much less would not do: who
# is after mailboxes alone touches 7 (25, 110, 143, 465, 587, 993, 995), and who is after web servers about as many.
# A source that scatters fewer is mostly called port_scan all the same, since most ports are unknown.
PORT_SCAN_THRESHOLD: Final = 15

# From this likeness on, as difflib measures it, a label may be a known name mistyped.
_NEAR: Final = 0.75
_LABEL: Final = re.compile(r"[a-z0-9-]{1,32}")
_NO_PORT_MAP: Final[Mapping[int, str]] = MappingProxyType({})
# In all others what stands in the port's place (an ICMP type, zero) means no service.
_WITH_PORTS: Final = frozenset(PROTOCOLS[number].upper() for number in WITH_PORTS)


@dataclass(frozen=True, slots=True)
class Service:
    """What is met at a port: `name` (lower case, at most 32 characters), `category` (by SikkerAPI's name), and the name
    under which it is reported: a label that the owner of the host made up stays with him."""

    name: str
    category: str
    reported_as: str


_UNKNOWN: Final = Service("unknown", "port_scan", "unknown")
_BY_NAME: Final = {(protocol, name): Service(name, category, name) for protocol, category, name, _ in SERVICES}
_BY_PORT: Final = {
    (protocol, port): _BY_NAME[protocol, name] for protocol, _, name, ports in SERVICES for port in ports
}
SERVICE_NAMES: Final = frozenset(name for _, name in _BY_NAME)


def service_of(protocol: str, port: int, port_map: Mapping[int, str] = _NO_PORT_MAP) -> Service:
    """The service at `port` of `protocol` ("TCP", "udp", ...; case does not matter).

    `port_map` (as `parse_port_map` returns it) goes before the table. A name there brings the category of the known
    service that it is, or that is named behind it: the one under the same protocol where the table has both. Any other
    name is a label: port_scan, and reported as unknown, as is a port that neither knows. A protocol without ports is
    named by itself, one without a name is `unknown`, both port_scan. Never raises.
    """
    protocol = protocol.upper()
    if protocol not in _WITH_PORTS:
        if protocol.isdigit():
            return _UNKNOWN
        name = protocol.lower()
        return Service(name, _UNKNOWN.category, name)
    mapped = port_map.get(port)
    if mapped is None:
        return _BY_PORT.get((protocol, port), _UNKNOWN)
    name, colon, known = mapped.partition(":")
    for transport in (protocol, "TCP", "UDP"):
        service = _BY_NAME.get((transport, known if colon else name))
        if service is not None:
            return Service(name, service.category, service.name)
    return Service(name, _UNKNOWN.category, _UNKNOWN.reported_as)


def doubtful_labels(port_map: Mapping[int, str]) -> dict[str, str]:
    """The labels that look like a known service's name mistyped, each with that name."""
    from difflib import get_close_matches  # as below

    labels = {name for name in port_map.values() if ":" not in name and name not in SERVICE_NAMES}
    near = {label: get_close_matches(label, SERVICE_NAMES, n=1, cutoff=_NEAR) for label in sorted(labels)}
    return {label: found[0] for label, found in near.items() if found}


def parse_port_map(text: str) -> dict[int, str]:
    """Reads SIKKER_PORT_MAP, `8443=https 8000-8010=myapp,2222=myssh:ssh`, as {port: name}, a label with a known service
    behind it as `label:service`.

    Commas and spaces separate; spaces around `=` and `:`, empty entries and the case of a name do not matter.
    Raises ValueError with one sentence for each fault, all of them joined by "; ".
    """
    port_map: dict[int, str] = {}
    faults: list[str] = []
    for entry in re.sub(r"\s*([=:])\s*", r"\1", text).replace(",", " ").split():
        ports, _, name = entry.partition("=")
        if not (ports and name):
            faults.append(f"{entry!r} is not of the form PORT=NAME, such as 8443=https or 8000-8010=myapp")
            continue
        label, colon, known = name.lower().partition(":")
        if not _LABEL.fullmatch(label):
            faults.append(f"{label!r} is no name: letters a-z, digits and hyphens, at most 32")
        if colon and known not in SERVICE_NAMES:
            faults.append(f"service {known!r} is unknown{_nearest(known)}")
        try:
            first, last = _parse_ports(ports)
        except ValueError as fault:
            faults.append(str(fault))
            continue
        for port in range(first, last + 1):
            if port in port_map:
                faults.append(f"port {port} is given twice")
                break
            port_map[port] = f"{label}{colon}{known}"
    if faults:
        raise ValueError("; ".join(faults))
    return port_map


def write_port_map(port_map: Mapping[int, str]) -> str:
    """The text that `parse_port_map` reads as this, neighbours of one name in a range."""
    entries: list[tuple[int, int, str]] = []
    for port, name in sorted(port_map.items()):
        if entries and entries[-1][1:] == (port - 1, name):
            entries[-1] = (entries[-1][0], port, name)
        else:
            entries.append((port, port, name))
    return ",".join(f"{first}={name}" if first == last else f"{first}-{last}={name}" for first, last, name in entries)


def category_of_source(packets: Mapping[tuple[str, int], int], port_map: Mapping[int, str] = _NO_PORT_MAP) -> str:
    """The category in which to report a source that sent `packets`, {(protocol, port): count}.

    port_scan if it touched at least PORT_SCAN_THRESHOLD distinct port numbers (the same number over TCP and UDP is
    one; protocols without ports have none), else the category of what received the most packets; of equals the
    lowest port decides, then the protocol's name. What received no packet was not touched. Raises ValueError if
    nothing was touched.
    """
    touched = [(-count, port, protocol.upper()) for (protocol, port), count in packets.items() if count > 0]
    if not touched:
        raise ValueError("a source that sent no packet can't be reported")
    if len({port for _, port, protocol in touched if protocol in _WITH_PORTS}) >= PORT_SCAN_THRESHOLD:
        return "port_scan"
    _, port, protocol = min(touched)
    return service_of(protocol, port, port_map).category


def _parse_port(number: str) -> int:
    """A port, 1-65535, in ASCII digits; raises ValueError with a sentence."""
    if not (number.isascii() and number.isdigit()):  # int() would take "+22", "2_2" and other scripts' digits
        raise ValueError(f"port {number!r} is not a number in the digits 0-9")
    digits = number.lstrip("0")
    if not digits or len(digits) > 5 or int(digits) > 65535:
        raise ValueError(f"port {number} is outside 1-65535")
    return int(digits)


def _parse_ports(text: str) -> tuple[int, int]:
    """The first and the last one of `8443` or `8000-8010`; raises ValueError with a sentence."""
    low, hyphen, high = text.partition("-")
    if not (low and hyphen):
        return (port := _parse_port(text)), port
    first, last = _parse_port(low), _parse_port(high)
    if first > last:
        raise ValueError(f"the ports {text} are in the wrong order")
    return first, last


def _nearest(name: str) -> str:
    """A clause on the known service that this is near to, if it is to one."""
    from difflib import get_close_matches  # only a mistake needs it, and a start should not wait for it

    # Sorted, so that the same mistake always has the same answer.
    near = get_close_matches(name, sorted(SERVICE_NAMES), n=1)
    return f", the nearest known one is {near[0]!r}" if near else ""
