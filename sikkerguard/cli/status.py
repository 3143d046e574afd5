"""The commands that ask the running service: `status`, `health` and `pull`.

They ask at the control socket, wherever that is, so that they need no settings; and believe nobody but the service.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sikkerguard.config import settings as configuration
from sikkerguard.core.text import printable
from sikkerguard.edges.http import control_socket
from sikkerguard.edges.systemd.units import unit_properties
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_ANSWER_SECONDS = 5.0
_LARGEST_ANSWER = 1_000_000  # bytes
_LONGEST_LINE = 4000
# A pull with its self-test and the largest list takes well under this, or is reported as still under way.
_PULL_SECONDS = 120.0
_LOOK_SECONDS = 0.2
# What is over sooner need not be waited for in words.
_STEP_SECONDS = 1.0
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


def directories(environment: Mapping[str, str], file: Path | None) -> tuple[Path, ...]:
    """Where the control socket may be: where systemd or the image puts it, and the state directory. `file` is the
    settings file, if not the usual one; what is wrong with the settings is not looked at."""
    named = control_socket.runtime_directory(environment)
    places = (named, control_socket.RUNTIME_DIRECTORY, configuration.state_dir(environment, file))
    return tuple(dict.fromkeys(place for place in places if place is not None))


def status(places: Sequence[Path], *, as_json: bool) -> int:
    """Print what the service says of itself; 1 if not all is well."""
    found = _status(places)
    if as_json:
        # What is not ASCII is escaped already, and of what is, this alone is a control character.
        print(json.dumps(found, indent=2).replace("\x7f", "\\u007f"))
    else:
        for line in _lines(found):
            print(printable(line, _LONGEST_LINE))
    return 1 if found["reasons"] else 0


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, label in _LABELS.items():
        if name == "leftOut":
            lines += _lists(found)
        if found.get(name) not in (None, "", []):
            lines.append(f"{label + ':':18}{_readable(found[name])}")
    if trouble := found["reports"].get("trouble"):
        # The host is protected all the same: this is no reason to call it unhealthy.
        lines.append(f"{'Reports wait:':18}{trouble}")
    return lines + [f"{'Trouble:':18}{reason}" for reason in found["reasons"]]


def health(places: Sequence[Path]) -> int:
    """Print OK where the list blocks, or why that can't be said; 1 in that case."""
    reply = _ask(places, "/healthz")
    for line in reply.body.decode("utf-8", "replace").splitlines():
        print(printable(line, _LONGEST_LINE))
    return 0 if reply.code == 200 else 1


def pull(places: Sequence[Path], *, accept: bool) -> int:
    """Have the service read its configuration and pull now; wait for the outcome and print it. The answer is 1 where
    it was pulled by other settings than those that are written."""
    asked = _ask(places, f"/pull?accept={str(accept).lower()}", "POST")
    answer = _object(asked)
    number, complaint = answer["pull"], printable(answer["complaint"], _LONGEST_LINE)
    if complaint:
        print(f"sikkerguard: {complaint}", file=sys.stderr)
    said = waited_for = ""
    since = time.monotonic()
    deadline = since + _PULL_SECONDS
    while (now := time.monotonic()) < deadline:
        reply = _ask(places, "/status")
        if reply.process != asked.process:
            raise SikkerGuardError("the service has ended meanwhile and was started again; ask once more")
        found = _object(reply)
        if found["pullAnswered"] >= number:
            if found["lastPullError"]:
                raise SikkerGuardError(f"the pull failed: {printable(found['lastPullError'], _LONGEST_LINE)}")
            print(f"Blocking {int(found['blockedIps'])} IPs")
            return 1 if complaint else 0
        if (step := _step(found)) != waited_for:
            waited_for, since = step, now
        if step and step != said and now - since >= _STEP_SECONDS:
            print(f"sikkerguard: {step}", file=sys.stderr)
            said = step
        time.sleep(_LOOK_SECONDS)
    raise SikkerGuardError(f"the pull has not ended within {_PULL_SECONDS:g} s; 'sikkerguard status' tells when it has")


def _step(found: dict[str, Any]) -> str:
    """What a pull waits for; nothing where it is about to begin."""
    if found["onTrial"]:
        return "waiting for the trial of the list ..."
    return "waiting for SikkerAPI's list ..." if found["pulling"] else ""


def _lists(found: dict[str, Any]) -> list[str]:
    lines = [f"{'Covered:':18}{_coverage(found['coverage'])}"]
    for source in found["lists"]:
        since = f", taken {source['taken']}" if source["taken"] else ""
        lines.append(
            f"{'List:':18}{source['name']}: {source['entries']:,} entries, {_coverage(source['coverage'])}{since}"
        )
        if source["trouble"]:
            # The host is protected all the same, by the version before it.
            lines.append(f"{'List trouble:':18}{source['name']}: {source['trouble']}")
    return lines


def _coverage(shares: dict[str, float]) -> str:
    return f"{shares['v4']:g}% of IPv4, {shares['v6']:g}% of IPv6"


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        # What is told in a sentence has a line of its own.
        return ", ".join(
            f"{_words(name)} {_readable(each)}"
            for name, each in value.items()
            if each is not None and not isinstance(each, str)
        )
    if isinstance(value, list):
        return ", ".join(each if isinstance(each, str) else _port(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _port(port: dict[str, Any]) -> str:
    place = f"{port['port']}/{port['protocol']}" if port["port"] is not None else port["protocol"]
    return f"{place} ({port['service']}): {port['packets']:,}"


def _words(name: str) -> str:
    """`quota remaining` for quotaRemaining."""
    return re.sub("[A-Z]", lambda letter: f" {letter[0].lower()}", name)


@dataclass(frozen=True, slots=True)
class _Reply:
    """A status code of HTTP, the body, and the process that gave it."""

    code: int
    body: bytes
    process: int


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__("localhost")
        self._connected = connected

    def connect(self) -> None:
        self.sock = self._connected


def _status(places: Sequence[Path]) -> dict[str, Any]:
    return _object(_ask(places, "/status"))


def _object(reply: _Reply) -> dict[str, Any]:
    if reply.code != 200:
        first = reply.body.decode("utf-8", "replace").partition("\n")[0]
        raise SikkerGuardError(printable(first, _LONGEST_LINE) or f"the service answered {reply.code}; see its log")
    try:
        found: dict[str, Any] = json.loads(reply.body)
    except ValueError as error:
        raise SikkerGuardError(f"the service's answer can't be read ({error}); is it of another version?") from error
    return found


def _ask(places: Sequence[Path], target: str, method: str = "GET") -> _Reply:
    refused: SikkerGuardError | None = None
    for place in places:
        path = place / control_socket.NAME
        try:
            connected = control_socket.connect(place, _ANSWER_SECONDS)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            continue
        except PermissionError:
            refused = refused or SikkerGuardError(
                f"{path} is open to root and the service's group only; run it as root (sudo)"
            )
        except control_socket.UntrustedError as error:
            refused = error
        except OSError as error:
            raise SikkerGuardError(f"the service at {path} can't be asked ({error.strerror or error})") from error
        else:
            return _exchange(connected, target, method, path)
    raise refused or SikkerGuardError(_absence(places))


def _exchange(connected: socket.socket, target: str, method: str, path: Path) -> _Reply:
    process = control_socket.peer_of(connected).process
    connection = _Connection(connected)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return _Reply(response.status, response.read(_LARGEST_ANSWER), process)
    except (OSError, http.client.HTTPException) as error:
        raise SikkerGuardError(
            f"no answer from the service at {path} ({error or type(error).__name__}); see its log"
        ) from error
    finally:
        connection.close()


def _absence(places: Sequence[Path]) -> str:
    """That no service answers, and what to do."""
    unit = unit_properties()
    said = printable(unit.get("StatusText", ""), _LONGEST_LINE)
    state = printable(unit.get("ActiveState", ""))
    if state != "active" and said.startswith("Waiting for a key"):
        return said
    sentence = f"no sikkerguard answers at {' or '.join(str(place / control_socket.NAME) for place in places)}"
    if unit.get("LoadState") != "loaded":
        return f"{sentence}; is the service running?"
    if state in ("inactive", "failed"):
        return f"{sentence}: sikkerguard.service is {state}. Start it: systemctl start sikkerguard"
    return f"{sentence}, though sikkerguard.service is {state}; see why: journalctl -u sikkerguard"
