"""What a dry run says that it would do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.state import Inspection
from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.edges.kernel.dry_run import DryRunBackend
from tests.unit.core.net.test_intervals import gather

if TYPE_CHECKING:
    import pytest

ALLOWLIST = Allowlist((AllowEntry(*parse_prefix("198.51.100.1"), "resolver"),))
LIST = Blocklist(v4=gather(Family.V4, [bytes([203, 0, 113, last]) for last in range(1, 24, 2)], []))


def test_a_start_is_described_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backend = DryRunBackend((Family.V4,))
    operations = backend.adopt(LIST, ALLOWLIST)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"Dry run: would {operation.describe()}" for operation in operations]
    assert [line.split()[3] for line in said] == ["create", "allow", "block", "write", "put"]
    assert {operation.family for operation in operations} == {Family.V4}
    assert backend.repair(ALLOWLIST) == ()


def test_an_update_is_shown_and_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backend = DryRunBackend()
    backend.allow(ALLOWLIST)
    backend.stage(LIST)
    backend.begin_trial()
    backend.renew_trial()
    backend.commit()
    shown = ", ".join(f"203.0.113.{last}" for last in range(1, 20, 2))
    assert [record.getMessage() for record in caplog.records] == [
        "Dry run: would allow 198.51.100.1 (resolver)",
        f"Dry run: would block {shown} and 2 more",
        "Dry run: would commit 12 entries",
    ]
    assert backend.read_committed() == Blocklist()
    assert backend.inspect(Family.V4, 0xCB007101) == Inspection(active=False, listed=False, allowed=False, packets=0)
    backend.hold_counters()
    backend.resume_counters({})
    assert backend.read_traffic() == ()
    backend.unhook()
    backend.remove()
    assert not backend.has_state()
    backend.close()
