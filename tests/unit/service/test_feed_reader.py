"""From a feed's bytes to a new version of its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.lists.coverage import Extent
from sikkerguard.core.lists.generations import Change
from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI
from sikkerguard.errors import FetchError, ListError, Unreachable
from sikkerguard.service.feed_reader import read_forgivingly, read_strictly
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.fakes import Changes, Feed
from tests.unit.service.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PLACE = "/etc/sikkerguard/mine.txt"


class Closing(Feed):
    """Notes that its connection was closed."""

    closed = False

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in super().stream():
                yield piece
        finally:
            self.closed = True


def strictly(feed: Feed, *query: str, changes: Changes | None = None) -> Change:
    return run(read_strictly(feed, query, changes or Changes()))


def forgivingly(content: bytes) -> Change:
    return run(read_forgivingly(Feed(LOCAL_FILE, content), PLACE))


# What a program made


def test_a_list_is_read_however_its_pieces_are_cut() -> None:
    changes = Changes()
    feed = Closing(
        SIKKERAPI, b"198.51.100.7\n198.5", b"1.100.8\n198.51.100.8\n203.0.113.0/24\n", b"10.0.0.1\n2001:db8::"
    )
    change = strictly(feed, "url", "50", changes=changes)
    assert change.name == SIKKERAPI
    assert change.content == listing("198.51.100.7", "198.51.100.8", "203.0.113.0/24", "10.0.0.1", "2001:db8::")
    assert change.offer is not None
    # Its size is that of what may be blocked, and its entries are counted as they were read.
    assert (change.offer.name, change.offer.extent) == ("SikkerAPI's list", Extent(6, 258, 1))
    assert (change.offer.lines, change.offer.short) == (6, 0)
    assert not change.offer.terminated
    assert not change.offer.local
    assert changes.times == 3
    assert feed.closed


def test_the_size_depends_on_the_query_of_which_only_a_digest_is_kept() -> None:
    queries = {("url", "50", "sk_free_x"), ("url", "70", "sk_free_x"), ("url", "50", "sk_free_y")}
    offers = [strictly(Feed(SIKKERAPI, b"198.51.100.7\n"), *query).offer for query in sorted(queries)]
    digests = {offer.query for offer in offers if offer is not None}
    assert len(digests) == len(queries)
    assert not any("sk_free" in digest for digest in digests)
    (again,) = {strictly(Feed(SIKKERAPI, b"198.51.100.8\n"), *query).offer for query in [sorted(queries)[0]]}
    assert again is not None
    assert again.query in digests


def test_what_is_skipped_is_said(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed(
        "another", b"".join(b"198.51.100.%d\n" % number for number in range(200)), b"203.0.0.0/8\n198.51.100.300\n"
    )
    change = strictly(feed)
    assert change.offer is not None
    assert (change.offer.name, change.offer.lines, change.offer.short) == ("the list of another", 201, 1)
    (said,) = caplog.messages
    assert said.startswith("The list of another: 1 ")
    assert "line 201: '203.0.0.0/8': wider than /16" in said


@pytest.mark.parametrize("error", [Unreachable("no route"), ListError("it is too long"), ZeroDivisionError("a defect")])
def test_what_ends_a_feed_is_raised_as_it_is(error: Exception) -> None:
    feed = Closing(SIKKERAPI, b"198.51.100.7\n")
    feed.fail("stream", error)
    with pytest.raises(type(error)) as found:
        strictly(feed)
    assert found.value is error
    assert feed.closed


def test_what_is_no_list_is_refused_at_its_first_piece_and_the_connection_closed() -> None:
    feed = Closing(SIKKERAPI, b"<html>\r\n", b"198.51.100.7\n")
    changes = Changes()
    with pytest.raises(ListError, match="is not a list of addresses"):
        strictly(feed, changes=changes)
    assert feed.closed
    assert changes.times == 0


# What a person wrote


def test_a_person_s_list_is_forgiven_what_editors_do(caplog: pytest.LogCaptureFixture) -> None:
    change = forgivingly(b"\xef\xbb\xbf198.51.100.7\r\nnonsense\r\n203.0.113.0/24 ; a range\r\n8.0.0.0/6\r\n")
    assert (change.name, change.content) == (LOCAL_FILE, listing("198.51.100.7", "203.0.113.0/24"))
    assert change.offer is not None
    assert change.offer.local
    assert (change.offer.name, change.offer.lines, change.offer.short) == ("the file of SIKKER_CUSTOM_BLACKLIST", 3, 1)
    assert [message.split(" is skipped")[0] for message in caplog.messages] == [
        f"{LOCAL_FILE}: {PLACE}, line 2: 'nonsense'",
        f"{LOCAL_FILE}: {PLACE}, line 4: '8.0.0.0/6'",
    ]


def test_comments_alone_block_nothing_and_ask_for_no_belief() -> None:
    assert forgivingly(b"# nobody yet\n") == Change(LOCAL_FILE, listing())


def test_of_many_lines_that_can_not_be_read_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    forgivingly(b"198.51.100.7\n" + b"nonsense\n" * 25)
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == f"{LOCAL_FILE}: 5 more lines of {PLACE} are skipped."


@pytest.mark.parametrize(("content", "why"), [(b"", "is empty"), (b"nonsense\n", "nothing in .* can be read")])
def test_what_can_be_no_list_of_a_person_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ListError, match=why):
        forgivingly(content)


def test_a_file_that_can_not_be_read_is_said_as_it_is() -> None:
    feed = Feed(LOCAL_FILE)
    feed.fail("stream", FetchError("it can't be read"))
    with pytest.raises(FetchError, match="it can't be read"):
        run(read_forgivingly(feed, PLACE))
