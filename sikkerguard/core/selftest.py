"""What the self-test's findings mean: only what passed before the trial can speak against the list, and of several
witnesses of one connection only all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.model import Outcome, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Iterable


def lost(before: Iterable[ProbeResult], during: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """The tests that passed before the trial and fail in it, where no other test of the same subject passes.

    One that can't be made in the trial, though it could before, has failed too.
    """
    passed = {result.name: result for result in before if result.outcome is Outcome.PASSED}
    found = {result.name: result for result in during}
    kept = {_subject(result) for result in found.values() if result.outcome is Outcome.PASSED}
    return tuple(
        found.get(name, ProbeResult(name, Outcome.ABSENT, "could no longer be tested", result.subject))
        for name, result in sorted(passed.items(), key=lambda item: item[0])
        if _subject(result) not in kept
    )


def only_gone(failed: Iterable[ProbeResult], during: Iterable[ProbeResult]) -> bool:
    """Whether nothing that was lost has failed: the host's gateways or resolvers became others while it was tested,
    since whoever set them did so, and another one answers. No list takes a route away."""
    asked = {result.name: result.outcome for result in during}
    return all(result.name not in asked for result in failed) and Outcome.PASSED in asked.values()


def already_failing(before: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """The tests that failed before the trial, where no other of the same subject passed; they say nothing about the
    list."""
    results = tuple(before)
    known = {_subject(result) for result in results if result.outcome is Outcome.PASSED}
    return tuple(result for result in results if result.outcome is Outcome.FAILED and _subject(result) not in known)


def _subject(result: ProbeResult) -> str:
    return result.subject or result.name
