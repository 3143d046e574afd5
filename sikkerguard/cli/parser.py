"""The words of the command line, and which edges each command is wired to. Commands import what they need when they
run, so that `--help` and `config` touch nothing, and a start blocks before it has read all of the library."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sikkerguard.config import settings as configuration
from sikkerguard.core.text import printable
from sikkerguard.errors import BusyError, ConfigError, SikkerGuardError
from sikkerguard.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sikkerguard.config.settings import Config

_BLOCKED = 3
_WRONG_USE = 2
# How alike a word must be to a command to be taken for a slip of the pen, from 0 to 1 (difflib).
_ALIKE = 0.6
# A service that listens takes a connection at once.
_ANSWER_SECONDS = 2.0
_LONGEST_LINE = 4000


class _Parser(argparse.ArgumentParser):
    """Names the command that was meant, where it is known."""

    commands: Mapping[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words, and end with exit code 2."""
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        super().error(self.unknown(wrong[1]) if wrong else message)

    def unknown(self, word: str) -> str:
        """That there is no such command, and which may be meant."""
        near = difflib.get_close_matches(word, self.commands, n=1, cutoff=_ALIKE)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.commands)}"
        return f"there is no command '{word}'; {meant}"


def run(arguments: Sequence[str]) -> int:
    """Carry out one command; the answer is the exit code.

    Raises:
        SikkerGuardError: whatever kept the command from its end.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if "command" not in options:
        parser.print_help(sys.stderr)
        return _WRONG_USE
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> _Parser:
    parser = _Parser(
        prog="sikkerguard",
        description="Keeps known attackers out, and never locks you out.",
        epilog="Settings are read from SIKKER_* variables and from /etc/sikkerguard/sikkerguard.env.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="read settings from this file")
    parser.add_argument(
        "-V", "--version", action="version", version=f"sikkerguard {VERSION}", help="print the version and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=argparse.ArgumentParser)
    parser.commands = commands.choices

    def add(name: str, action: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words)
        added.set_defaults(command=action)
        return added

    add("run", _run, "protect this host until stopped")
    status = add("status", _status, "show what the running service does")
    status.add_argument("--json", action="store_true", help="as JSON")
    check = add("check", _check, "say whether an address is blocked, and why (exit code 3 if it is)")
    check.add_argument("address")
    check.add_argument("--json", action="store_true", help="as JSON")
    pull = add("pull", _pull, "have the running service pull the list now")
    pull.add_argument("--accept", action="store_true", help="take the list once, however much it grew or shrank")
    add("health", _health, "exit with 0 if the list blocks")
    config = add("config", _config, "print the settings as they are written, the key masked")
    config.add_argument(
        "--has-key", action="store_true", help="only say whether there is a key, and if not, what to do"
    )
    config.add_argument("--check", action="store_true", help="only say what is wrong (exit code 2 if anything is)")
    add("restore", _restore, "block by the list kept on disk, and end: at a boot, before the network is up")
    cleanup = add("cleanup", _cleanup, "remove everything of SikkerGuard from the kernel")
    cleanup.add_argument(
        "--after-stop", action="store_true", help="as systemd's ExecStopPost=: only if the service was stopped for good"
    )
    cleanup.add_argument("--force", action="store_true", help="also beside a service that runs, which puts it back")
    demo = add("demo", _demo, "start a stand-in for SikkerAPI, for trying things out")
    from tests.standin import command as standin

    standin.add_arguments(demo)
    add("version", _version, "print the version")
    known = add("help", _help, "print this help, or that of a command")
    known.add_argument("topic", nargs="?", metavar="COMMAND")
    return parser


def _settings(options: argparse.Namespace) -> Config:
    """For a command that asks: a mistake is said, and does not keep it from asking."""
    found = _tolerated(options, need_key=False, defaults=True)
    for trouble in found.troubles:
        print(f"sikkerguard: {trouble}", file=sys.stderr)
    return found


def _tolerated(options: argparse.Namespace, *, need_key: bool, defaults: bool = False) -> Config:
    """The settings, with the last good value in the place of each that is wrong."""
    from sikkerguard.edges.storage import last_good

    return configuration.load_or_last_good(
        os.environ, options.config, last_good.load, need_key=need_key, defaults=defaults
    )


def _run(options: argparse.Namespace) -> int:
    from sikkerguard.cli import run

    def reread() -> Config:
        return configuration.load(os.environ, options.config)

    def files() -> tuple[Path, ...]:
        return configuration.sources(os.environ, options.config)

    return run.run(_tolerated(options, need_key=True), reread, files=files)


def _restore(options: argparse.Namespace) -> int:
    from sikkerguard.cli import run

    return run.restore(_tolerated(options, need_key=False))


def _config(options: argparse.Namespace) -> int:
    if options.has_key:
        return _has_key(options)
    if options.check:
        found = configuration.load(os.environ, options.config)
        for trouble in (*found.troubles, *found.hints):
            print(f"sikkerguard: {trouble}", file=sys.stderr)
        if found.refusal:
            raise ConfigError([f"{found.refusal}."])
        return 0
    problem: ConfigError | None = None
    try:
        settings = configuration.load(os.environ, options.config)
    except ConfigError as error:
        # What is in force is worth seeing also where only the key is missing.
        problem = error
        try:
            settings = configuration.load(os.environ, options.config, need_key=False)
        except ConfigError:
            raise problem from None
    for name, value in configuration.in_force(settings):
        print(f"{name}={value}")
    for sentence in (*settings.troubles, *([f"{settings.refusal}."] if settings.refusal else [])):
        print(f"sikkerguard: {sentence}", file=sys.stderr)
    if problem is not None:
        raise problem
    return 0


def _has_key(options: argparse.Namespace) -> int:
    """systemd asks this before each start: a service without a key waits, and `systemctl status` shows why."""
    from sikkerguard.edges.systemd.notifier import Notifier

    missing = configuration.missing_key(os.environ, options.config)
    if missing and _ran_before(options):
        # It protects without, by its list, and follows the host; and it says what it lacks.
        return 0
    if missing:
        sentence = f"Waiting for a key, and starting by itself once there is one: {missing}"
        print(sentence, file=sys.stderr)
        Notifier().status(sentence)
    return 1 if missing else 0


def _ran_before(options: argparse.Namespace) -> bool:
    """Whether good settings were kept: a service has run here."""
    from sikkerguard.edges.storage import last_good

    settings = _tolerated(options, need_key=False, defaults=True)
    return last_good.load(settings.state_dir) is not None


def _cleanup(options: argparse.Namespace) -> int:
    if options.after_stop and (_goes_on() or not _has_sets()):
        return 0
    service = "" if options.after_stop else _running_service(options)
    if service and not options.force:
        raise SikkerGuardError(
            f"{service} runs, and would put back within seconds what is removed; nothing was done. Stop it, which "
            "removes everything (systemctl stop sikkerguard), or have it removed all the same with --force"
        )
    from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend

    kernel = IpsetBackend()
    try:
        kernel.remove()
    except BusyError as error:
        if not options.after_stop:
            raise
        # It blocks nobody, and the unit has not failed for it.
        print(f"sikkerguard: {error}.", file=sys.stderr)
    finally:
        kernel.close()
    if not options.after_stop:
        print("Nothing of SikkerGuard is left in the kernel.")
    if service:
        print(f"sikkerguard: {service} runs and will put it back; stop that instead.", file=sys.stderr)
    return 0


def _has_sets() -> bool:
    """Whether there is anything to remove: our rules can't be without our sets. The library for rules is not read for
    this, which can't be in the middle of an installation."""
    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

    sets = Sets()
    try:
        return bool(sets.names())
    finally:
        sets.close()


def _goes_on() -> bool:
    """Whether the service that has ended is to go on: it is being restarted, or has died, so that its list must stay
    in force, as it must while the machine goes down. The result is what systemd says of it (systemd.exec(5),
    SERVICE_RESULT)."""
    from sikkerguard.edges.systemd.notifier import Notifier

    job = Notifier().job()
    result = os.environ.get("SERVICE_RESULT", "success")
    if state := os.environ.get("STATE_DIRECTORY"):
        # The service, which can still ask, leaves word for the unit that is stopped after it, when D-Bus has ended. The
        # next start takes it away.
        from sikkerguard.edges.storage.directory import Directory

        words = Directory(Path(state))
        if job == "shutdown":
            with suppress(OSError):  # on a full disk the rules are gone a moment before the network is
                words.replace("going-down")
        with suppress(OSError):
            if words.has("going-down"):
                return True
    return job in ("restart", "shutdown") or (job != "stop" and result not in ("success", "exec-condition"))


def _running_service(options: argparse.Namespace) -> str:
    """The service that runs, as far as that can be found out, whatever the settings are; or nothing. Cleaning up must
    work with any settings, and also for who may not read the state directory."""
    from sikkerguard.cli import status
    from sikkerguard.edges.http import control_socket
    from sikkerguard.edges.storage.lock import NamespaceLock
    from sikkerguard.edges.storage.store import Store

    if control_socket.is_answered(status.directories(os.environ, options.config), _ANSWER_SECONDS):
        return "the service"
    if (process := NamespaceLock().holder()) is not None:
        return f"the service (process {process})"
    try:
        process = Store(configuration.state_dir(os.environ, options.config)).service_pid()
    except SikkerGuardError:
        return ""
    return f"the service (process {process})" if process is not None else ""


def _status(options: argparse.Namespace) -> int:
    from sikkerguard.cli import status

    return status.status(status.directories(os.environ, options.config), as_json=options.json)


def _health(options: argparse.Namespace) -> int:
    from sikkerguard.cli import status

    return status.health(status.directories(os.environ, options.config))


def _pull(options: argparse.Namespace) -> int:
    from sikkerguard.cli import status

    return status.pull(status.directories(os.environ, options.config), accept=options.accept)


def _check(options: argparse.Namespace) -> int:
    from sikkerguard.cli import check

    found = check.check(configuration.state_dir(os.environ, options.config), options.address)
    if options.json:
        print(found.as_json())
    else:
        for line in found.as_text().splitlines():
            print(printable(line, _LONGEST_LINE))
    return _BLOCKED if found.blocked else 0


def _demo(options: argparse.Namespace) -> int:
    from tests.standin import command as standin

    return standin.run(options)


def _version(options: argparse.Namespace) -> int:
    print(f"sikkerguard {VERSION}")
    return 0


def _help(options: argparse.Namespace) -> int:
    parser = _parser()
    if options.topic is None:
        parser.print_help()
    elif options.topic in parser.commands:
        parser.commands[options.topic].print_help()
    else:
        parser.error(parser.unknown(ascii(options.topic)[1:-1]))
    return 0
