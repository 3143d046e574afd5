"""The exit code, which one place decides."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sikkerguard import __main__ as entry
from sikkerguard.cli import parser
from sikkerguard.cli.command import Command, Outcome
from sikkerguard.errors import ConfigError, KernelError

if TYPE_CHECKING:
    import argparse


def run_with(monkeypatch: pytest.MonkeyPatch, end: Outcome | Exception) -> int:
    """Run a command that ends so."""

    def run(options: argparse.Namespace) -> Outcome:
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(parser, "COMMANDS", (Command("end", "end as a test wants it", run),))
    monkeypatch.setattr(sys, "argv", ["sikkerguard", "end"])
    return entry.main()


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (Outcome.FINE, 0, ""),
        (Outcome.FAILED, 1, ""),
        (Outcome.WRONG_USE, 2, ""),
        (Outcome.BLOCKED, 3, ""),
        (ConfigError(["One thing is wrong.", "And another."]), 2, "sikkerguard: One thing is wrong.\nsikkerguard: And"),
        (KernelError("the kernel refused"), 1, "sikkerguard: the kernel refused"),
    ],
)
def test_each_end_has_its_exit_code_and_each_error_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: Outcome | Exception, code: int, said: str
) -> None:
    assert run_with(monkeypatch, end) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(said)
    assert bool(shown.err) == bool(said)


def test_every_outcome_has_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {run_with(monkeypatch, outcome) for outcome in Outcome} == {0, 1, 2, 3}


@pytest.mark.parametrize(("words", "code"), [(["version"], 0), (["statsu"], 2), ([], 2), (["check", "1.2"], 2)])
def test_it_is_what_the_process_ends_with(words: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-m", "sikkerguard", *words], capture_output=True, timeout=60, check=False)
    assert done.returncode == code
