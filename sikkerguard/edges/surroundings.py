"""What this host must never be cut off from: gateways, resolvers, its own addresses, the peers of SSH sessions.

And word that any of it changed: netlink tells of addresses and routes, inotify of the resolvers' files.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import re
import socket
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sikkerguard.core.model import GATEWAY, RESOLVER, AllowEntry, Family, Gateway, parse_prefix
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger(__name__)

RESOLVER_FILES = (
    Path("/etc/resolv.conf"),
    # The real upstreams of systemd-resolved; /etc/resolv.conf then names only its stub, 127.0.0.53.
    Path("/run/systemd/resolve/resolv.conf"),
)
_SSH_PORT = 22
_SSHD_CONFIG = Path("/etc/ssh/sshd_config")
# `Port 2222`, `ListenAddress 192.0.2.1:2222`, `ListenAddress [2001:db8::1]:2222`; an address alone keeps the port.
_SSHD_PORT = re.compile(
    r"\s*(?:Port[\s=]+\"?([0-9]{1,5})|ListenAddress[\s=]+\"?(?:[^\s:\"]+|\[[^\s\]]+\]):([0-9]{1,5}))(?:[\s\"]|$)",
    re.IGNORECASE,
)
_SSHD_PAM = re.compile(r"\s*UsePAM[\s=]+\"?(yes|no)\b", re.IGNORECASE)
_SESSIONS = Path("/run/systemd/sessions")
_PAM_SERVICES = ("sshd", "common-session", "system-auth", "password-auth")
# Kernel's include/net/tcp_states.h, as /proc/net/tcp prints it.
_ESTABLISHED = "01"
# rtnetlink(7): addresses and routes of both families.
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400
# inotify(7): changed, written and closed, moved in, made, removed.
_WATCHED = 0x2 | 0x8 | 0x80 | 0x100 | 0x200


def gateways() -> tuple[Gateway, ...]:
    """The default gateways of every table and family, in the kernel's order, each once.

    Raises:
        KernelError: the routes can't be read.
    """
    found: dict[Gateway, None] = {}
    with _routes() as netlink:
        for family in Family:
            for route in netlink.get_routes(family=family.number):
                if route["family"] == family.number and not route["dst_len"]:
                    found.update((gateway, None) for gateway in _next_hops(family, route))
    return tuple(found)


def own_addresses() -> tuple[tuple[Family, str], ...]:
    """The host's addresses on every interface.

    Raises:
        KernelError: the addresses can't be read.
    """
    found: dict[tuple[Family, str], None] = {}
    with _routes() as netlink:
        for family in Family:
            for message in netlink.get_addr(family=family.number):
                if message["family"] != family.number:
                    continue  # a kernel without IPv6 answers with what it has of IPv4
                # IFA_LOCAL is our end; IFA_ADDRESS is the peer's on point-to-point links (rtnetlink(7)).
                address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                if address:
                    found[family, address] = None
    return tuple(found)


def resolvers(files: Iterable[Path] = RESOLVER_FILES) -> tuple[str, ...]:
    """The name servers that these files name, without zone, each once (resolv.conf(5)). One on this host is among
    them: what it answers, it has from its upstream."""
    found: dict[str, None] = {}
    for path in files:
        with suppress(OSError):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    found[words[1].partition("%")[0]] = None
    return tuple(found)


def ssh_peers(root: Path = Path("/")) -> tuple[str, ...]:
    """The addresses at the far end of established SSH sessions.

    Where logind keeps a record of every session that logged in, a connection counts only with such a record: someone
    who is still guessing passwords has an established connection too, and must not be let off the list by it. Where
    sshd's configuration is not within reach, as in a container, a session with a record counts on whatever port it is.
    """
    recorded = _recorded(root)
    if recorded and not any(_sshd_lines(root)):
        return tuple(sorted(_peers_of_ports(root, None) & recorded))
    connected = _peers_of_ports(root, _ssh_ports(root))
    if recorded is not None and _records_all(root):
        connected &= recorded
    return tuple(sorted(connected))


def detect(whitelist: Iterable[AllowEntry], ways: Iterable[AllowEntry]) -> tuple[AllowEntry, ...]:
    """All that is allowed because of where this host stands, in order of discovery; entries may be there twice for
    different reasons. `ways` are the addresses to which requests for lists go.

    Raises:
        KernelError: routes or addresses can't be read; then nothing new may be blocked.
    """
    texts = [
        *((gateway.address, GATEWAY) for gateway in gateways()),
        *((address, RESOLVER) for address in resolvers() if not address.startswith(("127.", "::1"))),
        *((address, "own address") for _, address in own_addresses()),
        *((address, "SSH session") for address in ssh_peers()),
    ]
    entries: dict[AllowEntry, None] = {}
    for text, reason in texts:
        with suppress(ValueError):  # a resolver's line may hold anything; what is no address can't be blocked either
            entries[AllowEntry(*parse_prefix(text), reason)] = None
    return (*entries, *ways, *whitelist)


class ChangeWatch:
    """Calls `changed` in the event loop soon after an address, a route or a resolver's file changed."""

    def __init__(self, changed: Callable[[], None], files: Iterable[Path] = RESOLVER_FILES) -> None:
        self._changed = changed
        self._files = tuple(files)
        self._netlink: socket.socket | None = None
        self._inotify = -1
        self._names: set[str] = set()

    def start(self) -> None:
        """Begin to watch; to be called in the event loop. What can't be watched is logged and left to polling."""
        loop = asyncio.get_running_loop()
        try:
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            self._netlink.setblocking(False)
            self._netlink.bind((0, _GROUPS))
            loop.add_reader(self._netlink, self._drain_netlink)
        except OSError as error:
            log.warning("Changes of addresses and routes are seen by polling only: %s.", error)
        try:
            self._inotify = _inotify()
            self._watch_files()
            loop.add_reader(self._inotify, self._drain_inotify)
        except OSError as error:
            log.warning("Changes of resolvers are seen by polling only: %s.", error)

    def stop(self) -> None:
        """End watching."""
        loop = asyncio.get_running_loop()
        if self._netlink is not None:
            loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None
        if self._inotify >= 0:
            loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def _watch_files(self) -> None:
        """Watch the directories in which the files lie, links followed too, since a file that is replaced is a new
        file; and the files themselves, since one that is mounted by itself changes in another directory. A second
        watch of the same thing changes nothing."""
        places = {file.parent for file in self._files} | {file.resolve().parent for file in self._files}
        self._names = {file.name for file in self._files} | {file.resolve().name for file in self._files}
        for place in (*places, *self._files):
            # Of what is not there yet, the nearest directory that is: systemd-resolved may start after us.
            existing = place
            while not existing.exists():
                self._names.add(existing.name)
                existing = existing.parent
            with suppress(FileNotFoundError):
                _add_watch(self._inotify, existing)

    def _drain_netlink(self) -> None:
        assert self._netlink is not None
        try:
            while self._netlink.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            # ENOBUFS: more changed than fits into the buffer. That something changed is all that we want to know.
            log.debug("netlink events were lost: %s", error)
        self._changed()

    def _drain_inotify(self) -> None:
        names = [name.encode() for name in self._names]
        events = os.read(self._inotify, 65536)
        offset, relevant = 0, False
        while offset < len(events):
            _watch, _mask, _cookie, length = struct.unpack_from("iIII", events, offset)
            # A watched file's own events bear no name.
            relevant |= events[offset + 16 : offset + 16 + length].rstrip(b"\0") in (*names, b"")
            offset += 16 + length
        if relevant:
            self._changed()
            with suppress(OSError):  # polling sees what can't be watched
                self._watch_files()


def _inotify() -> int:
    """A descriptor for watches. Debian has no package for this that is kept up on both of its releases, and it is two
    calls."""
    return _checked(ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def _add_watch(descriptor: int, place: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.inotify_add_watch(descriptor, os.fsencode(place), _WATCHED), str(place))


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return answer


@contextmanager
def _routes() -> Iterator[Any]:
    """An rtnetlink socket whose errors are ours."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            yield netlink
    except (NetlinkError, OSError) as error:
        raise KernelError(f"routes and addresses can't be read: {error}") from error


def _next_hops(family: Family, route: Any) -> Iterator[Gateway]:
    hops = route.get_attr("RTA_MULTIPATH") or [route]
    for hop in hops:
        interface = hop.get("oif") or hop.get_attr("RTA_OIF") or 0
        address = hop.get_attr("RTA_GATEWAY")
        if address:
            yield Gateway(family, address, interface)
        via = hop.get_attr("RTA_VIA")
        if via:
            # An IPv4 route by way of an IPv6 neighbour, or the reverse (RFC 5549).
            yield Gateway(Family.V6 if ":" in via["addr"] else Family.V4, via["addr"], interface)


def _sshd_lines(root: Path) -> Iterator[str]:
    config = root / _SSHD_CONFIG.relative_to("/")
    # Debian's file begins with the line that includes the others.
    for path in [*sorted(config.with_name("sshd_config.d").glob("*.conf")), config]:
        with suppress(OSError):
            yield from path.read_text("utf-8", errors="replace").splitlines()


def _ssh_ports(root: Path) -> set[int]:
    """The ports on which sshd listens: Port and ListenAddress of sshd_config(5), 22 if none is named."""
    matches = (_SSHD_PORT.match(line) for line in _sshd_lines(root))
    return {int(match[1] or match[2]) for match in matches if match} or {_SSH_PORT}


def _uses_pam(root: Path) -> bool:
    """Whether sshd opens a PAM session for who logs in, without which logind does not hear of it. The first word on
    it counts, and sshd's own default is no (sshd_config(5))."""
    words = (_SSHD_PAM.match(line) for line in _sshd_lines(root))
    return next((match[1].lower() == "yes" for match in words if match), False)


def _peers_of_ports(root: Path, ports: set[int] | None) -> set[str]:
    """The far ends of established connections to these local ports, or to any, from the tables of proc_net_tcp."""
    wanted = None if ports is None else {f"{port:04X}" for port in ports}
    peers = set()
    for name in ("proc/self/net/tcp", "proc/self/net/tcp6"):
        with suppress(OSError), (root / name).open("r") as table:
            for line in table:
                fields = line.split(None, 4)
                if len(fields) != 5 or fields[3] != _ESTABLISHED:
                    continue
                if wanted is None or fields[1].rpartition(":")[2] in wanted:
                    peers.add(_address_of(fields[2].rpartition(":")[0]))
    return peers


def _address_of(digits: str) -> str:
    """An address as the kernel prints it in /proc/net/tcp: 32-bit words in the host's byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == Family.V4.size:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed.startswith(bytes(10) + b"\xff\xff"):
        # An IPv4 peer of a socket that takes both families.
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _records_all(root: Path) -> bool:
    """Whether logind hears of every SSH session, by way of PAM."""
    pam = [root / "etc/pam.d" / service for service in _PAM_SERVICES]
    return any(_mentions(path, "pam_systemd.so") for path in pam) and _uses_pam(root)


def _recorded(root: Path) -> set[str] | None:
    """The far ends of the sessions from elsewhere that logind knows, or None where it does not tell them."""
    sessions = root / _SESSIONS.relative_to("/")
    if not sessions.is_dir():
        return None
    hosts = set()
    # Beside each record lies a FIFO (`3.ref`): opening or reading that would wait for the end of the session.
    try:
        records = [path for path in sessions.iterdir() if path.is_file()]
    except OSError:
        return None
    for path in records:
        with suppress(OSError):
            fields = dict(line.partition("=")[::2] for line in path.read_text("utf-8", errors="replace").splitlines())
            if fields.get("REMOTE") == "1":
                host = fields.get("REMOTE_HOST", "").partition("%")[0]
                try:
                    parse_prefix(host)
                except ValueError:
                    # UseDNS made a name of it: which connection it stands for can't be told.
                    return None
                hosts.add(host)
    return hosts


def _mentions(path: Path, word: str) -> bool:
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(word in line.partition("#")[0] for line in lines)
