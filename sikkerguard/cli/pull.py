"""`sikkerguard pull`: has the service read its settings and pull now, and waits for the outcome."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sikkerguard.cli.command import MAX_LINE_LENGTH, Command, Outcome, warn
from sikkerguard.core.text import printable
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    import argparse

    from sikkerguard.cli.service_client import ServiceClient

# A pull with its self-test and the largest list takes well under this; one that takes longer goes on without us.
_PULL_SECONDS = 120.0
_POLL_SECONDS = 0.2
# Only a step that lasts longer than this is mentioned.
_STEP_SECONDS = 1.0


def pull(service: ServiceClient, *, accept: bool, step_seconds: float = _STEP_SECONDS) -> Outcome:
    """Have the service pull now, and print what came of it; with `accept` whatever the size of the list. A step that
    lasts longer than `step_seconds` is mentioned.

    Failed also where the service pulled by older settings, since it can't use those that are written.

    Raises:
        SikkerGuardError: no service answers, or the pull failed.
    """
    asked = service.ask(f"/pull?accept={str(accept).lower()}", "POST")
    answer = asked.read_json()
    number, complaint = answer["pull"], printable(answer["complaint"], MAX_LINE_LENGTH)
    if complaint:
        warn(complaint)
    step = mentioned = ""
    since = time.monotonic()
    deadline = since + _PULL_SECONDS
    while (now := time.monotonic()) < deadline:
        reply = service.ask("/status")
        if reply.process != asked.process:
            raise SikkerGuardError("the service has ended meanwhile and was started again; ask once more")
        found = reply.read_json()
        if found["pullAnswered"] >= number:
            if found["lastPullError"]:
                raise SikkerGuardError(f"the pull failed: {printable(found['lastPullError'], MAX_LINE_LENGTH)}")
            doing = "Dry run: would be blocking" if found["dryRun"] else "Blocking"
            print(f"{doing} {int(found['blockedIps'])} IPs")
            return Outcome.FAILED if complaint else Outcome.FINE
        if (current := _describe_step(found)) != step:
            step, since = current, now
        if step and step != mentioned and now - since >= step_seconds:
            warn(step)
            mentioned = step
        time.sleep(_POLL_SECONDS)
    raise SikkerGuardError(f"the pull has not ended within {_PULL_SECONDS:g} s; 'sikkerguard status' tells when it has")


def _describe_step(found: dict[str, Any]) -> str:
    """What the pull waits for; empty where it is about to begin."""
    if found["onTrial"]:
        return "waiting for the trial of the list ..."
    return "waiting for SikkerAPI's list ..." if found["pulling"] else ""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accept", action="store_true", help="take the list once, however much it grew or shrank")


def _run(options: argparse.Namespace) -> Outcome:
    from sikkerguard.cli.service_client import make_client

    return pull(make_client(options), accept=options.accept)


COMMAND = Command("pull", "have the running service pull the list now", _run, _add_options)
