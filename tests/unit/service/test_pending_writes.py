"""What is to be written, as values."""

from __future__ import annotations

import pytest

from sikkerguard.core.lists.allowlist import API, AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.service.pending_writes import (
    Claim,
    PendingWrite,
    SaveAllowlist,
    SaveEndpoint,
    SaveList,
    SavePullMemory,
    SaveSettings,
)
from tests.unit.edges.storage.test_store import ENDPOINT, NEW, PULLS
from tests.unit.service.fakes import Store

ALLOWED = Allowlist((AllowEntry(*parse_prefix("192.0.2.1"), API),))
WRITES: tuple[PendingWrite, ...] = (
    Claim(),
    SaveList(NEW),
    SaveAllowlist(ALLOWED),
    SavePullMemory(PULLS),
    SaveEndpoint(ENDPOINT),
    SaveSettings({"SIKKER_SCORE_MIN": "70"}),
)


def test_each_writes_its_own_file_and_no_other() -> None:
    store = Store()
    assert [write.write(store) for write in WRITES] == [False] * len(WRITES)
    assert store.steps == [
        "claim",
        "save_list",
        "save_allowlist",
        "save_pull_memory",
        "save_endpoint",
        "save_settings",
    ]
    assert (store.verified, store.allowlist, store.pulls, store.endpoint, store.settings) == (
        NEW,
        ALLOWED,
        PULLS,
        ENDPOINT,
        {"SIKKER_SCORE_MIN": "70"},
    )


def test_only_a_claim_says_that_the_directory_is_a_new_one() -> None:
    store = Store()
    store.lose()
    assert Claim().write(store)
    assert not Claim().write(store)


def test_of_each_kind_there_is_one_place() -> None:
    assert len({write.kind for write in WRITES}) == len(WRITES)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.kind)
def test_what_the_disk_refuses_is_raised(write: PendingWrite) -> None:
    store = Store()
    write.write(store)
    store.fail(store.steps[0], OSError("no room"))
    with pytest.raises(OSError, match="no room"):
        write.write(store)
