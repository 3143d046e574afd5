"""The commands that ask the running service: `status`, `health` and `pull`."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Any

from sikkerguard.edges.store import Store
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    from sikkerguard.config import Config

_ANSWER_SECONDS = 5.0
# A pull with its self-test and the largest list takes well under this, or is reported as still under way.
_PULL_SECONDS = 120.0
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
    "uptime": "Uptime (s)",
    "version": "Version",
}


def status(config: Config, *, as_json: bool) -> int:
    """Print what the service says of itself; 1 if it is not healthy."""
    found = _status(config)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, label in _LABELS.items():
            if name == "leftOut":
                _show_lists(found)
            if found.get(name) not in (None, "", []):
                print(f"{label + ':':18}{_readable(found[name])}")
        if trouble := found["reports"].get("trouble"):
            # The host is protected all the same: this is no reason to call it unhealthy.
            print(f"{'Reports wait:':18}{trouble}")
        for reason in found["reasons"]:
            print(f"{'Not healthy:':18}{reason}")
    return 1 if found["reasons"] else 0


def health(config: Config) -> int:
    """Print OK, or the reasons why not; 1 in that case."""
    code, body = _get(config, "/healthz")
    print(body.decode("utf-8", "replace"), end="")
    return 0 if code == 200 else 1


def pull(config: Config, *, accept: bool) -> int:
    """Have the service read its configuration and pull now; wait for the outcome and print it."""
    store = Store(config.state_dir)
    pid = store.service_pid()
    if pid is None:
        raise SikkerGuardError(f"no sikkerguard runs on {config.state_dir}; start it first")
    now = _status(config)
    # One that is under way does not know of our wish: the outcome waited for is that of the pull behind it.
    wanted = now["pulls"] + (2 if now["pulling"] else 1)
    try:
        if accept:
            store.request_acceptance()
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise SikkerGuardError(
            f"the service (process {pid}) can't be told to pull ({error.strerror}); ask as root or as its user"
        ) from error
    deadline = time.monotonic() + _PULL_SECONDS
    while time.monotonic() < deadline:
        found = _status(config)
        if found["pulls"] >= wanted:
            if found["lastPullError"]:
                raise SikkerGuardError(f"the pull failed: {found['lastPullError']}")
            print(f"Blocking {found['blockedIps']} IPs")
            return 0
        time.sleep(0.2)
    raise SikkerGuardError(f"the pull has not ended within {_PULL_SECONDS:g} s; 'sikkerguard status' tells when it has")


def _show_lists(found: dict[str, Any]) -> None:
    if "coverage" not in found:
        return  # a service of 0.1.0, until it is restarted
    print(f"{'Covered:':18}{_coverage(found['coverage'])}")
    for source in found["lists"]:
        since = f", taken {source['taken']}" if source["taken"] else ""
        print(f"{'List:':18}{source['name']}: {source['entries']:,} entries, {_coverage(source['coverage'])}{since}")
        if source["trouble"]:
            # The host is protected all the same, by the version before it.
            print(f"{'List trouble:':18}{source['name']}: {source['trouble']}")


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


def _status(config: Config) -> dict[str, Any]:
    code, body = _get(config, "/status")
    if code != 200:
        raise SikkerGuardError(f"{_place(config)} answered {code} where a status was asked for; see the service's log")
    found: dict[str, Any] = json.loads(body)
    return found


def _get(config: Config, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(config.health_host, config.health_port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise SikkerGuardError(
            f"no answer from {_place(config)} ({error}); is the service running, and on this SIKKER_HEALTH_ADDRESS?"
        ) from error
    finally:
        connection.close()
    if not response.headers.get("Server", "").startswith("SikkerGuard/"):
        raise SikkerGuardError(f"{_place(config)} is not sikkerguard; does another program have that port?")
    return response.status, body


def _place(config: Config) -> str:
    host = f"[{config.health_host}]" if ":" in config.health_host else config.health_host
    return f"{host}:{config.health_port}"
