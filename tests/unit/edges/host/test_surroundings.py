"""What is read of the host, where it takes no kernel to show it: files, retries, and what is kept between two looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.host.netlink import attribute
from sikkerguard.core.host.surroundings import Gateway
from sikkerguard.core.lists.allowlist import GATEWAY
from sikkerguard.core.net.address import to_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.edges.host.addresses import ADDRESS, ends
from sikkerguard.edges.host.resolvers import resolvers
from sikkerguard.edges.host.routes import DefaultRoutes, Routes
from sikkerguard.edges.host.surroundings import Observer
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sikkerguard.core.host.surroundings import Surroundings


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nameserver 203.0.113.53", ("203.0.113.53",)),
        ("nameserver 2001:db8::53", ("2001:db8::53",)),
        ("nameserver fe80::1%eth0", ("fe80::1",)),
        ("nameserver\t127.0.0.53 trailing words", ("127.0.0.53",)),
        # Each of these would allow more than a name server.
        ("nameserver 8.0.0.0/6", ()),
        ("nameserver 203.0.113.53/32", ()),
        ("nameserver 0.0.0.0/0", ()),
        ("nameserver ::/1", ()),
        # And these are no address of anyone.
        ("nameserver 0.0.0.0", ()),
        ("nameserver ::", ()),
        ("nameserver 8.8", ()),
        ("nameserver dns.example.net", ()),
        ("nameserver", ()),
        ("search 203.0.113.53", ()),
        ("#nameserver 203.0.113.53", ()),
    ],
)
def test_a_resolver_is_one_address(line: str, found: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(f"{line}\n")
    assert resolvers([file, tmp_path / "missing"]) == found


def test_of_many_resolvers_the_first_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("".join(f"nameserver 198.51.{number >> 8}.{number & 255}\n" for number in range(2400)))
    assert resolvers([path]) == tuple(f"198.51.0.{number}" for number in range(16))


def test_a_resolver_that_two_files_name_is_one(tmp_path: Path) -> None:
    for name, address in (("one", "203.0.113.1"), ("other", "203.0.113.2")):
        (tmp_path / name).write_text(f"nameserver 203.0.113.9\nnameserver {address}\n")
    assert resolvers([tmp_path / "one", tmp_path / "other"]) == ("203.0.113.9", "203.0.113.1", "203.0.113.2")


# An address


def test_of_a_point_to_point_link_our_end_is_ours_and_the_other_the_peers() -> None:
    ours, theirs = bytes([198, 51, 100, 10]), bytes([203, 0, 113, 7])
    head = ADDRESS.pack(Family.V4.number, 32, 0, 0, 5)
    assert ends(head + attribute(1, theirs) + attribute(2, ours) + attribute(3, b"ppp0\0")) == (ours, theirs)
    alone = bytes(15) + b"\1"
    assert ends(ADDRESS.pack(Family.V6.number, 64, 0, 0, 5) + attribute(1, alone)) == (alone, alone)
    assert ends(head) == (b"", b"")


# What is kept between two looks


class Reading:
    """A table of routes that takes this long to read, and a clock that does not move by itself."""

    def __init__(self, cost: float) -> None:
        self.seconds = cost
        self.now = self.spent = 0.0
        self.reads = 0
        self.during: Callable[[], None] | None = None
        self.routes = Routes(self.read, lambda: self.now, lambda: self.spent)

    def read(self) -> DefaultRoutes:
        """One reading; what it gives is its number."""
        self.reads += 1
        self.spent += self.seconds
        if self.during is not None:
            self.during()
        return DefaultRoutes((Gateway(Family.V4, f"192.0.2.{self.reads}", 1),), frozenset({self.reads}))


@pytest.mark.parametrize("cost", [0.0001, 0.05, 1.0])
def test_to_read_the_routes_takes_little_of_a_processor_however_many_there_are(cost: float) -> None:
    table = Reading(cost)
    while table.now < 3600.0:
        table.routes.look()
        table.now += 5.0
    # A full table of the internet, a second, is read once a minute; nothing in between tells of what goes in silence.
    assert table.spent <= max(0.006 * 3600.0, 61 * cost)
    assert table.reads >= 60


def test_they_are_read_at_once_where_something_changed() -> None:
    table = Reading(1.0)
    table.routes.look()
    assert table.routes.look().gateways[0].address == "192.0.2.1"
    table.routes.forget()
    assert table.routes.look().gateways[0].address == "192.0.2.2"
    assert table.routes.look().gateways[0].address == "192.0.2.2"
    assert table.routes.uses(2)
    assert not table.routes.uses(1)


def test_what_changes_while_they_are_read_has_them_read_again() -> None:
    table = Reading(1.0)
    table.during = table.routes.forget
    table.routes.look()
    table.during = None
    assert table.routes.look().gateways[0].address == "192.0.2.2"
    table.routes.look()
    assert table.reads == 2


def test_where_they_could_not_be_read_they_are_asked_for_again() -> None:
    table = Reading(1.0)

    def fail() -> None:
        raise KernelError("refused")

    table.during = fail
    for _ in range(2):
        with pytest.raises(KernelError):
            table.routes.look()
    table.during = None
    assert table.routes.look().gateways[0].address == "192.0.2.3"


# All of it


def test_what_is_found_is_allowed_for_its_reason_and_each_only_once(tmp_path: Path) -> None:
    found = Observer(tmp_path).observe((2222,), Blocklist())
    assert len(set(found.allowed)) == len(found.allowed)
    by_reason = {(to_text(entry.family, entry.prefix), entry.reason) for entry in found.allowed}
    # Whoever runs this has a loopback interface, and what gateways it has.
    assert ("127.0.0.1", "own address") in by_reason
    gateways = {gateway.address for gateway in found.gateways if gateway.address}
    assert {address for address, reason in by_reason if reason == GATEWAY} == gateways


def test_what_can_not_be_read_is_said_as_one_error(tmp_path: Path) -> None:
    class Broken(Observer):
        def _observed(self, ssh_ports: Iterable[int], listed: Blocklist) -> Surroundings:
            raise OSError(24, "Too many open files")

    with pytest.raises(KernelError, match=r"where this host stands can't be found out: .*Too many open files"):
        Broken(tmp_path).observe((), Blocklist())
