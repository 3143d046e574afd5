"""`sikkerguard config`: the settings as the files and this shell's environment give them."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from sikkerguard.cli.command import Command, Outcome, settings_reader, warn
from sikkerguard.config.settings import effective
from sikkerguard.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from sikkerguard.config.settings import SettingsReader

# What systemd gives to what it starts (systemd.exec(5)): one of these is enough.
_OF_SYSTEMD = {"INVOCATION_ID", "NOTIFY_SOCKET"}


def _run(options: argparse.Namespace) -> Outcome:
    reader = settings_reader(options)
    if options.has_key:
        return check_key(reader)
    return check_all(reader) if options.check else print_all(reader)


def print_all(reader: SettingsReader) -> Outcome:
    """Print every setting, and what is wrong.

    Raises:
        ConfigError: a setting is wrong, or there is no key; in the latter case the others were printed.
    """
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


def check_all(reader: SettingsReader) -> Outcome:
    """Print what may not be meant.

    Raises:
        ConfigError: a setting is wrong, or SikkerAPI may not be asked with these settings.
    """
    settings = reader.load()
    for sentence in (*settings.troubles, *settings.hints):
        warn(sentence)
    if settings.refusal:
        raise ConfigError([f"{settings.refusal}."])
    return Outcome.FINE


def check_key(reader: SettingsReader, environment: Mapping[str, str] = os.environ) -> Outcome:
    """Say whether the service may start, as systemd asks before each start (ExecCondition=): `environment` shows
    whether it is systemd that asks.

    Without a key it waits, and `systemctl status` shows why. A service that has run before starts without one: it
    blocks by the cached list, and says what it lacks.
    """
    from sikkerguard.edges.storage import last_good

    missing = reader.missing_key()
    if not missing:
        return Outcome.FINE
    settings = reader.load_or_last_good(last_good.load, need_key=False, defaults=True)
    if last_good.load(settings.state_dir) is not None:
        return Outcome.FINE
    if not environment.keys() & _OF_SYSTEMD:
        warn(f"There is no key: {missing}")
        return Outcome.FAILED
    from sikkerguard.edges.systemd.notifier import Notifier

    sentence = f"Waiting for a key, and starting by itself once there is one: {missing}"
    print(sentence, file=sys.stderr)
    with closing(Notifier(environment)) as manager:
        manager.status(sentence)
    return Outcome.FAILED


def _add_options(parser: argparse.ArgumentParser) -> None:
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--has-key", action="store_true", help="only say whether the service can start, and if not, what to do"
    )
    only.add_argument("--check", action="store_true", help="only say what is wrong (exit code 2 if anything is)")


COMMAND = Command(
    "config",
    "print the settings as the files and this shell's environment give them, the key masked",
    _run,
    _add_options,
)
