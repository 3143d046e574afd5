"""Kinds of settings: for each, how a text becomes a value and how a value is written as a text again.

A reader raises `ValueError` with a sentence that lacks its full stop.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.net.address import Interval, parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.intervals import merge
from sikkerguard.core.net.special import GLOBAL_UNICAST_V6

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Value = TypeVar("_Value")

_DURATION = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MIN_INTERVAL = 10.0
_MAX_INTERVAL = 366 * 86400.0
# More entries than this are a list, and should be ranges.
_MAX_WHITELIST = 4096
_WHOLE = {Family.V4: "all IPv4 addresses", Family.V6: "2000::/3"}
_PERCENTAGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%?")
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True, slots=True)
class Kind(Generic[_Value]):
    """How the text of a variable becomes a value, and a value such a text: `read(write(value)) == value`."""

    read: Callable[[str], _Value]
    write: Callable[[_Value], str] = str


def _read_number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise ValueError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


def _read_boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def one_of(*choices: str) -> Kind[str]:
    """One of these words, in any case."""

    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text.lower()

    return Kind(read)


def _read_duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    if len(match[1]) > 8 or int(match[1]) * _SECONDS[match[2]] > _MAX_INTERVAL:
        raise ValueError(f"{text!r} is longer than a year")
    seconds = float(int(match[1]) * _SECONDS[match[2]])
    if seconds < _MIN_INTERVAL:
        raise ValueError(f"{text!r} is shorter than {_MIN_INTERVAL:g} seconds")
    return seconds


def _write_duration(seconds: float) -> str:
    unit = next(unit for unit in "dhms" if not seconds % _SECONDS[unit])
    return f"{seconds / _SECONDS[unit]:.0f}{unit}"


def _read_growth(text: str) -> float:
    try:
        growth = float(text)
    except ValueError:
        growth = 0.0
    if not 1 < growth <= 1000:
        raise ValueError(f"{text!r} is not a number over 1, such as 2.0")
    return growth


def _read_percentage(text: str) -> float:
    match = _PERCENTAGE.fullmatch(text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a percentage over 0 and up to 100, such as 2%")
    return share


def _read_url(text: str) -> str:
    # urlsplit drops tabs and line ends without a word.
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


def _read_whitelist(text: str) -> tuple[AllowEntry, ...]:
    entries, faults = [], []
    items = text.replace(",", " ").split()
    if len(items) > _MAX_WHITELIST:
        raise ValueError(f"{len(items)} entries are more than the {_MAX_WHITELIST} that fit; join some into ranges")
    for item in items:
        try:
            family, prefix = parse_prefix(item)
            if not prefix.length:
                raise ValueError("would allow every address there is")
            entries.append(AllowEntry(family, prefix, "SIKKER_WHITELIST"))
        except ValueError as error:
            faults.append(f"{item!r}: {error}")
    if not faults:
        faults = [
            f"together the entries would allow half of {_WHOLE[family]} or more"
            for family in Family
            if _covers_half(family, entries)
        ]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(entries)


def _covers_half(family: Family, entries: list[AllowEntry]) -> bool:
    """Whether half of the family's addresses or more are allowed; of IPv6 only what is assigned counts."""
    whole = GLOBAL_UNICAST_V6 if family is Family.V6 else Interval(0, (1 << family.bits) - 1)
    covered = sum(
        max(0, min(last, whole.last) - max(first, whole.first) + 1)
        for first, last in merge(
            Interval(entry.prefix.first, entry.prefix.last(family)) for entry in entries if entry.family is family
        )
    )
    return 2 * covered >= whole.last - whole.first + 1


def _write_whitelist(entries: tuple[AllowEntry, ...]) -> str:
    # The text of an entry is its range, and behind a space why it is allowed.
    return ",".join(str(entry).partition(" ")[0] for entry in entries)


def _read_ports(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_read_number(item, 1, 65535) for item in text.replace(",", " ").split()))


def _read_port_map(text: str) -> Mapping[int, str]:
    from sikkerguard.core.ports.lookup import parse_port_map  # a table of 390 ports, needed where one is mapped

    return parse_port_map(text)


def _write_port_map(services: Mapping[int, str]) -> str:
    from sikkerguard.core.ports.lookup import write_port_map

    return write_port_map(services)


def _read_path(text: str) -> Path:
    # Whether it can be read shows each time that it is: a list that comes later is taken then.
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def _read_local_address(text: str) -> tuple[str, int]:
    host, colon, port_text = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        local = bool(colon) and ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{text!r} is not a local address and port, such as 127.0.0.1:8080")
    return host, _read_number(port_text, 1, 65535)


def _write_local_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _mask_key(key: str) -> str:
    """The tier's prefix, which is no secret and helps to tell keys apart, and nothing else."""
    if not key:
        return "(not set)"
    prefix = re.match(r"sk_[a-z]+_", key)
    return f"{prefix[0] if prefix else ''}********"


BOOLEAN = Kind(_read_boolean, lambda value: str(value).lower())
SCORE = Kind(lambda text: _read_number(text, 1, 100))
DURATION = Kind(_read_duration, _write_duration)
GROWTH = Kind(_read_growth, lambda growth: f"{growth:.15g}")
PERCENTAGE = Kind(_read_percentage, lambda share: f"{100 * share:.12g}%")
URL = Kind(_read_url)
WHITELIST = Kind(_read_whitelist, _write_whitelist)
PORTS = Kind(_read_ports, lambda ports: ",".join(map(str, ports)))
PORT_MAP = Kind(_read_port_map, _write_port_map)
PATH = Kind(_read_path)
OPTIONAL_PATH: Kind[Path | None] = Kind(_read_path, lambda path: "" if path is None else str(path))
LOCAL_ADDRESS = Kind(_read_local_address, _write_local_address)
# Where the key is, and what it is, is found in `key.py`; it is written so that it can't be read again.
KEY = Kind(str, _mask_key)
