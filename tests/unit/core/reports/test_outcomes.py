"""What is recorded of a request, and what is said of it."""

from __future__ import annotations

from sikkerguard.core.reports.outcomes import Settled
from sikkerguard.core.reports.rows import Row

ROWS = tuple(
    Row(bytes([203, 0, 113, number]), "brute_force", protocol, 1)
    for number, protocol in enumerate(("ssh", "ssh", "http", "telnet"))
)


def test_what_was_neither_rejected_nor_postponed_was_accepted() -> None:
    settled = Settled(7, ROWS, {ROWS[1].address: "whitelisted"}, frozenset({ROWS[3].address}), 0.0)
    assert settled.accepted() == {"ssh": 1, "http": 1}
    assert settled.rejections() == [("203.0.113.1", "whitelisted")]


def test_a_request_without_any_objection_was_accepted_whole() -> None:
    settled = Settled(7, ROWS, {}, frozenset(), 0.0)
    assert settled.accepted() == {"ssh": 2, "http": 1, "telnet": 1}
    assert settled.rejections() == []
