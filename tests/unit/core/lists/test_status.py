"""What the status says of each source."""

from __future__ import annotations

from sikkerguard.core.lists.coverage import Extent
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.size_guard import SourceHistory, Version
from sikkerguard.core.lists.sources import SourceStatus
from sikkerguard.core.lists.status import source_statuses

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
