"""Real lists, whole: what the kernel blocks is exactly what should be blocked, to the single address.

What should be is computed here anew, slowly, with Python's `ipaddress`; what is, the test reads from `ipset save`.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import lzma
import random
import re
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API, GATEWAY, GATEWAY_V6, HOST, HOST_V6, INNER, INNER_V6, RESOLVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.laboratory.network import Laboratory
    from tests.kernel.conftest import Guard

# Ascending and disjoint, each with its first and last address as numbers.
Intervals = list[tuple[int, int]]

DATA = Path(__file__).parents[1] / "data"

# The IANA special-purpose registries for IPv4 and IPv6, without the documentation ranges (which may be blocked) and
# without what is globally reachable; and what RFC 4291 and IANA's address space registries leave for no host.
NO_HOST_V4 = ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"]
NO_HOST_V4 += ["192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"]
NO_HOST_V6 = ["::/3", "4000::/2", "8000::/1"]

# Real addresses that this host's owner wants to be reached from, though lists have them.
WHITELIST = ["77.90.185.20", "45.148.10.0/24", "1.24.16.8/31"]
# What lists must not have and yet do: this host and what it talks to, alone and within ranges; private, shared,
# reserved and multicast addresses, alone, within and around; and lines that nobody can mean.
POISON = f"""\
{GATEWAY}
{RESOLVER}
{API}
{HOST}
198.51.100.0/25
198.51.0.0/16
{GATEWAY_V6}
{HOST_V6}
2001:db8:1::/64
2001:db8::/40
10.77.0.2
10.0.0.0/8
172.0.0.0/8
192.168.1.1
192.0.0.0/16
100.64.0.0/9
100.120.165.51
127.0.0.1
169.254.169.254
198.16.0.0/13
224.0.0.1
239.0.0.0/8
240.0.0.1
255.255.255.255
0.1.2.3
::
::1
::ffff:0:0/96
64:ff9b::/96
fe80::1
fd77::2
fc00::/16
fec0::/16
ff02::1
ff00::/16
4000::/16
0.0.0.0/0
128.0.0.0/1
::/0
2001:db8:1234::7
2001:db8:aaaa::/48
2001:db8:aaaa:bbbb::/64
203.0.113.0/29
203.0.113.4/31
203.0.113.7
203.0.113.7
"""
# Left out: what is left of them without the ranges that nobody blocks is wider than a /16, or a /32.
UNREADABLE = {"0.0.0.0/0", "128.0.0.0/1", "::/0", "172.0.0.0/8", "100.64.0.0/9", "198.16.0.0/13"}


def intervals(version: int, texts: Iterable[str]) -> Intervals:
    """The addresses of one IP version that these cover."""
    found = []
    for text in texts:
        network = ipaddress.ip_network(text, strict=False)
        if network.version == version:
            found.append((int(network.network_address), int(network.broadcast_address)))
    merged: Intervals = []
    for first, last in sorted(found):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def without(given: Intervals, holes: Intervals) -> Intervals:
    """What is left of the first where the second is cut out of it."""
    left = []
    for first, last in given:
        at = max(bisect_right(holes, (first,)) - 1, 0)
        while first <= last and at < len(holes) and holes[at][0] <= last:
            if holes[at][1] >= first:
                if holes[at][0] > first:
                    left.append((first, holes[at][0] - 1))
                first = holes[at][1] + 1
            at += 1
        if first <= last:
            left.append((first, last))
    return left


def covers(given: Intervals, text: str) -> bool:
    """Whether the address is among them."""
    number = int(ipaddress.ip_address(text))
    at = bisect_right(given, (number, 1 << 128)) - 1
    return at >= 0 and given[at][1] >= number


@functools.cache
def lines_of(name: str) -> tuple[str, ...]:
    """A list's entries, without comments and counts."""
    with lzma.open(DATA / f"{name}.txt.xz", "rt", encoding="ascii") as file:
        return tuple(line.split()[0] for line in file if line.strip() and not line.startswith("#"))


def own_addresses(lab: Laboratory) -> list[str]:
    """The host's addresses, as `ip` shows them."""
    links = json.loads(lab.host.run("ip", "-j", "addr"))
    return [entry["local"] for link in links for entry in link["addr_info"]]


def beside(version: int, listed: Intervals, never: Intervals, number: int) -> list[str]:
    """Addresses just before and behind some of those that are listed."""
    make = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    chance = random.Random(version)
    found: set[str] = set()
    while len(found) < number:
        first, last = chance.choice(listed)
        text = str(make(chance.choice((first - 1, last + 1))))
        if not covers(listed, text) and not covers(never, text):
            found.add(text)
    return sorted(found)


def passing(lab: Laboratory, sources: Sequence[str]) -> set[str]:
    """Those of whom a packet gets to the host, or through it to the inner network."""
    lab.own_many(list(dict.fromkeys(sources)))
    ways = [(source, target) for source in sources for target in ("", INNER_V6 if ":" in source else INNER)]
    with ThreadPoolExecutor(16) as pool:
        passed = dict(zip(ways, pool.map(lambda way: lab.passes(*way), ways), strict=True))
    for source in sources:
        to_host, through_host = (ok for (each, _), ok in passed.items() if each == source)
        assert to_host == through_host, source
    return {source for (source, _), ok in passed.items() if ok}


@pytest.mark.parametrize(
    ("from_api", "custom"),
    [("ipsum", None), ("bitwire-outbound", None), ("ipsum", "bitwire-outbound")],
)
def test_exactly_the_listed_addresses_are_blocked(guard: Guard, from_api: str, custom: str | None) -> None:
    lab = guard.lab
    poison = POISON.split()
    listed = [*lines_of(from_api), *poison]
    guard.answer("".join(f"{line}\n" for line in listed).encode())
    variables = {"SIKKER_WHITELIST": ",".join(WHITELIST)}
    if custom:
        listed += lines_of(custom)
        (guard.directory / "custom.txt").write_text("\r\n".join(lines_of(custom)))
        variables["SIKKER_CUSTOM_BLACKLIST"] = str(guard.directory / "custom.txt")
    guard.start(**variables)
    # The local file needs no answer of SikkerAPI: it is in force first.
    guard.logged(r"Blocking \d+ IPs$", times=2 if custom else 1, seconds=30)

    allowed = [*own_addresses(lab), GATEWAY, GATEWAY_V6, RESOLVER, API, *WHITELIST]
    readable = [line for line in listed if line not in UNREADABLE]
    saved = re.findall(r"^add sikkerguard-v[46](?:-net)? (\S+)", lab.sets(), re.MULTILINE)
    dropped: list[str] = []
    free = ["77.90.185.20", "45.148.10.240", "1.24.16.9"]
    for version in (4, 6):
        never = intervals(version, [*NO_HOST_V4, *NO_HOST_V6, *allowed])
        should, does = without(intervals(version, readable), never), intervals(version, saved)
        # Not the lists themselves: the difference of two long ones takes minutes to print.
        assert (without(should, does)[:9], without(does, should)[:9]) == ([], [])
        assert not [text for text in allowed if without(intervals(version, [text]), does) != intervals(version, [text])]

        make = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        chance = random.Random(version)
        singles = [first for first, last in should if first == last]
        ranges = [each for each in should if each[0] != each[1]]
        dropped += [str(make(number)) for number in chance.sample(singles, min(5, len(singles)))]
        dropped += [str(make(chance.randint(*each))) for each in chance.sample(ranges, min(5, len(ranges)))]
        free += beside(version, should, never, 4)
    assert passing(lab, [*dropped, *free]) == set(free)
