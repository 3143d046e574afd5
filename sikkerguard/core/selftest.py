"""What the self-test's findings mean: only what passed before the trial can speak against the list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.model import Outcome, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Iterable


def lost(before: Iterable[ProbeResult], during: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """The tests that passed before the trial and fail in it. One that can't be made in the trial, though it could
    before, has failed too."""
    passed = {result.name for result in before if result.outcome is Outcome.PASSED}
    found = {result.name: result for result in during}
    return tuple(
        found.get(name, ProbeResult(name, Outcome.ABSENT, "could no longer be tested"))
        for name in sorted(passed)
        if name not in found or found[name].outcome is not Outcome.PASSED
    )


def already_failing(before: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """The tests that failed before the trial, and so say nothing about the list."""
    return tuple(result for result in before if result.outcome is Outcome.FAILED)
