"""What the self-test's findings mean: only what passed before the trial can speak against the list, and of several
witnesses of one connection only all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def regressions(before: Iterable[ProbeResult], during: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
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


class Outcome(Enum):
    """What one self-test found."""

    PASSED = "passed"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One self-test's finding: the test's `name`, its outcome, and a few words that go on from the name.

    Tests of the same `subject` are witnesses of one connection, of which one that passes is enough. Without a subject
    the test stands for itself.
    """

    name: str
    outcome: Outcome
    detail: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.detail}"
