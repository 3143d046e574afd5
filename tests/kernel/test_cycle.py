"""The main job on the real kernel: pull, block, pass, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kernel.conftest import Guard

LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
INNOCENT, INNOCENT_V6 = "203.0.113.99", "2001:db8:99::99"


def test_a_listed_source_is_dropped_and_an_unlisted_one_passes(guard: Guard) -> None:
    guard.serve(LISTED, "192.0.2.0/25", LISTED_V6, "2001:db8:aa::/48")
    before = guard.lab.everything()
    guard.start()
    guard.logged("Blocking 4 IPs")
    lab = guard.lab
    for blocked in (LISTED, "192.0.2.9", LISTED_V6, "2001:db8:aa::1"):
        assert not lab.passes(blocked), blocked
    for innocent in (INNOCENT, "192.0.2.200", INNOCENT_V6, "2001:db8:ab::1"):
        assert lab.reaches(innocent), innocent
    guard.stop()
    assert lab.reaches(LISTED)
    assert lab.sets() == ""
    assert [line for line in lab.rules().splitlines() if "SIKKERGUARD" in line or "sikkerguard" in line] == []
    assert before.strip() == ""
