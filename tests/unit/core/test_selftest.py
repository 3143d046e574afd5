"""What the findings mean: a list is blamed for what it broke, and for nothing else."""

from __future__ import annotations

import itertools

import pytest

from sikkerguard.core.selftest import Outcome, ProbeResult, already_failing, only_gone, regressions

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
    result = regressions(found(gateway=before, dns=PASSED), found(dns=PASSED, gateway=during))
    assert result == (tuple(found(gateway=during)) if blamed else ())


def test_a_test_that_is_not_made_any_more_has_failed() -> None:
    (missing,) = regressions(found(gateway=PASSED, dns=PASSED), found(dns=PASSED))
    assert (missing.name, missing.outcome) == (GATEWAY, ABSENT)
    assert str(missing).startswith(f"{GATEWAY} could no longer")


def test_a_test_that_is_new_proves_nothing() -> None:
    assert regressions(found(dns=PASSED), found(dns=PASSED, gateway=FAILED)) == ()


def test_all_that_was_lost_is_named() -> None:
    assert [
        each.name for each in regressions(found(gateway=PASSED, dns=PASSED), found(gateway=FAILED, dns=FAILED))
    ] == [
        GATEWAY,
        DNS,
    ]


def test_nothing_is_lost_where_nothing_was_there() -> None:
    assert regressions([], []) == ()
    assert regressions([], found(gateway=FAILED)) == ()


def test_findings_may_come_one_by_one() -> None:
    assert regressions(iter(found(gateway=PASSED)), iter(found(gateway=FAILED))) == tuple(found(gateway=FAILED))


def test_what_failed_before_is_told() -> None:
    assert already_failing(found(gateway=FAILED, dns=PASSED)) == tuple(found(gateway=FAILED))
    assert already_failing(found(gateway=ABSENT, dns=PASSED)) == ()


def test_a_gateway_that_is_none_any_more_was_not_cut_off() -> None:
    before, other = found(gateway=PASSED, dns=PASSED), found(dns=PASSED)
    assert only_gone(regressions(before, other), other)
    # Where nothing else answers, or where it is still asked, in vain or not, the list may be the reason.
    for during in ([], found(dns=FAILED), found(dns=PASSED, gateway=ABSENT), found(dns=PASSED, gateway=FAILED)):
        assert not only_gone(regressions(before, during), during)


# Two witnesses of one connection: a gateway may answer no pings, or only some, and its entry may be undecided.

PING, TABLE = "gateway 192.0.2.1 by ping", "gateway 192.0.2.1 by neighbour table"


def witnessed(ping: Outcome | None, table: Outcome | None) -> list[ProbeResult]:
    return [
        ProbeResult(name, outcome, f"is {outcome.value}", GATEWAY)
        for name, outcome in ((PING, ping), (TABLE, table))
        if outcome is not None
    ]


OUTCOMES = [PASSED, FAILED, ABSENT, None]


@pytest.mark.parametrize("before", list(itertools.product(OUTCOMES, repeat=2)))
@pytest.mark.parametrize("during", list(itertools.product(OUTCOMES, repeat=2)))
def test_a_gateway_is_lost_where_a_witness_spoke_for_it_and_none_does_any_more(
    before: tuple[Outcome | None, Outcome | None], during: tuple[Outcome | None, Outcome | None]
) -> None:
    result = regressions(witnessed(*before), witnessed(*during))
    assert bool(result) == (PASSED in before and PASSED not in during)
    # Named are those that spoke for it, as they are now.
    spoke = [name for name, outcome in zip((PING, TABLE), before, strict=True) if outcome is PASSED]
    assert not result or sorted(each.name for each in result) == sorted(spoke)
    for each in result:
        assert each.subject == GATEWAY
        assert each in witnessed(*during) or str(each) == f"{each.name} could no longer be tested"


def test_another_gateways_witness_does_not_count() -> None:
    other = ProbeResult("gateway 192.0.2.2 by ping", PASSED, "answered", "gateway 192.0.2.2")
    assert regressions([*witnessed(PASSED, None), other], [*witnessed(FAILED, ABSENT), other])


def test_one_witness_that_fails_is_not_told_of_where_the_other_passes() -> None:
    assert already_failing(witnessed(FAILED, PASSED)) == ()
    assert already_failing(witnessed(FAILED, ABSENT)) == tuple(witnessed(FAILED, None))
