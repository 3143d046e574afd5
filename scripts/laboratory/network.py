"""A laboratory of network namespaces: a protected host, and an internet with its gateway, resolver, API and attackers.

    internet 198.51.100.1, .53, .80 ──veth── 198.51.100.10 host 10.77.0.1 ──veth── 10.77.0.2 inner
             2001:db8:1::1                   2001:db8:1::10     fd77::1            fd77::2

Nothing outside the namespaces made here is changed. The internet takes any address that is asked for as its own, so
that a packet of any listed source is a real packet of a real socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scripts.laboratory.tools import command, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

GATEWAY, RESOLVER, API = "198.51.100.1", "198.51.100.53", "198.51.100.80"
HOST, HOST_LAN, INNER = "198.51.100.10", "10.77.0.1", "10.77.0.2"
GATEWAY_V6, HOST_V6, HOST_LAN_V6, INNER_V6 = "2001:db8:1::1", "2001:db8:1::10", "fd77::1", "fd77::2"
# What `ip` is told to do with the ends of the links.
_INTERNET_END = f"""\
addr add {GATEWAY}/24 dev lan
addr add {RESOLVER}/24 dev lan
addr add {API}/24 dev lan
addr add {GATEWAY_V6}/64 dev lan nodad
link set lan up
route add 10.77.0.0/24 via {HOST}
route add fd77::/64 via {HOST_V6}
"""
_INNER_END = f"""\
addr add {INNER}/24 dev wan
addr add {INNER_V6}/64 dev wan nodad
link set wan up
route add default via {HOST_LAN}
route add default via {HOST_LAN_V6}
"""
_HOST_ENDS = f"""\
addr add {HOST}/24 dev wan
addr add {HOST_V6}/64 dev wan nodad
addr add {HOST_LAN}/24 dev lan
addr add {HOST_LAN_V6}/64 dev lan nodad
link set wan up
link set lan up
route add default via {GATEWAY}
route add default via {GATEWAY_V6}
"""

# Whose namespaces these are, so that two runs beside each other are not taken for one another's leftovers.
TAG = f"sg{os.getpid():x}"

_Result = TypeVar("_Result")
_CLONE_NEWNET = 0x40000000


@dataclass
class Namespace:
    """A network namespace of our own making."""

    name: str

    def run(
        self,
        *words: str,
        check: bool = True,
        text: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a program inside."""
        entered = ("ip", "netns", "exec", self.name, *words)
        return command(*entered, check=check, text=text, timeout=timeout, env=env)

    def start(self, words: Sequence[str], environment: Mapping[str, str], **options: object) -> subprocess.Popen[bytes]:
        """Start a program inside; `ip` becomes the program, so that signals reach it."""
        entered = ["ip", "netns", "exec", self.name, *words]
        return subprocess.Popen(entered, env=dict(environment), **options)  # type: ignore[call-overload,no-any-return]

    def inside(self, action: Callable[[], _Result]) -> _Result:
        """Call this in a thread that has entered the namespace: sockets belong to where they were made."""
        outcome: list[_Result] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                with Path(f"/run/netns/{self.name}").open("rb") as handle:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(handle.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                outcome.append(action())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]


@dataclass
class Laboratory:
    """The three namespaces, wired. Use `laboratory()` to make one."""

    host: Namespace
    internet: Namespace
    inner: Namespace
    # Whether the host has nobody else to configure its ends of the links.
    configures_host: bool = True
    owned: set[str] = field(default_factory=set)

    def own(self, address: str) -> str:
        """Have the internet answer to this address too."""
        if address not in self.owned:
            length = 128 if ":" in address else 32
            extra = ("nodad",) if ":" in address else ()
            self.internet.run("ip", "addr", "add", f"{address}/{length}", "dev", "lo", *extra)
            self.owned.add(address)
        return address

    def own_many(self, addresses: Sequence[str]) -> None:
        """The same for many, in one go."""
        fresh = [address for address in addresses if address not in self.owned]
        lines = "".join(
            f"addr add {address}/{128 if ':' in address else 32} dev lo{' nodad' if ':' in address else ''}\n"
            for address in fresh
        )
        self.internet.run("ip", "-batch", "-", text=lines)
        self.owned.update(fresh)

    def passes(self, source: str, target: str = "") -> bool:
        """Whether one packet from this source reaches the host (or another target) and its answer comes back."""
        self.own(source)
        if not target:
            target = HOST_V6 if ":" in source else HOST
        return self.internet.inside(lambda: ping(source, target))

    def reaches(self, source: str, target: str = "") -> bool:
        """The same where it is expected to: a packet that a busy machine was late with does not count."""
        return any(self.passes(source, target) for _ in range(4))

    def plug(self) -> None:
        """Join the three by links, in place of those there were, and configure all ends that nobody else does."""
        # A link to a host that is gone may still be there for a moment.
        for namespace, end in ((self.internet, "lan"), (self.inner, "wan")):
            namespace.run("ip", "link", "del", end, check=False)
        for end, namespace, other in (("wan", self.internet, "lan"), ("lan", self.inner, "wan")):
            link = ("ip", "link", "add", end, "netns", self.host.name, "type", "veth")
            command(*link, "peer", "name", other, "netns", namespace.name)
        if self.configures_host:
            self.host.run("ip", "-batch", "-", text=_HOST_ENDS)
            self.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.internet.run("ip", "-batch", "-", text=_INTERNET_END)
        self.inner.run("ip", "-batch", "-", text=_INNER_END)

    def wait_for_host(self, seconds: float = 10.0) -> None:
        """Wait until a host that configures itself has its addresses, those of its links too, and its routes."""
        wanted = {HOST, HOST_V6, HOST_LAN, HOST_LAN_V6, GATEWAY, GATEWAY_V6}

        def configured() -> bool:
            # A ping too early would not be answered for a second: so long the sender waits to ask for the host again.
            shown = ("-brief address", "-4 route", "-6 route show default")
            text = "".join(self.host.run("ip", *words.split()) for words in shown)
            # Each of both links makes an address for itself; without it the host can't ask for its neighbours there.
            return wanted <= {word.partition("/")[0] for word in text.split()} and text.count(" fe80:") >= 2

        wait_for("the host's addresses and routes", configured, seconds)

    def sets(self) -> str:
        """`ipset save` of the host."""
        return self.host.run("ipset", "save")

    def rules(self) -> str:
        """Every rule of the host that any tool shows, without counters and the moments of printing."""
        # Without the counters of policies, which iptables 1.8.9 sets to zero at any change of the table
        # (findings/libiptc-policy-counters.sh).
        texts = []
        for tool in ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-save", "ip6tables-save"):
            texts += [
                f"{tool}: {line.partition(' [')[0] if line.startswith(':') else line}"
                for line in self.host.run(tool).splitlines()
                if not line.startswith("#")
            ]
        return "\n".join(texts)

    def everything(self) -> str:
        """Rules and sets as the stock tools print them, but for counters, to compare before and after."""
        return self.rules() + "\n" + self.sets()


def ping(source: str, target: str) -> bool:
    """One UDP packet to the host's echo, or one ping: a ping needs nobody to listen."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if ":" in source else socket.IPPROTO_ICMP
    token = secrets.token_bytes(16)
    request, reply = (128, 129) if ":" in source else (8, 0)
    body = struct.pack("!BBHHH", request, 0, 0, 7, 1) + token
    if family == socket.AF_INET:
        total = sum(struct.unpack(f"!{len(body) // 2}H", body))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        body = struct.pack("!BBHHH", request, 0, ~total & 0xFFFF, 7, 1) + token
    with socket.socket(family, socket.SOCK_RAW, protocol) as connection:
        connection.bind((source, 0))
        deadline = time.monotonic() + 0.5
        connection.sendto(body, (target, 0))
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            try:
                packet = connection.recv(2048)
            except TimeoutError:
                return False
            offset = (packet[0] & 15) * 4 if family == socket.AF_INET else 0
            if packet[offset] == reply and packet.endswith(token):
                return True
    return False


@contextlib.contextmanager
def laboratory(host: Namespace | None = None) -> Iterator[Laboratory]:
    """Make the namespaces, and take them away whatever happens.

    A host that is there already stays. It gets its links and has to configure them itself, see `wait_for_host`.
    """
    tag = f"{TAG}{secrets.token_hex(2)}"
    names = [f"{tag}-{role}" for role in ("internet", "inner")]
    made = host or Namespace(f"{tag}-host")
    if host is None:
        names.append(made.name)
    resolver = Path(f"/etc/netns/{made.name}")
    try:
        for name in names:
            command("ip", "netns", "add", name)
            Namespace(name).run("ip", "link", "set", "lo", "up")
            # Addresses are to be usable at once: nobody else has them here.
            Namespace(name).run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        resolver.mkdir(parents=True)
        (resolver / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
        internet, inner = (Namespace(name) for name in names[:2])
        lab = Laboratory(made, internet, inner, configures_host=host is None)
        lab.plug()
        yield lab
    finally:
        for name in names:
            with contextlib.suppress(AssertionError):
                command("ip", "netns", "del", name)
        with contextlib.suppress(FileNotFoundError):
            (resolver / "resolv.conf").unlink()
            resolver.rmdir()
            resolver.parent.rmdir() if not any(resolver.parent.iterdir()) else None


def clear_after_the_dead() -> None:
    """Take away the namespaces of runs that were killed, so that they could not do it."""
    for line in command("ip", "netns", "list").splitlines():
        name = line.split()[0]
        found = re.fullmatch(r"sg([0-9a-f]+)[0-9a-f]{4}-(?:host|internet|inner|guest)", name)
        if found and not Path(f"/proc/{int(found[1], 16)}").exists():
            command("ip", "netns", "del", name, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
