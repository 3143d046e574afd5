"""Since when an entry is listed: generations partition the list and keep the earliest moment."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.generations import MAX_GENERATIONS, Change, sources_after, split_generations
from sikkerguard.core.lists.sources import ListedSource, VerifiedList
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import canonical
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.core.net.packed import Prefix, Runs

# Few different entries, so that pulls share many; ranges that can't join or cover each other or the singles.
_PULLS = st.lists(
    st.tuples(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 10)), st.sets(st.integers(0, 40))), max_size=6
)


def _blocklist(singles: set[int], ranges: set[int], v6: set[int]) -> Blocklist:
    v4_sorter, v6_sorter = Runs(Family.V4.size), Runs(Family.V6.size)
    v4_sorter.add([(0x0B000000 + number).to_bytes(4, "big") for number in singles])
    v6_sorter.add([((0x2001 << 112) + number).to_bytes(16, "big") for number in v6])
    prefixes = [Prefix(0x0C000000 + (number << 9), 24) for number in ranges]
    return Blocklist(canonical(Family.V4, v4_sorter, prefixes), canonical(Family.V6, v6_sorter, []))


def _moments(sources: tuple[ListedSource, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for source in sources:
        for family in Family:
            for text in source.content.of(family).texts():
                assert text not in found, "two generations share an entry"
                found[text] = source.since
    return found


@given(_PULLS)
def test_an_entry_keeps_the_moment_of_the_pull_that_brought_it(
    pulls: list[tuple[set[int], set[int], set[int]]],
) -> None:
    sources: tuple[ListedSource, ...] = ()
    expected: dict[str, float] = {}
    for moment, pull in enumerate(pulls):
        content = _blocklist(*pull)
        sources = split_generations(sources, ListedSource("list", content, float(moment)))
        listed = {text for family in Family for text in content.of(family).texts()}
        expected = {text: expected.get(text, float(moment)) for text in listed}
        assert _moments(sources) == expected


def test_generations_of_another_list_say_nothing_about_this_one() -> None:
    content = _blocklist({1}, set(), set())
    [generation] = split_generations((ListedSource("other", content, 1.0),), ListedSource("list", content, 2.0))
    assert generation.since == 2.0


def test_the_oldest_generations_become_one() -> None:
    sources: tuple[ListedSource, ...] = ()
    for moment in range(MAX_GENERATIONS + 10):
        content = _blocklist(set(range(moment + 1)), set(), set())
        sources = split_generations(sources, ListedSource("list", content, float(moment)))
    assert len(sources) == MAX_GENERATIONS + 1
    moments = _moments(sources)
    assert len(moments) == MAX_GENERATIONS + 10
    assert min(moments.values()) == 9.0
    assert moments["11.0.0.41"] == 41.0


# One pull: for each of two sources its new singles, None where it is no longer wanted, or nothing.
_CHANGES = st.dictionaries(st.sampled_from(["a", "b"]), st.none() | st.sets(st.integers(0, 9)))


@given(st.lists(_CHANGES, max_size=6))
def test_a_change_of_one_source_leaves_the_others_as_they_were(
    pulls: list[dict[str, set[int] | None]],
) -> None:
    verified: VerifiedList | None = None
    expected: dict[str, tuple[ListedSource, ...]] = {}
    for moment, pull in enumerate(pulls):
        changes = [
            Change(name, None if found is None else _blocklist(found, set(), set())) for name, found in pull.items()
        ]
        sources = sources_after(verified, changes, float(moment))
        for change in changes:
            earlier = expected.pop(change.name, ())
            if change.content is not None:
                fresh = ListedSource(change.name, change.content, float(moment))
                expected[change.name] = split_generations(earlier, fresh)
        assert [source.name for source in sources] == sorted((source.name for source in sources), reverse=True)
        verified = VerifiedList(sources, float(moment))
        assert {name: verified.content_of(name) for name in {source.name for source in sources}} == expected
