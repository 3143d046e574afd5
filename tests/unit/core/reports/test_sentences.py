"""What the log says of reports."""

from __future__ import annotations

from collections import Counter

import pytest

from sikkerguard.core.reports.outcomes import ReportStats
from sikkerguard.core.reports.sentences import rejected_line, reported_line, spent_line


def test_the_line_is_in_the_words_of_the_product() -> None:
    assert reported_line({"telnet": 41, "ssh": 89, "http": 63}) == (
        "Reported 193 blocked IPs (ssh: 89, http: 63, telnet: 41)"
    )


def test_the_line_names_the_largest_and_counts_all() -> None:
    counts = Counter({f"service{number}": 10 - number for number in range(10)})
    assert reported_line(counts) == (
        "Reported 55 blocked IPs (service0: 10, service1: 9, service2: 8, service3: 7, service4: 6, ...)"
    )


def test_rejected_rows_are_named_up_to_a_bound() -> None:
    assert rejected_line([("203.0.113.7", "whitelisted")]) == (
        "SikkerAPI rejected these reports, which are dropped: 203.0.113.7 (whitelisted)."
    )
    many = rejected_line([(f"203.0.113.{number}", "no") for number in range(25)])
    assert many.count("203.0.113.") == 20
    assert many.endswith("203.0.113.19 (no), and 5 more.")


@pytest.mark.parametrize(("remaining", "waiting"), [(None, 5), (1, 5), (0, 0)])
def test_the_quota_is_a_reason_only_where_it_is_used_up_and_rows_wait(remaining: int | None, waiting: int) -> None:
    assert spent_line(ReportStats(quota_remaining=remaining, waiting=waiting)) == ""
    assert "5 rows wait for midnight UTC" in spent_line(ReportStats(quota_remaining=0, waiting=5))
