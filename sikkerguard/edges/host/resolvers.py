"""The name servers of this host, by the files that name them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.net.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable

RESOLVER_FILES = (
    Path("/etc/resolv.conf"),
    # The real upstreams of systemd-resolved; /etc/resolv.conf then names only its stub, 127.0.0.53.
    Path("/run/systemd/resolve/resolv.conf"),
)

# The C library asks the first three of its file (resolv.conf(5), MAXNS), and systemd-resolved one at a time of what the
# links have brought it: whoever answers a host's DHCP must not get all the Internet allowed by it.
_MOST_SERVERS = 16


def resolvers(files: Iterable[Path] = RESOLVER_FILES) -> tuple[str, ...]:
    """The name servers that these files name, without zone, each once (resolv.conf(5)).

    One on this host is among them: what it answers, it has from its upstream. What is not one address is none: a
    range, or 0.0.0.0.
    """
    found: dict[str, None] = {}
    for path in files:
        named = 0
        with suppress(OSError):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    text = words[1].partition("%")[0]
                    with suppress(ValueError):
                        _, number = parse_address(text)
                        if number and named < _MOST_SERVERS:
                            named += 1
                            found[text] = None
    return tuple(found)
