"""GET /v1/key/check/{ip}: what is known of one address, in the fields that the official client reads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.standin.entries import SEVERITIES

if TYPE_CHECKING:
    from tests.standin.entries import Entry


def reputation(address: str, entry: Entry | None) -> dict[str, object]:
    """The answer for `address`; whatever the served list doesn't tell is null, 0 or empty."""
    if entry is None:
        return _answer(address)
    seen = datetime.fromtimestamp(entry.last_seen, UTC).isoformat()
    severity = SEVERITIES[entry.severity_rank]
    return _answer(
        address,
        found=True,
        confidenceLevel=entry.confidence,
        geolocation=_geolocation(entry),
        firstSeen=seen,
        lastSeen=seen,
        totalSessions=entry.sessions,
        totalEvents=entry.sessions,
        protocols=[{"protocol": name, "sessions": 0, "events": 0} for name in entry.protocols],
        behaviors=[{"name": "listed", "severity": severity, "count": entry.sessions, "description": None}],
    )


def _answer(address: str, **known: object) -> dict[str, object]:
    unknown: dict[str, object] = {
        "ip": address,
        "found": False,
        "confidenceLevel": 0,
        "geolocation": None,
        "firstSeen": None,
        "lastSeen": None,
        "totalSessions": 0,
        "totalEvents": 0,
        "protocols": [],
        "behaviors": [],
        "primitives": [],
    }
    return unknown | known


def _geolocation(entry: Entry) -> dict[str, object] | None:
    if not (entry.country or entry.asn):
        return None
    return {
        "countryCode": entry.country,
        "countryName": "",
        "city": None,
        "asn": entry.asn or None,
        "asnOrg": entry.asn_org or None,
        "isTor": False,
        "isProxy": False,
    }
