"""The variables: which there are, and for each from its text to the values of `Config` and back."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.net.address import Interval, parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import merge
from sikkerguard.core.net.special import GLOBAL_UNICAST_V6

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DURATION = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST_INTERVAL = 10.0
# More of them are a list, and should be ranges.
_LONGEST_WHITELIST = 4096
_LONGEST_INTERVAL = 366 * 86400.0
_PERCENTAGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%?")
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_LOG_SOURCES = ("auto", "journald", "kmsg")
_LOG_LEVELS = ("debug", "info", "warning", "error")

# What only concerns words, reports and the page: without a good value there is a default, and the list blocks.
WITHOUT_EFFECT_ON_BLOCKING = frozenset(
    {
        "SIKKER_ALLOW_HTTP",
        "SIKKER_REPORT_ENABLED",
        "SIKKER_REPORT_INTERVAL",
        "SIKKER_REPORT_SPOOFABLE",
        "SIKKER_REPORT_CUSTOM",
        "SIKKER_PORT_MAP",
        "SIKKER_HEALTH_ADDRESS",
        "SIKKER_LOG_SOURCE",
        "SIKKER_LOG_LEVEL",
    }
)
# Who has tried to say something of reports is not to have more of them sent than he may have wanted.
INSTEAD_OF_DEFAULTS: Mapping[str, Mapping[str, object]] = {"SIKKER_REPORT_ENABLED": {"report_enabled": False}}

# Each variable, the field that it fills, and what it is for. SIKKER_API_KEY_FILE fills the same field as the key.
VARIABLES = {
    "SIKKER_API_KEY": "api_key",
    "SIKKER_API_KEY_FILE": "api_key",
    "SIKKER_API_URL": "api_url",
    "SIKKER_ALLOW_HTTP": "allow_http",
    "SIKKER_SCORE_MIN": "score_min",
    "SIKKER_PULL_INTERVAL": "pull_interval",
    "SIKKER_REPORT_ENABLED": "report_enabled",
    "SIKKER_REPORT_INTERVAL": "report_interval",
    "SIKKER_REPORT_SPOOFABLE": "report_spoofable",
    "SIKKER_REPORT_CUSTOM": "report_custom",
    "SIKKER_WHITELIST": "whitelist",
    "SIKKER_SSH_PORTS": "ssh_ports",
    "SIKKER_DRY_RUN": "dry_run",
    "SIKKER_PORT_MAP": "port_map",
    "SIKKER_CUSTOM_BLACKLIST": "custom_blacklist",
    "SIKKER_MAX_GROWTH": "max_growth",
    "SIKKER_MAX_COVERAGE": "max_coverage",
    "SIKKER_HEALTH_ADDRESS": "health_address",
    "SIKKER_STATE_DIR": "state_dir",
    "SIKKER_LOG_SOURCE": "log_source",
    "SIKKER_LOG_LEVEL": "log_level",
}


def written(name: str, value: object) -> str:
    """The value of the field `name`, as its variable would be set to it."""
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_interval") and isinstance(value, float):
        unit = next(unit for unit in "dhms" if not value % _SECONDS[unit])
        return f"{value / _SECONDS[unit]:.0f}{unit}"
    if name == "whitelist" and isinstance(value, tuple):
        return ",".join(str(entry).partition(" ")[0] for entry in value)
    if name == "ssh_ports" and isinstance(value, tuple):
        return ",".join(map(str, value))
    if name == "port_map" and isinstance(value, dict):
        from sikkerguard.core.services.lookup import write_port_map  # a table of 390 ports, as below

        return write_port_map(value)
    if name == "max_coverage" and isinstance(value, float):
        return f"{100 * value:.12g}%"
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def _number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise ValueError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    if len(match[1]) > 8 or int(match[1]) * _SECONDS[match[2]] > _LONGEST_INTERVAL:
        raise ValueError(f"{text!r} is longer than a year")
    seconds = float(int(match[1]) * _SECONDS[match[2]])
    if seconds < _SHORTEST_INTERVAL:
        raise ValueError(f"{text!r} is shorter than {_SHORTEST_INTERVAL:g} seconds")
    return seconds


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text.lower()

    return read


def _growth(text: str) -> float:
    try:
        growth = float(text)
    except ValueError:
        growth = 0.0
    if not 1 < growth <= 1000:
        raise ValueError(f"{text!r} is not a number over 1, such as 2.0")
    return growth


def _share(text: str) -> float:
    """A percentage, as a number from 0 to 1."""
    match = _PERCENTAGE.fullmatch(text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a percentage over 0 and up to 100, such as 2%")
    return share


def _url(text: str) -> str:
    # urlsplit would drop tabs and line ends without a word.
    if not all(character.isprintable() and not character.isspace() for character in text):
        raise ValueError(f"{text!r} has a space or a control character")
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"{text!r} is not an address that begins with https://")
    if parts.username is not None or "?" in text or "#" in text:
        raise ValueError("it may name neither a user, nor a query, nor a fragment")
    if parts.port == 0:
        raise ValueError("port 0 can't be connected to")
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(f"{parts.hostname!r} is not the name of a host") from None
    return parts.scheme + text[len(parts.scheme) :].rstrip("/")


def _whitelist(text: str) -> tuple[AllowEntry, ...]:
    entries, faults = [], []
    items = text.replace(",", " ").split()
    if len(items) > _LONGEST_WHITELIST:
        raise ValueError(f"{len(items)} entries are more than the {_LONGEST_WHITELIST} that fit; join some into ranges")
    for item in items:
        try:
            family, prefix = parse_prefix(item)
            if not prefix.length:
                raise ValueError("would allow every address there is")
            entries.append(AllowEntry(family, prefix, "SIKKER_WHITELIST"))
        except ValueError as error:
            faults.append(f"{item!r}: {error}")
    if not faults:
        faults = [_half_of_all(family) for family in Family if _covers_half(family, entries)]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(entries)


def _covers_half(family: Family, entries: list[AllowEntry]) -> bool:
    """Whether these leave less than half of the family's addresses to be blocked."""
    whole = GLOBAL_UNICAST_V6 if family is Family.V6 else Interval(0, (1 << family.bits) - 1)
    covered = sum(
        max(0, min(last, whole.last) - max(first, whole.first) + 1)
        for first, last in merge(
            Interval(entry.prefix.first, entry.prefix.last(family)) for entry in entries if entry.family is family
        )
    )
    return 2 * covered >= whole.last - whole.first + 1


def _half_of_all(family: Family) -> str:
    what = "2000::/3" if family is Family.V6 else "all IPv4 addresses"
    return f"together the entries would allow half of {what} or more"


def _ssh_ports(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_number(item, 1, 65535) for item in text.replace(",", " ").split()))


def _port_map(text: str) -> Mapping[int, str]:
    from sikkerguard.core.services.lookup import parse_port_map  # a table of 390 ports, needed where one is mapped

    return parse_port_map(text)


def _custom_blacklist(text: str) -> Path:
    # Whether it can be read shows when it is, again and again: until then its last good version counts.
    return _absolute(text)


def _absolute(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def _health_address(text: str) -> dict[str, object]:
    host, colon, port_text = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        local = bool(colon) and ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{text!r} is not a local address and port, such as 127.0.0.1:8080")
    return {"health_host": host, "health_port": _number(port_text, 1, 65535)}


def _field(name: str, read: Callable[[str], object]) -> Callable[[str], dict[str, object]]:
    return lambda text: {name: read(text)}


# For each variable but the key's, what makes values of its text, by the names of their fields; raises `ValueError` with
# a sentence that lacks its full stop.
READERS: dict[str, Callable[[str], dict[str, object]]] = {
    "SIKKER_API_URL": _field("api_url", _url),
    "SIKKER_ALLOW_HTTP": _field("allow_http", _boolean),
    "SIKKER_SCORE_MIN": _field("score_min", lambda text: _number(text, 1, 100)),
    "SIKKER_PULL_INTERVAL": _field("pull_interval", _duration),
    "SIKKER_REPORT_ENABLED": _field("report_enabled", _boolean),
    "SIKKER_REPORT_INTERVAL": _field("report_interval", _duration),
    "SIKKER_REPORT_SPOOFABLE": _field("report_spoofable", _boolean),
    "SIKKER_REPORT_CUSTOM": _field("report_custom", _boolean),
    "SIKKER_WHITELIST": _field("whitelist", _whitelist),
    "SIKKER_SSH_PORTS": _field("ssh_ports", _ssh_ports),
    "SIKKER_DRY_RUN": _field("dry_run", _boolean),
    "SIKKER_PORT_MAP": _field("port_map", _port_map),
    "SIKKER_CUSTOM_BLACKLIST": _field("custom_blacklist", _custom_blacklist),
    "SIKKER_MAX_GROWTH": _field("max_growth", _growth),
    "SIKKER_MAX_COVERAGE": _field("max_coverage", _share),
    "SIKKER_HEALTH_ADDRESS": _health_address,
    "SIKKER_STATE_DIR": _field("state_dir", _absolute),
    "SIKKER_LOG_SOURCE": _field("log_source", _one_of(_LOG_SOURCES)),
    "SIKKER_LOG_LEVEL": _field("log_level", _one_of(_LOG_LEVELS)),
}
