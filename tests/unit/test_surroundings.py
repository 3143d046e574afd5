"""What is read of the host, where it takes no kernel to show it: files, retries, and what is kept between two looks."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.model import Family, Gateway
from sikkerguard.edges import rtnetlink
from sikkerguard.edges.resolvers import resolvers
from sikkerguard.edges.routes import DefaultRoutes, Routes
from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


# A listing


def message(body: bytes, kind: int = rtnetlink.NEW_ADDRESS, *, interrupted: bool = False) -> bytes:
    """A message of the kernel's."""
    head = rtnetlink.HEADER.pack(rtnetlink.HEADER.size + len(body), kind, 0x10 if interrupted else 0x2, 1, 0)
    return head + body + bytes(-len(body) % 4)


def done(code: int = 0, *, interrupted: bool = False) -> bytes:
    """The end of a listing."""
    return message(struct.pack("=i", -code), 3, interrupted=interrupted)


class Kernel:
    """Gives prepared answers, one listing after the other; each is what `recv` gives, bytes and who sent them."""

    def __init__(self, *listings: list[tuple[bytes, int] | OSError]) -> None:
        self.listings = list(listings)
        self.blocks: list[tuple[bytes, int] | OSError] = []
        self.asked = 0

    def ask(self, kind: int, flags: int, request: bytes) -> Kernel:
        """The next listing."""
        assert (kind, flags, request) == (rtnetlink.GET_ADDRESS, 0x301, b"request")
        self.asked += 1
        self.blocks = self.listings.pop(0)
        return self

    def recvfrom_into(self, buffer: bytearray) -> tuple[int, tuple[int, int]]:
        """The next block."""
        block = self.blocks.pop(0)
        if isinstance(block, OSError):
            raise block
        buffer[: len(block[0])] = block[0]
        return len(block[0]), (block[1], 0)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.blocks

    def list(self) -> list[bytes]:
        """What is read of it where the second byte is 7."""
        return rtnetlink.listing(rtnetlink.GET_ADDRESS, b"request", 1, 7, self.ask)


A, B, C, OTHER = (bytes([2, value, 0, number]) for number, value in enumerate((7, 7, 7, 9)))


def test_of_a_listing_only_the_wanted_messages_are_given() -> None:
    kernel = Kernel([(message(A) + message(OTHER), 0), (message(B), 0), (done(), 0)])
    assert kernel.list() == [A, B]


def test_what_another_program_sends_is_not_the_kernels() -> None:
    kernel = Kernel([(message(A), 0), (message(C) + done(), 4711), (message(B) + done(), 0)])
    assert kernel.list() == [A, B]


@pytest.mark.parametrize(
    "first",
    [
        [(message(A, interrupted=True) + done(), 0)],
        [(message(OTHER, interrupted=True) + message(A) + done(), 0)],
        [(message(A) + done(interrupted=True), 0)],
        [(message(A), 0), (done(errno.EINTR), 0)],
        [(message(A), 0), OSError(errno.ENOBUFS, "no buffer space")],
    ],
)
def test_a_listing_that_was_interrupted_is_read_again(first: list[tuple[bytes, int] | OSError]) -> None:
    kernel = Kernel(first, [(message(B) + done(), 0)])
    assert kernel.list() == [B]


def test_where_something_changes_all_the_time_what_was_in_any_listing_counts() -> None:
    interrupted: list[list[tuple[bytes, int] | OSError]] = [
        [(message(each) + done(interrupted=True), 0)] for each in (A, B, A, C, B)
    ]
    kernel = Kernel(*interrupted)
    assert kernel.list() == [A, B, C]
    assert kernel.asked == 5


@pytest.mark.parametrize("end", [(done(errno.EPERM), 0), OSError(errno.ENOMEM, "no memory"), TimeoutError("timed out")])
def test_a_listing_that_fails_is_an_error(end: tuple[bytes, int] | OSError) -> None:
    with pytest.raises(KernelError, match="routes and addresses can't be read: "):
        Kernel([(message(A), 0), end]).list()


def test_attributes_that_are_cut_off_or_have_no_length_end_the_reading() -> None:
    whole = struct.pack("=HHI", 8, 5, 1)
    assert list(rtnetlink.attributes(b"head" + whole + struct.pack("=HH", 0, 9), 4)) == [(5, whole[4:])]
    assert list(rtnetlink.attributes(whole + b"\0\0", 0)) == [(5, whole[4:])]


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
