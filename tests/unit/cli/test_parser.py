"""The words of the command line that ask nobody."""

from __future__ import annotations

import pytest

from sikkerguard.cli import parser
from sikkerguard.cli.command import Outcome
from sikkerguard.version import VERSION


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_by_an_option(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run_command([word]) is Outcome.FINE
    assert capsys.readouterr() == (f"sikkerguard {VERSION}\n", "")


def test_without_a_word_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run_command([]) is Outcome.WRONG_USE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == parser.make_parser().format_help()


@pytest.mark.parametrize("topic", ["", *parser.make_parser().commands])
def test_help_shows_what_the_option_shows(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run_command(["help", *topic.split()]) is Outcome.FINE
    shown = capsys.readouterr()
    assert parser.run_command([*topic.split(), "--help"]) is Outcome.FINE
    assert capsys.readouterr() == shown
    assert shown.out.startswith(f"usage: sikkerguard {topic}".rstrip())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statsu"], "there is no command 'statsu'; did you mean 'status'?"),
        (["--config", "/x", "heath"], "there is no command 'heath'; did you mean 'health'?"),
        (["chekc", "192.0.2.1"], "there is no command 'chekc'; did you mean 'check'?"),
        (["help", "cleanpu"], "there is no command 'cleanpu'; did you mean 'cleanup'?"),
        (["xyzzy"], "there is no command 'xyzzy'; there are run, status, check, "),
        (["help", "xyzzy"], "there is no command 'xyzzy'; there are run, status, check, "),
    ],
)
def test_a_mistyped_command_gets_the_nearest_one(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parser.run_command(words) is Outcome.WRONG_USE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err


@pytest.mark.parametrize("words", [["\x1b[2J"], ["help", "\x1b[2J"], ["\x9b31m"]])
def test_a_mistyped_command_does_not_act_on_the_terminal(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run_command(words) is Outcome.WRONG_USE
    assert all(character.isprintable() or character == "\n" for character in capsys.readouterr().err)


def test_what_else_is_wrong_is_said_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run_command(["check"]) is Outcome.WRONG_USE
    assert "the following arguments are required: ADDRESS" in capsys.readouterr().err


def test_each_command_has_a_name_of_its_own_and_a_line_of_help() -> None:
    names = [command.name for command in parser.COMMANDS]
    assert len(set(names)) == len(names)
    assert all(command.help and "\n" not in command.help for command in parser.COMMANDS)
