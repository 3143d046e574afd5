"""The command line: its words, and the table of commands."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sikkerguard.cli import check, cleanup, config, demo, health, pull, run, status
from sikkerguard.cli.command import Command, Outcome
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How alike a word and a command must be for the word to count as a misspelling, from 0 to 1 (difflib).
_SIMILARITY = 0.6


class _Parser(argparse.ArgumentParser):
    """Suggests the command that was probably meant."""

    commands: Mapping[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the words, and end."""
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        super().error(self.describe_unknown(wrong[1]) if wrong else message)

    def describe_unknown(self, word: str) -> str:
        """Say that there is no such command, and which may be meant."""
        near = difflib.get_close_matches(word, self.commands, n=1, cutoff=_SIMILARITY)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.commands)}"
        return f"there is no command '{word}'; {meant}"


def run_command(arguments: Sequence[str]) -> Outcome:
    """Run the command that these words name.

    Raises:
        SikkerGuardError: the command failed.
    """
    parser = make_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        # argparse wants to end the process: after a help text, or after an error that it has printed.
        return Outcome.WRONG_USE if end.code else Outcome.FINE
    if "command" not in options:
        parser.print_help(sys.stderr)
        return Outcome.WRONG_USE
    command: Command = options.command
    return command.run(options)


def make_parser() -> _Parser:
    """Make the parser of the whole command line."""
    parser = _Parser(
        prog="sikkerguard",
        description="Keeps known attackers out, and never locks you out.",
        epilog="Settings are read from SIKKER_* variables and from /etc/sikkerguard/sikkerguard.env.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="read settings from this file; stands before the command"
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"sikkerguard {VERSION}", help="print the version and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=argparse.ArgumentParser)
    parser.commands = commands.choices
    for command in COMMANDS:
        added = commands.add_parser(command.name, help=command.help, description=command.help)
        added.set_defaults(command=command)
        command.add_options(added)
    return parser


def _print_version(options: argparse.Namespace) -> Outcome:
    print(f"sikkerguard {VERSION}")
    return Outcome.FINE


def _add_topic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", metavar="COMMAND")


def _print_help(options: argparse.Namespace) -> Outcome:
    parser = make_parser()
    if options.topic is None:
        parser.print_help()
    elif options.topic in parser.commands:
        parser.commands[options.topic].print_help()
    else:
        parser.print_usage(sys.stderr)
        print(f"sikkerguard: error: {parser.describe_unknown(ascii(options.topic)[1:-1])}", file=sys.stderr)
        return Outcome.WRONG_USE
    return Outcome.FINE


# In the order in which --help shows them.
COMMANDS = (
    run.RUN,
    status.COMMAND,
    check.COMMAND,
    pull.COMMAND,
    health.COMMAND,
    config.COMMAND,
    run.RESTORE,
    cleanup.COMMAND,
    demo.COMMAND,
    Command("version", "print the version", _print_version),
    Command("help", "print this help, or that of a command", _print_help, _add_topic),
)
