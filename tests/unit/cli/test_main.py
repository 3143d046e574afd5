"""The exit code, which one place decides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard import __main__ as entry
from sikkerguard.cli import parser
from sikkerguard.cli.command import Command, Outcome
from sikkerguard.errors import ConfigError, KernelError

if TYPE_CHECKING:
    import argparse
    from typing import IO


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


WORDS = [["version"], ["--help"], ["config"], ["config", "--help"]]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", WORDS)
def test_an_output_without_room_is_a_sentence(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        code, said = ended(words, full, unbuffered, tmp_path)
    assert code == 1
    assert said == ("sikkerguard: the output is not complete, since it can't be written: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", WORDS)
def test_a_reader_that_went_away_ends_it_without_a_word(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stream:
        code, said = ended(words, stream, unbuffered, tmp_path)
    assert (code, said) == (1, "")


def ended(words: list[str], output: IO[bytes], unbuffered: str, place: Path) -> tuple[int, str]:
    """The exit code of this command, and what it said on standard error."""
    settings = place / "settings"
    settings.write_text("SIKKER_API_KEY=sk_free_x\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sikkerguard", "--config", str(settings), *words],
        stdout=output,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.decode()
