"""`sikkerguard health`: OK while the list blocks, or why not; for a container's health check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.cli.command import Command, Outcome, print_lines

if TYPE_CHECKING:
    import argparse

    from sikkerguard.cli.service_client import ServiceClient


def print_health(service: ServiceClient) -> Outcome:
    """Print OK where the list blocks, else the reasons.

    Raises:
        SikkerGuardError: no service answers.
    """
    reply = service.ask("/healthz")
    print_lines(reply.body.decode("utf-8", "replace").splitlines())
    return Outcome.FINE if reply.code == 200 else Outcome.FAILED


def _run(options: argparse.Namespace) -> Outcome:
    from sikkerguard.cli.service_client import make_client

    return print_health(make_client(options))


COMMAND = Command("health", "exit with 0 if the list blocks", _run)
