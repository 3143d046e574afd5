"""What a command is, and what the commands share. A new command is one file with a `COMMAND`, and its line in the table
of `parser`.

All command files are read at every start: what one needs to run it imports when it runs, so that `--help` and `config`
touch nothing, and a service that starts blocks before it has read all of the library.
"""

from __future__ import annotations

import enum
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.config.settings import SettingsReader
from sikkerguard.core.text import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

MAX_LINE_LENGTH = 4000


class Outcome(enum.Enum):
    """How a command ended; `__main__` decides the exit code for each."""

    FINE = enum.auto()
    FAILED = enum.auto()
    WRONG_USE = enum.auto()
    BLOCKED = enum.auto()


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `help` is one line; `add_options` adds what the command takes beside the options of all commands;
    `run` gets the parsed options, `config` (the settings file or None) among them, and may raise `SikkerGuardError`."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], Outcome]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def settings_reader(options: argparse.Namespace) -> SettingsReader:
    """Make the reader of this shell's environment and of the settings file that the options name, if any."""
    return SettingsReader(os.environ, options.config)


def print_lines(lines: Iterable[str]) -> None:
    """Print each on a line of its own, so that nothing in it can act on a terminal."""
    for line in lines:
        print(printable(line, MAX_LINE_LENGTH))


def print_json(value: object) -> None:
    """Print it as JSON, so that nothing in it can act on a terminal."""
    # json escapes what is not ASCII; of ASCII it leaves only this control character as it is.
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def warn(sentence: str) -> None:
    """Print a sentence of our own on standard error; the command goes on."""
    print(f"sikkerguard: {sentence}", file=sys.stderr)
