"""`sikkerguard status`: what the service says of itself, as lines or as JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sikkerguard.cli.command import Command, Outcome, add_json_option, print_json, print_lines
from sikkerguard.core.lists.coverage import percent_text

if TYPE_CHECKING:
    import argparse

    from sikkerguard.cli.service_client import ServiceClient

# The members of the status (core.health.status) that have a line, in its order, each with its label.
_LABELS = {
    "status": "Status",
    "blockedIps": "Blocked",
    "listVerified": "List verified",
    "lastPull": "Last pull",
    "lastPullError": "Last pull failed",
    "nextPull": "Next pull",
    "droppedPackets": "Packets dropped",
    "droppedBytes": "Bytes dropped",
    "droppedPacketsToday": "Packets today",
    "droppedBytesToday": "Bytes today",
    "droppedUnnamed": "Not told apart",
    "droppedReplies": "Replies dropped",
    "sources": "Sources today",
    "topPorts": "Ports today",
    "logSource": "Log source",
    "logLost": "Log lines lost",
    "reports": "Reports",
    "lastReport": "Last report",
    "leftOut": "Left out",
    "allowlist": "Safety whitelist",
    "repairs": "Repairs",
    "lastRepair": "Last repair",
    "dryRun": "Dry run",
    "uptime": "Uptime",
    "version": "Version",
}


def print_status(service: ServiceClient, *, as_json: bool) -> Outcome:
    """Print how the service is.

    Raises:
        SikkerGuardError: no service answers.
    """
    found = service.ask("/status").read_json()
    if as_json:
        print_json(found)
    else:
        print_lines(_format_lines(found))
    return Outcome.FAILED if found["reasons"] else Outcome.FINE


def _format_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, label in _LABELS.items():
        if name == "leftOut":
            lines += _format_lists(found)
        if found.get(name) not in (None, "", []):
            lines.append(_format_line(label, _format_value(found[name])))
    if trouble := found["reports"].get("trouble"):
        # The host is protected all the same: this is no reason to call it unhealthy.
        lines.append(_format_line("Reports wait", trouble))
    return lines + [_format_line("Trouble", reason) for reason in found["reasons"]]


def _format_line(label: str, value: str) -> str:
    return f"{label + ':':18}{value}"


def _format_lists(found: dict[str, Any]) -> list[str]:
    lines = [_format_line("Covered", _format_coverage(found["coverage"]))]
    for source in found["lists"]:
        since = f", taken {source['taken']}" if source["taken"] else ""
        coverage = _format_coverage(source["coverage"])
        lines.append(_format_line("List", f"{source['name']}: {source['entries']:,} entries, {coverage}{since}"))
        if source["trouble"]:
            # The host is protected all the same, by the version before it.
            lines.append(_format_line("List trouble", f"{source['name']}: {source['trouble']}"))
    return lines


def _format_coverage(shares: dict[str, float]) -> str:
    return f"{percent_text(shares['v4'])} of IPv4, {percent_text(shares['v6'])} of IPv6"


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        # A member that is a sentence has a line of its own.
        return ", ".join(
            f"{_split_words(name)} {_format_value(each)}"
            for name, each in value.items()
            if each is not None and not isinstance(each, str)
        )
    if isinstance(value, list):
        return ", ".join(each if isinstance(each, str) else _format_port(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _format_port(port: dict[str, Any]) -> str:
    place = f"{port['port']}/{port['protocol']}" if port["port"] is not None else port["protocol"]
    return f"{place} ({port['service']}): {port['packets']:,}"


def _split_words(name: str) -> str:
    """`quota remaining` for quotaRemaining."""
    return re.sub("[A-Z]", lambda letter: f" {letter[0].lower()}", name)


def _run(options: argparse.Namespace) -> Outcome:
    from sikkerguard.cli.service_client import make_client

    return print_status(make_client(options), as_json=options.json)


COMMAND = Command("status", "show what the running service does", _run, add_json_option)
