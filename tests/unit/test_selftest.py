"""What the findings mean: a list is blamed for what it broke, and for nothing else."""

from __future__ import annotations

import pytest

from sikkerguard.core.model import Outcome, ProbeResult
from sikkerguard.core.selftest import already_failing, lost

GATEWAY, DNS = "gateway 192.0.2.1", "resolver 192.0.2.53"
PASSED, FAILED, ABSENT = Outcome.PASSED, Outcome.FAILED, Outcome.ABSENT


def found(**outcomes: Outcome) -> list[ProbeResult]:
    names = {"gateway": GATEWAY, "dns": DNS}
    return [ProbeResult(names[name], outcome, f"is {outcome.value}") for name, outcome in outcomes.items()]


@pytest.mark.parametrize(
    ("before", "during", "blamed"),
    [
        (PASSED, PASSED, False),
        (PASSED, FAILED, True),
        (PASSED, ABSENT, True),
        (FAILED, FAILED, False),
        (FAILED, PASSED, False),
        (FAILED, ABSENT, False),
        (ABSENT, FAILED, False),
        (ABSENT, PASSED, False),
        (ABSENT, ABSENT, False),
    ],
)
def test_only_what_passed_before_speaks_against_the_list(before: Outcome, during: Outcome, blamed: bool) -> None:
    result = lost(found(gateway=before, dns=PASSED), found(dns=PASSED, gateway=during))
    assert result == (tuple(found(gateway=during)) if blamed else ())


def test_a_test_that_is_not_made_any_more_has_failed() -> None:
    (missing,) = lost(found(gateway=PASSED, dns=PASSED), found(dns=PASSED))
    assert (missing.name, missing.outcome) == (GATEWAY, ABSENT)
    assert str(missing).startswith(f"{GATEWAY} could no longer")


def test_a_test_that_is_new_proves_nothing() -> None:
    assert lost(found(dns=PASSED), found(dns=PASSED, gateway=FAILED)) == ()


def test_all_that_was_lost_is_named() -> None:
    assert [each.name for each in lost(found(gateway=PASSED, dns=PASSED), found(gateway=FAILED, dns=FAILED))] == [
        GATEWAY,
        DNS,
    ]


def test_nothing_is_lost_where_nothing_was_there() -> None:
    assert lost([], []) == ()
    assert lost([], found(gateway=FAILED)) == ()


def test_findings_may_come_one_by_one() -> None:
    assert lost(iter(found(gateway=PASSED)), iter(found(gateway=FAILED))) == tuple(found(gateway=FAILED))


def test_what_failed_before_is_told() -> None:
    assert already_failing(found(gateway=FAILED, dns=PASSED)) == tuple(found(gateway=FAILED))
    assert already_failing(found(gateway=ABSENT, dns=PASSED)) == ()
