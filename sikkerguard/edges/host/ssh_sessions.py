"""Who is logged in by SSH: by logind's records, or where there are none, by connections that stand for long."""

from __future__ import annotations

import logging
import os
import re
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.host.ssh_sessions import MOST_PEERS, STANDING_SECONDS, Connection, Standing, follow, peers
from sikkerguard.core.net.address import parse_address, to_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.packed import Prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sikkerguard.core.net.networks import Blocklist

log = logging.getLogger(__name__)

SESSIONS = Path("/run/systemd/sessions")
# logind always has a seat0, on a host without a screen too, and writes it there at its start (logind-seat.c). An empty
# directory of sessions without it was made by something else: Docker makes one to mount.
_SEATS = Path("/run/systemd/seats")
_SSH_PORT = 22
_SSHD_CONFIG = Path("/etc/ssh/sshd_config")
# `Port 2222`, `ListenAddress 192.0.2.1:2222`, `ListenAddress [2001:db8::1]:2222`; an address alone keeps the port.
_SSHD_PORT = re.compile(
    r"\s*(?:Port[\s=]+\"?([0-9]{1,5})|ListenAddress[\s=]+\"?(?:[^\s:\"]+|\[[^\s\]]+\]):([0-9]{1,5}))(?:[\s\"]|$)",
    re.IGNORECASE,
)
_SSHD_PAM = re.compile(r"\s*UsePAM[\s=]+\"?(yes|no)\b", re.IGNORECASE)
_PAM_SERVICES = ("sshd", "common-session", "system-auth", "password-auth")
# Kernel's include/net/tcp_states.h, as /proc/net/tcp prints it.
_ESTABLISHED = "01"
_MAPPED = bytes(10) + b"\xff\xff"

Peer = tuple[Family, int]


class SshPeers:
    """The far ends of SSH sessions, at most 64, and the memory that it takes to know them.

    `root` is where /run, /etc and /proc lie, and `clock` gives seconds that never go back. For one thread at a time.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._standing = Standing()
        self._said_ports = ""
        self._unnamed: frozenset[str] = frozenset()

    def look(self, ports: Iterable[int], listed: Blocklist) -> tuple[str, ...]:
        """Who is logged in now.

        Where logind records each session, that is who has a record of a session that goes on, and a connection: a
        session may linger for days after its user has left. Where it does not, the peers of connections to port 22, to
        the ports of sshd_config and to `ports` count too, once they stand for two minutes, by `core.sessions`;
        peers that are in `listed`, the list in force, don't.
        """
        hosts = _recorded(self._root)
        found = dict.fromkeys(self._connected(hosts))
        if _records_all(self._root, hosts):
            self._standing = Standing()
            self._said_ports = ""
        else:
            watched = {_SSH_PORT, *ports, *_sshd_ports(self._root)}
            shown = ", ".join(map(str, sorted(watched)))
            if shown != self._said_ports:
                log.info(
                    "SSH sessions have no records of logind's here: a connection to port %s counts as one once it has "
                    "stood for %d s.",
                    shown,
                    STANDING_SECONDS,
                )
            self._said_ports = shown
            established = _to_ports(self._root, watched)
            self._standing = follow(self._standing, established, self._clock(), listed.has)
            found.update(dict.fromkeys(peers(self._standing)))
        return tuple(to_text(family, Prefix(number, family.bits)) for family, number in [*found][:MOST_PEERS])

    def _connected(self, hosts: Iterable[str]) -> list[Peer]:
        """Those of the recorded hosts that have a connection, in their order."""
        recorded: list[Peer] = []
        unnamed = set()
        for host in hosts:
            try:
                recorded.append(_peer(host))
            except ValueError:
                unnamed.add(host)
        for host in sorted(unnamed - self._unnamed):
            log.warning(
                "An SSH session is recorded as from %r, which is no address, and so not allowed for being one: set "
                "'UseDNS no' in sshd_config, or put its address into SIKKER_WHITELIST.",
                host,
            )
        self._unnamed = frozenset(unnamed)
        if not recorded:
            return []
        digits = {text: peer for peer in recorded for text in _digits(*peer)}
        present = {digits[remote] for _, remote, _ in _established(self._root) if remote in digits}
        return [peer for peer in recorded if peer in present]


def _peer(host: str) -> Peer:
    """The address that a record names, without zone; IPv4 that is written as IPv6 is IPv4.

    Raises:
        ValueError: it is none.
    """
    text = host.partition("%")[0]
    return parse_address(text.removeprefix("::ffff:") if "." in text else text)


def _recorded(root: Path) -> tuple[str, ...]:
    """The far ends of the sessions from elsewhere that logind knows and that go on, the longest one first."""
    found: list[tuple[int, str]] = []
    # Beside each record lies a FIFO (`3.ref`): opening or reading that would wait for the end of the session.
    records: list[Path] = []
    with suppress(OSError):
        records = [path for path in (root / SESSIONS.relative_to("/")).iterdir() if path.is_file()]
    for path in sorted(records):
        with suppress(OSError):
            fields = dict(line.partition("=")[::2] for line in path.read_text("utf-8", errors="replace").splitlines())
            # What is closing has lost its sshd; processes of the user keep it, for as long as they like.
            if fields.get("REMOTE") == "1" and fields.get("REMOTE_HOST") and fields.get("STATE") != "closing":
                began = fields.get("REALTIME", "")
                found.append((int(began) if began.isascii() and began.isdigit() else 0, fields["REMOTE_HOST"]))
    return tuple(dict.fromkeys(host for _, host in sorted(found, key=lambda each: each[0])))


def _records_all(root: Path, hosts: Iterable[str]) -> bool:
    """Whether logind hears of every SSH session, so that who is not among its records is not logged in."""
    sessions = root / SESSIONS.relative_to("/")
    try:
        # A record says so, whoever it is of.
        known = sessions.is_dir() and any(
            path.is_file() for path in [*sessions.iterdir(), root / _SEATS.relative_to("/") / "seat0"]
        )
    except OSError:
        return False
    return known and _is_told(root)


def _is_told(root: Path) -> bool:
    """Whether logind is told of SSH sessions, by way of PAM. In a container neither PAM's nor sshd's files are within
    reach, and then it is, as on nearly every host that has a logind."""
    pam = [root / "etc/pam.d" / service for service in _PAM_SERVICES]
    with suppress(OSError):  # a directory that this user may not enter is out of reach too
        if (root / "etc/pam.d/sshd").exists() and not any(_mentions(path, "pam_systemd.so") for path in pam):
            return False
    # The first word on it counts, and sshd's own default is no (sshd_config(5)). Of files that this user may not read
    # nothing can be said.
    config = root / _SSHD_CONFIG.relative_to("/")
    with suppress(OSError):
        if config.exists() and not os.access(config, os.R_OK, effective_ids=True):
            return True
    lines = list(_sshd_lines(root))
    words = (_SSHD_PAM.match(line) for line in lines)
    return not lines or next((match[1].lower() == "yes" for match in words if match), False)


def _sshd_lines(root: Path) -> Iterator[str]:
    config = root / _SSHD_CONFIG.relative_to("/")
    included: list[Path] = []
    with suppress(OSError):  # a directory that this user may not enter
        included = sorted(config.with_name("sshd_config.d").glob("*.conf"))
    # Debian's file begins with the line that includes the others.
    for path in [*included, config]:
        with suppress(OSError):
            yield from path.read_text("utf-8", errors="replace").splitlines()


def _sshd_ports(root: Path) -> set[int]:
    """The ports on which sshd listens by its configuration: Port and ListenAddress of sshd_config(5)."""
    matches = (_SSHD_PORT.match(line) for line in _sshd_lines(root))
    return {int(match[1] or match[2]) for match in matches if match}


def _to_ports(root: Path, ports: Iterable[int]) -> Iterator[Connection]:
    """The established connections to these ports of this host."""
    wanted = {f"{port:04X}" for port in ports}
    for local, remote, identity in _established(root):
        if local[-4:] in wanted:
            packed = _packed(remote)
            family = Family.V4 if len(packed) == Family.V4.size else Family.V6
            yield Connection(family, int.from_bytes(packed, "big"), identity)


def _established(root: Path) -> Iterator[tuple[str, str, str]]:
    """Of each established connection our end with its port, the far end without, and both with the number of the
    socket, as the kernel prints them (proc_net_tcp(5))."""
    for name in ("proc/self/net/tcp", "proc/self/net/tcp6"):
        with suppress(OSError), (root / name).open("r") as table:
            for line in table:
                fields = line.split(None, 10)
                if len(fields) > 9 and fields[3] == _ESTABLISHED:
                    remote = fields[2].rpartition(":")[0]
                    yield fields[1], remote, f"{fields[1]} {fields[2]} {fields[9]}"


def _packed(digits: str) -> bytes:
    """An address as the kernel prints it in /proc/net/tcp, 32-bit words in the host's byte order, to a packed one."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    # An IPv4 peer of a socket that takes both families.
    return packed[12:] if packed.startswith(_MAPPED) and len(packed) == Family.V6.size else packed


def _digits(family: Family, number: int) -> tuple[str, ...]:
    """The reverse: each way in which the kernel may print an address."""
    packed = number.to_bytes(family.size, "big")
    forms = (packed, _MAPPED + packed) if family is Family.V4 else (packed,)
    return tuple("".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", form)) for form in forms)


def _mentions(path: Path, word: str) -> bool:
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(word in line.partition("#")[0] for line in lines)
