"""Lists as bytes: against a slow reader that goes by `ipaddress`, cut anywhere, and with everything that is no list."""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.core.lists.parse import (
    LARGEST_FILE,
    LONGEST_LINE,
    MOST_ENTRIES,
    MOST_OTHER_LINES,
    MOST_RANGES,
    MOST_REJECTED,
    MOST_V6,
    SAMPLE,
    ApiParser,
    Parsed,
    check_together,
    merge_content,
    read_custom,
)
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Ranges
from sikkerguard.errors import ListError
from tests.unit.core.lists.test_admission import NEVER
from tests.unit.core.net.test_intervals import assert_well_formed, covered, some_networks, without
from tests.unit.core.net.test_networks import is_plain, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The shortest prefix lengths of SikkerAPI's list and of the local one, for IPv4 and IPv6.
API, LOCAL = {4: 16, 6: 32}, {4: 8, 6: 16}
GOOD = b"".join((b"198.51.100.%d\n" if n < 250 else b"203.0.113.%d\n") % (n % 250) for n in range(300))

# What stands alone on a line that is none, and why. None of them has a byte that the API may not send.
BAD_LINES = [
    ("198.51.100.4/33", "not a prefix length"),
    ("198.51.100.0/024", "not a prefix length"),
    ("198.51.100.0/", "not a prefix length"),
    ("198.51.100.0/255.255.255.0", "not a prefix length"),
    ("2001:db8::/129", "not a prefix length"),
    ("198.51.100", "not an address"),
    ("3325256708", "not an address"),
    ("0306.063.0144.04", "not an address"),
    ("198.051.100.004", "not an address"),
    ("0xc6336404", "not an address"),
    ("198.51.100.4 198.51.100.5", "not an address"),
    ("198.51.100.4,", "not an address"),
    ("198.51.100.4-198.51.100.9", "not an address"),
    ("198.51.100.4:22", "not an address"),
    ("fe80::1%eth0", "not an address"),
    ("attacker.example", "not an address"),
    ("<p>198.51.100.4</p>", "not an address"),
    ('{"ip": "198.51.100.4"}', "not an address"),
    ("::ffff:198.51.100.4", "IPv4 written as IPv6"),
]
# Ranges that cover too much, by what is left of them without the special ranges: those of SikkerAPI's list, ...
TOO_WIDE = ["128.0.0.0/15", "9.0.0.0/8", "0.0.0.0/0", "192.0.0.0/14", "2001:db8::/31", "2000::/15", "::/0"]
# ... and those of both, the same.
TOO_WIDE_FOR_ALL = ["128.0.0.0/7", "0.0.0.0/0", "2000::/15", "::/0"]
# What nobody blocks anyway may be as wide as it is.
WIDE_BUT_SPECIAL = ["10.0.0.0/8", "224.0.0.0/3", "172.16.0.0/12", "198.18.0.0/15", "fc00::/7", "4000::/2", "::/3"]


def read(*pieces: bytes) -> Parsed:
    parser = ApiParser()
    for piece in pieces:
        parser.feed(piece)
    return parser.finish()


def outcome(*pieces: bytes) -> Parsed | str:
    try:
        return read(*pieces)
    except ListError as error:
        return str(error)


def refusal(*pieces: bytes) -> str:
    with pytest.raises(ListError) as refused:
        read(*pieces)
    return str(refused.value)


def collapsed(nets: Iterable[Any], version: int) -> list[Any]:
    return list(ipaddress.collapse_addresses(net for net in nets if net.version == version))


def is_wide(net: Any, floors: dict[int, int]) -> bool:
    """Whether what is left of it without the special ranges has a shorter prefix length than that."""
    family = Family.V4 if net.version == 4 else Family.V6
    return any(piece.prefixlen < floors[net.version] for piece in without([net], NEVER[family]))


def slowly(lines: list[str], floors: dict[int, int] = API) -> tuple[list[Any], int, int]:
    """The networks in these lines by `ipaddress`, how many lines are none, and how many are too wide."""
    found, rejected, wide = [], 0, 0
    for line in lines:
        text = line.partition("#")[0].strip(" \t")
        if text:
            net = is_plain(text)
            if net is None:
                rejected += 1
            elif is_wide(net, floors):
                wide += 1
            else:
                found.append(net)
    return found, rejected, wide


def assert_holds(content: Blocklist, nets: list[Any]) -> None:
    for family, version in ((Family.V4, 4), (Family.V6, 6)):
        assert_well_formed(content.of(family))
        assert covered(content.of(family)) == collapsed(nets, version)


lines_of_a_list = st.one_of(
    texts(),
    st.sampled_from(["", " ", "\t", "# a comment", " 198.51.100.7\t# why", "198.51.100.7", "2001:db8::7", "#"]),
    st.sampled_from([line for line, _ in BAD_LINES]),
    st.sampled_from([*TOO_WIDE, *WIDE_BUT_SPECIAL]),
).filter(lambda line: line.isascii() and line.isprintable())


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies that are lists in general: most have enough good lines for the bad ones to be tolerated."""
    lines = draw(st.lists(lines_of_a_list, max_size=8))
    body = "\n".join(lines).encode() + draw(st.sampled_from([b"", b"\n"]))
    return draw(st.sampled_from([b"", GOOD, GOOD * 3])) + body


@pytest.mark.slow
@settings(max_examples=200)
@given(bodies())
def test_a_list_is_read_as_a_slow_reader_reads_it(body: bytes) -> None:
    nets, rejected, wide = slowly(body.decode().split("\n"))
    if (not nets and not wide) or rejected * 100 > rejected + len(nets):
        assert "not a list" in refusal(body) or "no address" in refusal(body)
        return
    parsed = read(body)
    assert_holds(parsed.content, nets)
    assert (parsed.lines, sum(parsed.rejected.values()), parsed.short) == (len(nets), rejected + wide, wide)
    assert parsed.terminated == body.endswith(b"\n")


@settings(max_examples=200)
@given(body=bodies(), data=st.data())
def test_where_a_body_is_cut_makes_no_difference(body: bytes, data: st.DataObject) -> None:
    # At times with a byte that ends it: the error too names the same line.
    at = data.draw(st.integers(0, len(body)))
    body = body[:at] + data.draw(st.sampled_from([b"", b"", b"\r", b"\0", b"\xc3\xa4"])) + body[at:]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert outcome(*pieces) == outcome(body)


def test_a_body_can_come_byte_by_byte() -> None:
    body = GOOD + b"2001:db8::7\n198.51.100.0/24 # a range\n198.51.100.4/33\n203.0.113.99"
    assert read(*(body[at : at + 1] for at in range(len(body)))) == read(body)


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_skipped_and_counted_with_its_reason(line: str, reason: str) -> None:
    parsed = read(GOOD + line.encode() + b"\n" + b"203.0.113.99\n")
    assert parsed.rejected == {reason: 1}
    assert parsed.samples == (f"line 301: {line!r}: {reason}",)
    assert parsed.lines == 301
    assert_holds(parsed.content, slowly((GOOD + b"203.0.113.99").decode().split("\n"))[0])


@pytest.mark.parametrize("line", TOO_WIDE)
def test_a_range_that_covers_too_much_is_left_out_and_counted(line: str) -> None:
    parsed = read(GOOD + line.encode() + b"\n")
    reason = f"wider than /{32 if ':' in line else 16}"
    assert (parsed.rejected, parsed.short, parsed.lines) == ({reason: 1}, 1, 300)
    assert parsed.samples == (f"line 301: {line!r}: {reason}",)
    assert_holds(parsed.content, slowly(GOOD.decode().split("\n"))[0])


@pytest.mark.parametrize("line", ["128.0.0.0/16", "2001:db8::/32", "192.0.0.0/16", *WIDE_BUT_SPECIAL])
def test_a_range_is_wide_by_what_nobody_leaves_out_anyway(line: str) -> None:
    parsed = read(GOOD + line.encode() + b"\n")
    assert (parsed.short, parsed.lines) == (0, 301)


def test_many_wide_ranges_are_counted_and_not_judged_here() -> None:
    body = GOOD + b"".join(b"%d.0.0.0/8\n" % first for first in range(1, 224) if first not in (10, 127))
    parsed = read(body)
    assert (parsed.short, parsed.lines) == (221, 300)


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_body_of_bad_lines_is_no_list(line: str, reason: str) -> None:
    assert reason in refusal(line.encode() + b"\n")


@pytest.mark.parametrize(
    ("byte", "name"),
    [
        (b"\r", "0x0d"),
        (b"\0", "0x00"),
        (b"\x1f", "0x1f"),
        (b"\x7f", "0x7f"),
        (b"\x0b", "0x0b"),
        (b"\x85", "0x85"),
        (b"\xa0", "0xa0"),
        ("\uff11".encode(), "0xef"),
        ("\u0661".encode(), "0xd9"),
        (b"\xef\xbb\xbf", "0xef"),
        (b"\xff\xfe", "0xff"),
    ],
)
@pytest.mark.parametrize("line", [1, 2, 301])
def test_a_byte_that_no_list_has_is_refused_with_its_line(byte: bytes, name: str, line: int) -> None:
    lines = GOOD.split(b"\n")
    lines[line - 1] += byte
    assert f"the byte {name} near line {line}," in refusal(b"\n".join(lines))


def test_the_line_of_a_byte_is_counted_across_pieces() -> None:
    assert "0x0d near line 2," in refusal(b"198.51.100.7", b"\n\r")
    assert "0x0d near line 3," in refusal(b"198.51.100.7\n198.51", b".100.8\n\r")


@pytest.mark.parametrize(
    "body",
    [
        GOOD.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        b"<!DOCTYPE html>\n<html>\n<body>\n<h1>Welcome</h1>\n<p>Please log in.\n</body>\n</html>\n",
        b"<html>" * 100,
        b'{"error": "quota exceeded"}',
        b'{"meta": {"count": 1}, "data": [{"ip": "198.51.100.4"}]}',
        b"[]",
        b"198.51.100.4,198.51.100.5,198.51.100.6",
        b"\x1f\x8b\x08\x00",
        b"error\n" * 1000,
    ],
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    assert "the answer is not a list of addresses" in refusal(body)


@pytest.mark.parametrize("body", [b"", b"\n", b"\n" * 1000, b"# no attackers today\n", b"  \t"])
def test_an_empty_list_is_an_error_of_the_api(body: bytes) -> None:
    assert "the answer has no address in it" in refusal(body)


@pytest.mark.parametrize(("good", "taken"), [(99, True), (98, False), (1, False)])
def test_one_bad_line_in_a_hundred_is_tolerated_and_no_more(good: int, taken: bool) -> None:
    body = b"".join(GOOD.splitlines(keepends=True)[:good]) + b"oops\n"
    if taken:
        assert read(body).rejected == {"not an address": 1}
    else:
        assert f"1 of {good + 1} lines can't be used" in refusal(body)


@pytest.mark.parametrize("step", [1, 2000, 1 << 20])
def test_the_first_bad_lines_are_shown_and_all_are_counted(step: int) -> None:
    lines = GOOD.splitlines() * 4
    for at in range(100, 600, 100):
        lines[at - 1] = b"oops"
    body = b"\n".join(lines)
    parsed = read(*(body[at : at + step] for at in range(0, len(body), step)))
    assert parsed.rejected == {"not an address": 5}
    assert parsed.samples == tuple(f"line {at}: 'oops': not an address" for at in (100, 200, 300))
    assert len(parsed.samples) == SAMPLE


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_may_have_a_comment_but_no_novel(step: int, end: bytes) -> None:
    longest = GOOD + b"203.0.113.99 #".ljust(LONGEST_LINE, b"x") + end
    longer = GOOD + b"203.0.113.99 #".ljust(LONGEST_LINE + 1, b"x") + end
    assert read(*(longest[at : at + step] for at in range(0, len(longest), step))).lines == 301
    message = refusal(*(longer[at : at + step] for at in range(0, len(longer), step)))
    assert f"longer than {LONGEST_LINE} characters" in message


def test_an_endless_line_is_refused_before_it_is_gathered() -> None:
    parser = ApiParser()
    parser.feed(b"1" * LONGEST_LINE)
    with pytest.raises(ListError, match="longer than"):
        parser.feed(b"1")
    assert "longer than" in refusal(b"1" * (10 << 20))


def test_an_entry_counts_as_often_as_it_comes_and_is_kept_once() -> None:
    parsed = read(b"198.51.100.7\n2001:db8::7\n198.51.100.7\n2001:DB8:0::7\n198.51.100.0/24\n198.51.100.9/24\n")
    assert parsed.lines == 6
    assert [list(parsed.content.of(family).texts()) for family in Family] == [["198.51.100.0/24"], ["2001:db8::7"]]


# Ceilings: as many of these lines as there may be in a list, and what it has too many of where there is one more.
CEILINGS = {
    "entries": (b"198.51.100.7\n", MOST_ENTRIES, "more than 2,000,000 entries"),
    "single addresses of IPv6": (b"2001:db8::7\n", MOST_V6, "more than 500,000 single addresses of IPv6"),
    "ranges": (b"198.51.100.6/31\n", MOST_RANGES, "more than 250,000 ranges"),
    "ranges of IPv6": (b"2001:db8::/126\n", MOST_RANGES, "more than 250,000 ranges"),
    "blank lines": (b"\n", MOST_OTHER_LINES, "more than 1,000,000 lines that are no entries"),
    "comments": (b"#\n", MOST_OTHER_LINES, "more than 1,000,000 lines that are no entries"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CEILINGS)
def test_a_list_may_have_so_much_of_everything_and_no_more(kind: str) -> None:
    line, most, reason = CEILINGS[kind]
    parser = ApiParser()
    parser.feed(line * most)
    with pytest.raises(ListError, match=f"^the answer has {reason}"):
        parser.feed(line)
    with pytest.raises(ListError, match=rf"^mine\.txt has {reason}"):
        # One of nothing but blank lines is empty, which is another mistake.
        read_custom("mine.txt", line * (most + 1) + b"#")


def test_a_list_at_its_ceiling_is_a_list() -> None:
    assert read(b"198.51.100.7\n" * MOST_ENTRIES).lines == MOST_ENTRIES
    parsed, skipped = read_custom("mine.txt", b"198.51.100.6/31\n" * MOST_RANGES)
    assert (parsed.lines, len(parsed.content), skipped) == (MOST_RANGES, 1, ())


@pytest.mark.parametrize("read_it", [ApiParser().feed, partial(read_custom, "mine.txt")])
def test_a_flood_of_unreadable_lines_is_refused_before_its_end(read_it: Callable[[bytes], object]) -> None:
    flood = b"198.51.100.7/255.255.255.0\n" * (MOST_REJECTED + 1)
    with pytest.raises(ListError, match=rf"is not a list of addresses: {MOST_REJECTED + 1} of"):
        read_it(flood)


def test_as_many_unreadable_lines_as_are_tolerated_in_the_longest_list_are_read() -> None:
    good = b"198.51.100.7\n" * MOST_ENTRIES
    assert read(good, b"x\n" * MOST_REJECTED).rejected == {"not an address": MOST_REJECTED}


def test_a_file_larger_than_any_list_is_not_read() -> None:
    with pytest.raises(ListError, match=r"mine\.txt is larger than 64 MiB"):
        read_custom("mine.txt", bytes(LARGEST_FILE + 1))


def filled(family: Family, singles: int = 0, ranges: int = 0) -> Networks:
    """Nothing but so many entries: what they are does not matter."""
    return Networks(family, bytes(singles * family.size), Ranges(family, bytes(ranges * (family.size + 1))))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (Blocklist(filled(Family.V4, MOST_ENTRIES)), Blocklist(filled(Family.V4, 1)), "more than 2,000,000 entries"),
        (Blocklist(v6=filled(Family.V6, MOST_V6)), Blocklist(v6=filled(Family.V6, 1)), "single addresses of IPv6"),
        (
            Blocklist(filled(Family.V4, ranges=MOST_RANGES)),
            Blocklist(v6=filled(Family.V6, ranges=1)),
            "more than 250,000 ranges",
        ),
    ],
)
def test_the_ceilings_are_those_of_all_lists_together_too(first: Blocklist, second: Blocklist, reason: str) -> None:
    check_together([first])
    check_together([second, Blocklist()])
    with pytest.raises(ListError, match=f"the sum of all lists has .*{reason}"):
        check_together([first, second])


CUSTOM_BAD = [
    *((line.encode(), reason) for line, reason in BAD_LINES),
    (b"198.51.100.4\0", "not an address"),
    ("\uff11\uff19\uff18.51.100.4".encode(), "not an address"),
    (b"198.51.100.4\xff", "not an address"),
    (b"198.51.100.4\xe4", "not an address"),
    (b"1" * (10 << 20), "not an address"),
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("line", "reason"), CUSTOM_BAD, ids=[repr(line[:20]) for line, _ in CUSTOM_BAD])
def test_a_custom_list_names_the_file_and_line_of_what_is_skipped(line: bytes, reason: str, newline: bytes) -> None:
    parsed, skipped = read_custom("mine.txt", newline.join([b"198.51.100.7", b"# mine", line, b"2001:db8::7", b""]))
    assert len(skipped) == 1
    assert skipped[0].startswith("mine.txt, line 3: ")
    assert skipped[0].endswith(f" is skipped: {reason}")
    assert repr(line.decode(errors="replace")[:20])[1:-1] in skipped[0]
    assert len(skipped[0]) < 400
    assert parsed.rejected == {reason: 1}
    assert [list(parsed.content.of(family).texts()) for family in Family] == [["198.51.100.7"], ["2001:db8::7"]]


@pytest.mark.parametrize(
    "content",
    [
        b"198.51.100.7\n2001:db8::/32\n",
        b"198.51.100.7\r\n2001:db8::/32\r\n",
        b"\xef\xbb\xbf198.51.100.7\n2001:db8::/32",
        b"\xef\xbb\xbf# list\r\n\r\n\t198.51.100.7 # why\r\n2001:db8::/32;why\r\n",
        b"; list\n 198.51.100.7;why # and why\n2001:DB8::/32 #why ; and why\n\n\n",
        b"198.51.100.7/32\n2001:db8::1/32\n198.51.100.7",
    ],
)
def test_a_custom_list_may_look_as_editors_leave_it(content: bytes) -> None:
    parsed, skipped = read_custom("mine.txt", content)
    assert skipped == ()
    assert [list(parsed.content.of(family).texts()) for family in Family] == [["198.51.100.7"], ["2001:db8::/32"]]


@pytest.mark.parametrize("content", [b"# nothing yet\n", b"; none", b"\xef\xbb\xbf# off\r\n\r\n"])
def test_a_custom_list_of_comments_alone_is_empty_on_purpose(content: bytes) -> None:
    parsed, skipped = read_custom("mine.txt", content)
    assert (len(parsed.content), parsed.lines, skipped) == (0, 0, ())


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t", b"\xef\xbb\xbf"])
def test_a_custom_list_of_nothing_was_not_meant(content: bytes) -> None:
    with pytest.raises(ListError, match=r"mine\.txt is empty"):
        read_custom("mine.txt", content)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html>\n<h1>502 Bad Gateway</h1>\n", b"# mine\nexample.net\n", b"\0\0\0", b"0.0.0.0/0\n"],
)
def test_a_custom_list_of_which_nothing_can_be_read_is_an_error(content: bytes) -> None:
    with pytest.raises(ListError, match=r"nothing in mine\.txt can be read"):
        read_custom("mine.txt", content)


@pytest.mark.parametrize("line", TOO_WIDE_FOR_ALL)
def test_a_custom_list_may_have_wider_ranges_than_an_api_s(line: str) -> None:
    content = f"198.51.100.7\n9.0.0.0/8\n2001:db8::/16\n{line}\n".encode()
    parsed, skipped = read_custom("mine.txt", content)
    assert (parsed.short, parsed.lines) == (1, 3)
    assert skipped == (f"mine.txt, line 4: {line!r} is skipped: wider than /{16 if ':' in line else 8}",)


@settings(max_examples=150)
@given(st.lists(lines_of_a_list, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_a_custom_list_is_read_as_a_slow_reader_reads_it(lines: list[str], newline: str) -> None:
    lines = ["# mine", *lines]
    nets, rejected, wide = slowly([line.partition(";")[0] for line in lines], LOCAL)
    content = newline.join(lines).encode()
    if not nets and (rejected or wide):
        with pytest.raises(ListError, match="nothing in"):
            read_custom("mine.txt", content)
        return
    parsed, skipped = read_custom("mine.txt", content)
    assert_holds(parsed.content, nets)
    assert (parsed.lines, parsed.short, len(skipped)) == (len(nets), wide, rejected + wide)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_custom_file_is_too_strange(content: bytes) -> None:
    content = b"198.51.100.7\n" + content
    parsed, skipped = read_custom("mine.txt", content)
    lines = content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").split("\n")
    said = [line for line in lines if line.partition(";")[0].partition("#")[0].strip()]
    assert parsed.lines + len(skipped) == len(said)


@settings(deadline=None)
@given(st.lists(st.builds(Blocklist, some_networks(Family.V4), some_networks(Family.V6)), max_size=4))
def test_merged_lists_cover_what_each_of_them_did(contents: list[Blocklist]) -> None:
    nets = [net for content in contents for family in Family for net in covered(content.of(family))]
    assert_holds(merge_content(contents), nets)


def test_merging_holds_more_than_a_piece_of_singles() -> None:
    base = 0x20010DB8 << 96
    first, second, other = (
        read(b"".join(b"2001:db8::%x:%x\n" % (n >> 16, n & 0xFFFF) for n in numbers)).content
        for numbers in (range(60_000), range(0, 60_000, 7), range(70_000, 90_000))
    )
    merged = merge_content([first, second, other])
    assert len(merged) == 80_000
    assert merged.v6.singles == b"".join(
        (base + n).to_bytes(16, "big") for numbers in (range(60_000), range(70_000, 90_000)) for n in numbers
    )
