"""Bodies as they arrive: what they hold, and where a server has gone too far."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.sikkerapi.body import (
    CRUMB,
    CRUMBS,
    LARGEST_BODY,
    MAX_MEMBERS,
    MAX_PIECES,
    PIECE,
    REST_SECONDS,
    SLOW_SECONDS,
    SLOWEST,
    SMALLEST_PIECES,
    Pace,
    Unpacker,
)
from sikkerguard.errors import Unreachable

GZIP = {"Content-Encoding": "gzip"}
# SikkerAPI's largest list, and what a line of it takes on average.
LARGEST_TIER, LINE = 350_000, 14


def unpacked(unpacker: Unpacker, pieces: list[bytes]) -> bytes:
    found = b"".join(part for piece in pieces for part in unpacker.feed(piece))
    unpacker.finish()
    return found


def taken(sizes: list[int], seconds: float = 0.0) -> float:
    """The rest in all, where each piece comes that much later than the one before."""
    pace = Pace()
    return sum(pace.take(size, number * seconds) for number, size in enumerate(sizes))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.data())
def test_a_packed_body_is_the_same_wherever_it_is_cut(members: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(gzip.compress(member) for member in members)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert unpacked(Unpacker(GZIP), pieces) == b"".join(members)


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "identity"}, {"Content-Encoding": " Identity "}])
def test_a_body_that_is_not_packed_stays_as_it_is(headers: dict[str, str]) -> None:
    assert unpacked(Unpacker(headers), [b"198.51", b".100.7\n"]) == b"198.51.100.7\n"


def test_a_bomb_goes_off_in_small_bangs() -> None:
    bomb = gzip.compress(bytes(8 << 20))
    sizes = [len(piece) for piece in Unpacker(GZIP).feed(bomb)]
    assert sum(sizes) == 8 << 20
    assert max(sizes) <= PIECE


def test_a_coding_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(Unreachable, match="packed as 'br'"):
        Unpacker({"Content-Encoding": "br"})


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"198.51.100.7\n", "can't be unpacked"),
        (zlib.compress(b"198.51.100.7\n"), "can't be unpacked"),
        (gzip.compress(b"198.51.100.7\n", mtime=0)[:-1], "broke off"),
        (gzip.compress(b"198.51.100.7\n", mtime=0) + b"\x1f\x8b", "broke off"),
        (b"", "broke off"),
    ],
)
def test_what_is_not_whole_is_refused(sent: bytes, reason: str) -> None:
    with pytest.raises(Unreachable, match=reason):
        unpacked(Unpacker(GZIP), [sent])


def test_a_body_may_have_many_members_but_not_any_number() -> None:
    # Each costs as much as thousands of bytes, and the rest of a piece is copied for each.
    member = gzip.compress(b"")
    assert unpacked(Unpacker(GZIP), [member * MAX_MEMBERS]) == b""
    with pytest.raises(Unreachable, match=f"more than {MAX_MEMBERS} parts"):
        unpacked(Unpacker(GZIP), [member * 1000] * (MAX_MEMBERS // 1000 + 1))
    # As bgzip packs the largest body.
    assert MAX_MEMBERS > LARGEST_BODY / (64 << 10)


def test_a_body_has_a_largest_size() -> None:
    assert taken([1 << 20] * (LARGEST_BODY >> 20)) == 0
    with pytest.raises(Unreachable, match="larger than 64 MiB"):
        taken([1 << 20] * (LARGEST_BODY >> 20) + [1])


def test_a_slow_server_is_given_up_after_a_while_and_not_before() -> None:
    taken([1] * 15, 1.0)
    with pytest.raises(Unreachable, match="too slow to wait for"):
        taken([1] * 17, 1.0)
    taken([SLOWEST] * 600, 1.0)
    assert SLOW_SECONDS == 15


def test_the_first_byte_may_be_waited_for() -> None:
    pace = Pace()
    pace.take(1, 1000.0)
    pace.take(1, 1000.0 + SLOW_SECONDS)


def test_a_server_that_sends_byte_by_byte_is_cut_off() -> None:
    most = MAX_PIECES + MAX_PIECES // (SMALLEST_PIECES - 1)
    with pytest.raises(Unreachable, match="too small to be worth the work"):
        taken([1] * (most + 2))
    taken([1] * MAX_PIECES)


def test_a_server_may_send_each_line_of_the_largest_list_by_itself() -> None:
    taken([LINE] * LARGEST_TIER)


def test_the_pieces_of_the_largest_body_are_bounded() -> None:
    # At some 5 microseconds each they stay below ten seconds.
    with pytest.raises(Unreachable, match="too small"):
        taken([16] * (LARGEST_BODY // 16))
    assert MAX_PIECES + LARGEST_BODY // SMALLEST_PIECES < 1_500_000


def test_who_sends_crumbs_gets_rests_and_who_sends_pieces_does_not() -> None:
    assert taken([1] * CRUMBS * 10) == pytest.approx(10 * REST_SECONDS)
    assert taken([CRUMB - 1] * CRUMBS * 10) == pytest.approx(10 * REST_SECONDS)
    # As many as one read of a socket may have, at the most one rest behind it.
    assert taken([1] * (CRUMBS - 1)) == 0
    assert taken([CRUMB] * CRUMBS * 10) == 0
    assert taken([1, 2 * CRUMB] * CRUMBS * 5) == 0
    # What was sent before does not pay for it.
    assert taken([1 << 10] * CRUMBS * 4 + [1] * CRUMBS) == pytest.approx(REST_SECONDS)
