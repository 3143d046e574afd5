"""The kernel's answers over netlink: messages and attributes as bytes, listings that go wrong, and limits of time."""

from __future__ import annotations

import errno
import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.host.netlink import DONE, HEADER, attribute, attributes, messages, payloads, request
from sikkerguard.core.host.routes import GET_ADDRESS, NEW_ADDRESS
from sikkerguard.edges.host import netlink as edge
from sikkerguard.edges.host.netlink import ListingBroken, NetlinkReader, route_listing
from sikkerguard.errors import KernelError

# Messages


@given(st.lists(st.tuples(st.integers(16, 100), st.booleans(), st.binary(max_size=40))), st.binary(max_size=15))
def test_messages_are_given_in_order_and_only_those_that_answer(
    sent: list[tuple[int, bool, bytes]], behind: bytes
) -> None:
    block = b"".join(request(kind, 0, 7 if ours else 8, body) + bytes(-len(body) % 4) for kind, ours, body in sent)
    found = [(kind, (block + behind)[start:end]) for kind, _, start, end in messages(block + behind, 7)]
    assert found == [(kind, body) for kind, ours, body in sent if ours]


@given(st.binary(max_size=400))
def test_whatever_comes_is_messages_or_an_error_of_ours(block: bytes) -> None:
    with suppress(KernelError):
        for _kind, _flags, start, end in messages(block, 0):
            assert 16 <= start <= end <= len(block)
            assert all(start + 4 <= first <= last <= end for first, last in attributes(block, start, end).values())


@pytest.mark.parametrize("length", [0, 15, 21, 1 << 31])
def test_a_message_longer_than_what_there_is_of_it_is_an_error(length: int) -> None:
    with pytest.raises(KernelError, match="in pieces"):
        list(messages(struct.pack("=IHHII", length, DONE, 0, 1, 0) + bytes(4), 1))


@given(st.binary(max_size=9), st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=20)))
def test_payloads_are_those_of_the_attributes_behind_the_head(head: bytes, written: dict[int, bytes]) -> None:
    message = head + b"".join(attribute(kind | 0x8000, payload) for kind, payload in written.items())
    assert payloads(message, len(head)) == written


@pytest.mark.parametrize("behind", [struct.pack("=HH", 0, 9), struct.pack("=HH", 9, 9), b"\0\0"])
def test_attributes_that_are_cut_off_or_have_no_length_end_the_reading(behind: bytes) -> None:
    whole = struct.pack("=HHI", 8, 5, 1)
    assert payloads(b"head" + whole + behind, 4) == {5: whole[4:]}


# A listing


def message(body: bytes, kind: int = NEW_ADDRESS, *, interrupted: bool = False, answered: int = 1) -> bytes:
    """A message of the kernel's; what it is filled up with is of no message."""
    head = HEADER.pack(HEADER.size + len(body), kind, 0x10 if interrupted else 0x2, answered, 0)
    return head + body + b"\7" * (-len(body) % 4)


def done(code: int = 0, *, interrupted: bool = False) -> bytes:
    """The end of a listing."""
    return message(struct.pack("=i", -code), 3, interrupted=interrupted)


Blocks = list[tuple[bytes, int] | OSError]


class Kernel:
    """Gives prepared answers, for each socket the next ones; each is what `recvfrom` gives, bytes and who sent them."""

    def __init__(self, *answers: Blocks) -> None:
        self.answers = list(answers)
        self.blocks: Blocks = []
        self.opened = 0
        self.requests: list[bytes] = []
        self.limits: list[float] = []

    def open(self, protocol: int) -> Kernel:
        """A socket."""
        assert protocol == 0
        assert not self.blocks
        self.opened += 1
        self.blocks = self.answers.pop(0)
        return self

    def settimeout(self, seconds: float) -> None:
        """How long is waited for what comes next."""
        self.limits.append(seconds)

    def send(self, octets: bytes) -> None:
        """A request."""
        self.requests.append(octets)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        """The next block."""
        block = self.blocks.pop(0)
        if isinstance(block, OSError):
            raise block
        assert len(block[0]) <= size
        return block[0], (block[1], 0)

    def close(self) -> None:
        """All was read."""
        assert not self.blocks

    def list(self) -> list[bytes]:
        """What is read of it where the second byte is 7."""
        found = route_listing("addresses", GET_ADDRESS, b"request", only=(1, 7), open_socket=self.open)
        assert self.requests == [request(GET_ADDRESS, 0x300, 1, b"request")] * self.opened
        return found


A, B, C, OTHER = (bytes([2, value, 0, number]) for number, value in enumerate((7, 7, 7, 9)))


def test_of_a_listing_only_the_wanted_messages_are_given() -> None:
    kernel = Kernel([(message(A) + message(OTHER) + message(b"\2"), 0), (message(B), 0), (done(), 0)])
    assert kernel.list() == [A, B]


def test_what_another_program_sends_is_not_the_kernels() -> None:
    kernel = Kernel([(message(A), 0), (message(C) + done(), 4711), (message(B) + done(), 0)])
    assert kernel.list() == [A, B]


def test_what_answers_another_request_is_not_of_the_listing() -> None:
    late = HEADER.pack(HEADER.size + 4, DONE, 0, 9, 0) + bytes(4)
    assert Kernel([(message(A) + message(C, answered=9) + late + message(B) + done(), 0)]).list() == [A, B]


INTERRUPTED: list[Blocks] = [
    [(message(A, interrupted=True) + done(), 0)],
    [(message(OTHER, interrupted=True) + message(A) + done(), 0)],
    [(message(A) + done(interrupted=True), 0)],
    [(message(A), 0), (done(errno.EINTR), 0)],
    [(message(A), 0), OSError(errno.ENOBUFS, "no buffer space")],
]


@pytest.mark.parametrize("number", range(len(INTERRUPTED)))
def test_a_listing_that_was_interrupted_is_read_again(number: int) -> None:
    kernel = Kernel(list(INTERRUPTED[number]), [(message(B) + done(), 0)])
    assert kernel.list() == [B]


@pytest.mark.parametrize("number", range(len(INTERRUPTED)))
def test_where_something_changes_all_the_time_what_was_in_any_listing_counts(number: int) -> None:
    others: list[Blocks] = [[(message(each) + done(interrupted=True), 0)] for each in (B, A, C, B)]
    kernel = Kernel(list(INTERRUPTED[number]), *others)
    assert kernel.list() == [A, B, C]
    assert kernel.opened == 5


@pytest.mark.parametrize("end", [(done(errno.EPERM), 0), OSError(errno.ENOMEM, "no memory"), TimeoutError("timed out")])
def test_a_listing_that_fails_is_an_error(end: tuple[bytes, int] | OSError) -> None:
    with pytest.raises(KernelError, match=r"addresses can't be read over netlink \(\w"):
        Kernel([(message(A), 0), end]).list()


def test_a_listing_that_was_broken_off_is_no_whole_one() -> None:
    # Who does not read it again has to know.
    for number in (3, 4):
        with NetlinkReader(0, "a table", open_socket=Kernel(list(INTERRUPTED[number])).open) as reader:
            dump = reader.dump(GET_ADDRESS, b"request")
            block, start, end = next(dump)
            assert block[start:end] == A
            with pytest.raises(ListingBroken):
                next(dump)


# One question


def test_the_one_answer_is_its_body_and_an_error_is_none() -> None:
    strange = (message(C), 4711)
    kernel = Kernel([strange, (message(C, answered=9), 0), (message(A), 0), (message(bytes(20), 2, answered=2), 0)])
    with NetlinkReader(0, "routes", open_socket=kernel.open) as reader:
        assert reader.ask(26, b"which") == A
        assert reader.ask(26, b"other") is None
    assert kernel.requests == [request(26, 0, 1, b"which"), request(26, 0, 2, b"other")]


# Limits of time


class Endless(Kernel):
    """Has one more message, from the kernel or from another program, however often it is asked."""

    def __init__(self, sender: int) -> None:
        super().__init__([])
        self.sender = sender

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        """The next block."""
        return message(A), (self.sender, 0)


@pytest.mark.parametrize("sender", [0, 4711])
def test_a_dump_that_never_ends_is_given_up(sender: int) -> None:
    kernel = Endless(sender)
    reader = NetlinkReader(0, "a table", time.monotonic() + 0.05, kernel.open)
    with reader, pytest.raises(KernelError, match=r"a table can't be read over netlink \(Connection timed out\)"):
        list(reader.dump(1, b""))
    assert all(0 < limit <= 0.05 for limit in kernel.limits[1:])


def test_an_answer_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel([TimeoutError("timed out")])
    with pytest.raises(KernelError, match=r"addresses can't be read over netlink \(timed out\)"):
        kernel.list()
    assert kernel.limits[0] == 5.0
    assert 4.9 < kernel.limits[1] <= 5.0
    # Nor does it help that another program sends something all the time.
    monkeypatch.setattr(edge, "_ANSWER_SECONDS", 0.05)
    with pytest.raises(KernelError, match="Connection timed out"):
        NetlinkReader(0, "a table", open_socket=Endless(4711).open).ask(1, b"")
