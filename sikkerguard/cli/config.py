"""`sikkerguard config`: the settings as the files and this shell's environment give them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sikkerguard.cli.command import Command, Outcome, settings_reader, warn
from sikkerguard.config.settings import effective
from sikkerguard.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from sikkerguard.config.settings import SettingsReader


def _run(options: argparse.Namespace) -> Outcome:
    reader = settings_reader(options)
    if options.has_key:
        return _check_key(reader)
    return _check_all(reader) if options.check else _print_all(reader)


def _print_all(reader: SettingsReader) -> Outcome:
    problem: ConfigError | None = None
    try:
        settings = reader.load()
    except ConfigError as error:
        # Where only the key is missing, the rest is worth seeing.
        problem = error
        try:
            settings = reader.load(need_key=False)
        except ConfigError:
            raise problem from None
    for name, value in effective(settings):
        print(f"{name}={value}")
    for sentence in (*settings.troubles, *([f"{settings.refusal}."] if settings.refusal else [])):
        warn(sentence)
    if problem is not None:
        raise problem
    return Outcome.FINE


def _check_all(reader: SettingsReader) -> Outcome:
    settings = reader.load()
    for sentence in (*settings.troubles, *settings.hints):
        warn(sentence)
    if settings.refusal:
        raise ConfigError([f"{settings.refusal}."])
    return Outcome.FINE


def _check_key(reader: SettingsReader) -> Outcome:
    """systemd asks this before each start (ExecCondition=): a service without a key waits, and `systemctl status` shows
    why. One that has run before starts without: it blocks by the cached list, and says what it lacks."""
    from sikkerguard.edges.storage import last_good
    from sikkerguard.edges.systemd.notifier import Notifier

    missing = reader.missing_key()
    if not missing:
        return Outcome.FINE
    settings = reader.load_or_last_good(last_good.load, need_key=False, defaults=True)
    if last_good.load(settings.state_dir) is not None:
        return Outcome.FINE
    sentence = f"Waiting for a key, and starting by itself once there is one: {missing}"
    print(sentence, file=sys.stderr)
    Notifier().status(sentence)
    return Outcome.FAILED


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--has-key", action="store_true", help="only say whether there is a key, and if not, what to do"
    )
    parser.add_argument("--check", action="store_true", help="only say what is wrong (exit code 2 if anything is)")


COMMAND = Command(
    "config",
    "print the settings as the files and this shell's environment give them, the key masked",
    _run,
    _add_options,
)
