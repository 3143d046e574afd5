"""The rules for the rows of a report."""

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


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row; `fields` names all that was sent."""

    ip: str
    category: str
    protocol: str | None
    comment: str | None
    fields: tuple[str, ...]


def parse_body(body: bytes) -> list[object]:
    """The rows that a report has, from 1 to MOST_ROWS. Raises Refused."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("the body must be JSON") from error
    rows = value.get("reports") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_ROWS:
        raise Refused(f"reports must be an array of 1 to {MOST_ROWS} reports")
    return rows


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
    if isinstance(value, str) and value in CATEGORIES:
        return value
    raise Refused("category is required" if value in (None, "") else "category is unknown")


def _text(value: object, name: str, most: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused(f"{name} must be a string")
    if len(value) > most:
        raise Refused(f"{name} is longer than {most} characters")
    return value
