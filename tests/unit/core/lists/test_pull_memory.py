"""What pulls remember of each other, as it is kept on disk."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.coverage import Extent
from sikkerguard.core.lists.pull_memory import PullMemory, believable, from_json, source_statuses
from sikkerguard.core.lists.size_guard import Limits, SourceHistory, Version
from sikkerguard.core.lists.sources import ListedSource, SourceStatus, VerifiedList
from tests.unit.core.lists.test_admission import listing

counts = st.integers(0, 2**61)
versions = st.builds(Version, st.floats(0, 4e9), st.builds(Extent, counts, counts, counts))
histories = st.builds(
    SourceHistory,
    st.lists(versions, max_size=4).map(tuple),
    st.text(max_size=5),
    st.booleans(),
    st.frozensets(st.text(max_size=5), max_size=3),
)


@given(st.builds(PullMemory, st.dictionaries(st.text(max_size=5), histories, max_size=3), st.integers(0, 99)))
def test_it_comes_back_as_it_was(memory: PullMemory) -> None:
    assert from_json(json.loads(json.dumps(memory.as_json()))) == memory


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["sources", "unfinished", "heldBack", "x"]), json_values))
def test_nothing_in_the_file_is_too_strange(known: dict[str, Any]) -> None:
    assert from_json(known).unfinished >= 0


@pytest.mark.parametrize("fields", [{}, {"versions": [[1, 2, 3]]}, {"versions": [], "query": ""}, [], None, 7])
def test_a_source_that_cannot_be_read_is_left_out(fields: object) -> None:
    good: dict[str, Any] = PullMemory(
        {"SikkerAPI": SourceHistory((Version(1.0, Extent(1, 2, 3)),), "q", True)}
    ).as_json()
    good["sources"]["other"] = fields
    assert from_json(good).sources.keys() == {"SikkerAPI"}


def test_what_version_0_1_0_kept_is_an_empty_memory() -> None:
    assert from_json({"heldBack": ["shrunk"]}) == PullMemory()


def test_a_source_is_forgotten_when_it_is_no_longer_wanted() -> None:
    memory = PullMemory().with_source("mine", SourceHistory(query="q"))
    assert memory.of("mine").query == "q"
    assert memory.of("other") == SourceHistory()
    assert memory.with_source("mine", None) == PullMemory()


LIMITS = Limits(max_growth=2.0, max_coverage=0.02)
# 1/16 of IPv4, in two generations of which each alone would be believed.
WIDE = (
    ListedSource("SikkerAPI", listing("8.0.0.0/6"), 1.0),
    ListedSource("SikkerAPI", listing("12.0.0.0/6", "16.0.0.0/5"), 2.0),
)
MINE = ListedSource("SIKKER_CUSTOM_BLACKLIST", listing("198.51.100.7", "10.1.2.3"), 3.0)


def test_what_is_kept_and_has_no_history_is_measured_as_a_first_version() -> None:
    verified = VerifiedList((*WIDE, MINE), 4.0)
    kept, memory, complaints = believable(verified, PullMemory(unfinished=2), LIMITS)
    assert kept == VerifiedList((MINE,), 4.0)
    assert memory.unfinished == 2
    # What no list can block says nothing of its size.
    assert memory.sources == {MINE.name: SourceHistory((Version(4.0, Extent(1, 1, 0)),))}
    (complaint,) = complaints
    assert complaint.startswith("The list of SikkerAPI that is kept on disk covers ")
    assert complaint.endswith(". It is not used, and the next one is measured as a first one")


def test_what_is_kept_and_has_a_history_was_believed_once() -> None:
    verified = VerifiedList((*WIDE, MINE), 4.0)
    known = PullMemory({"SikkerAPI": SourceHistory(query="q"), MINE.name: SourceHistory(query="p")})
    assert believable(verified, known, LIMITS) == (verified, known, ())
    assert believable(VerifiedList((), 4.0), known, LIMITS) == (VerifiedList((), 4.0), known, ())
    wider = Limits(max_growth=2.0, max_coverage=0.1)
    assert believable(verified, PullMemory(), wider)[0] == verified


# 1/256 of IPv4, and 1/8 of 2000::/3 counted in /64s.
EXTENT = Extent(7, 1 << 24, 1 << 58)
KNOWN = PullMemory({"SikkerAPI": SourceHistory((Version(1.0, Extent(1, 1, 0)), Version(2.0, EXTENT)))})


def test_a_source_in_force_is_shown_as_its_last_version() -> None:
    assert source_statuses(KNOWN, {"SikkerAPI"}, {}) == (SourceStatus("SikkerAPI", 7, 2.0, 1 / 256, 1 / 8),)


def test_what_is_remembered_of_a_source_that_is_not_in_force_is_not_shown() -> None:
    assert source_statuses(KNOWN, (), {}) == (SourceStatus("SikkerAPI", 0, None, 0.0, 0.0),)


def test_one_in_trouble_is_shown_though_nothing_is_known_of_it() -> None:
    troubles = {"SIKKER_CUSTOM_BLACKLIST": "It can't be read.", "SikkerAPI": "It can't be reached."}
    assert source_statuses(KNOWN, {"SikkerAPI", "SIKKER_CUSTOM_BLACKLIST"}, troubles) == (
        SourceStatus("SikkerAPI", 7, 2.0, 1 / 256, 1 / 8, "It can't be reached."),
        SourceStatus("SIKKER_CUSTOM_BLACKLIST", 0, None, 0.0, 0.0, "It can't be read."),
    )
    assert source_statuses(PullMemory(), (), {}) == ()
