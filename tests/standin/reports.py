"""The rules for report rows, one or ten thousand of them."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass

from tests.standin.messages import Refused

MOST_ROWS = 10_000
MOST_BYTES = 2_000_000
"""The contract says 2 MB; the smaller reading of it, so that a client that stays below is right either way."""

MOST_PROTOCOL = 32
MOST_COMMENT = 1_000

CATEGORIES = (
    "brute_force",
    "port_scan",
    "ddos",
    "web_exploit",
    "sql_injection",
    "phishing",
    "spam",
    "bad_bot",
    "exploited_host",
    "malware",
    "dns_abuse",
    "open_proxy",
    "iot_targeted",
    "spoofing",
    "fraud",
    "other",
)
"""In the order of their numbers, from 1."""


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row: the category by name, whichever way it was sent; `fields` names all that was sent."""

    ip: str
    category: str
    protocol: str | None
    comment: str | None
    fields: tuple[str, ...]


def parse_body(body: bytes) -> dict[str, object]:
    """The JSON object that a report body must be. Raises Refused."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("the body must be JSON") from error
    if not isinstance(value, dict):
        raise Refused("the body must be a JSON object")
    return value


def parse_row(value: object) -> Row:
    """Raises Refused with the sentence that tells the client what is wrong with its row."""
    if not isinstance(value, dict):
        raise Refused("a report must be an object")
    return Row(
        ip=_address(value.get("ip")),
        category=_category(value.get("category")),
        protocol=_text(value.get("protocol"), "protocol", MOST_PROTOCOL),
        comment=_text(value.get("comment"), "comment", MOST_COMMENT),
        fields=tuple(sorted(value)),
    )


def shown_address(value: object) -> str:
    """What a rejected row's `ip` field should repeat to the client."""
    ip = value.get("ip") if isinstance(value, dict) else None
    return ip if isinstance(ip, str) else ""


def _address(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Refused("ip is required")
    try:
        ipaddress.ip_address(value)
    except ValueError as error:
        raise Refused("ip is no valid IPv4 or IPv6 address") from error
    return value


def _category(value: object) -> str:
    if value is None or value == "":
        raise Refused("category is required")
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= len(CATEGORIES):
        return CATEGORIES[value - 1]
    if isinstance(value, str) and value in CATEGORIES:
        return value
    raise Refused("category is unknown")


def _text(value: object, name: str, most: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused(f"{name} must be a string")
    if len(value) > most:
        raise Refused(f"{name} is longer than {most} characters")
    return value
