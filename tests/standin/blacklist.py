"""GET /v1/key/blacklist: its parameters, what they select and the two forms of the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tests.standin.entries import SEVERITIES, Entry
from tests.standin.messages import PLAIN, Answer, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.standin.entries import Catalogue

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_VERSIONS = {"4": 4, "6": 6, "mixed": None}


@dataclass(frozen=True, slots=True)
class Selection:
    """The parameters, understood. An empty set selects nothing in particular; `version` None is both."""

    score_minimum: int = 50
    limit: int | None = None
    plaintext: bool = False
    ignore_whitelist: bool = False
    version: int | None = None
    severity_rank: int = 0
    protocols: frozenset[str] = frozenset()
    only_countries: frozenset[str] = frozenset()
    except_countries: frozenset[str] = frozenset()
    only_asn: frozenset[str] = frozenset()
    except_asn: frozenset[str] = frozenset()

    def admits(self, entry: Entry) -> bool:
        """Whether the entry belongs into the answer. One whose country or ASN isn't known is in no `only`."""
        return (
            entry.confidence >= self.score_minimum
            and (self.ignore_whitelist or not entry.benign)
            and (self.version is None or entry.version == self.version)
            and entry.severity_rank >= self.severity_rank
            and (not self.protocols or not self.protocols.isdisjoint(entry.protocols))
            and (not self.only_countries or entry.country.upper() in self.only_countries)
            and entry.country.upper() not in self.except_countries
            and (not self.only_asn or _asn(entry.asn) in self.only_asn)
            and _asn(entry.asn) not in self.except_asn
        )


def parse_selection(query: Mapping[str, str]) -> Selection:
    """Reads the parameters; unknown ones mean nothing. Raises Refused with the sentence to answer."""
    given = {name: value for name, value in query.items() if value}
    if "onlyCountries" in given and "exceptCountries" in given:
        raise Refused("onlyCountries and exceptCountries can't be used together")
    limit = _whole(given["limit"], "limit", 1, None) if "limit" in given else None
    version = given.get("ipVersion", "mixed")
    if version not in _VERSIONS:
        raise Refused("ipVersion must be 4, 6 or mixed")
    severity = given.get("minSeverity", SEVERITIES[0])
    if severity not in SEVERITIES:
        raise Refused(f"minSeverity must be one of {', '.join(SEVERITIES)}")
    return Selection(
        score_minimum=_whole(given.get("scoreMinimum", "50"), "scoreMinimum", 1, 100),
        limit=limit,
        plaintext=_boolean(given, "plaintext"),
        ignore_whitelist=_boolean(given, "ignoreWhitelist"),
        version=_VERSIONS[version],
        severity_rank=SEVERITIES.index(severity),
        protocols=frozenset(name.lower() for name in _names(given, "protocols")),
        only_countries=frozenset(name.upper() for name in _names(given, "onlyCountries")),
        except_countries=frozenset(name.upper() for name in _names(given, "exceptCountries")),
        only_asn=frozenset(_asn(name) for name in _names(given, "onlyAsn")),
        except_asn=frozenset(_asn(name) for name in _names(given, "exceptAsn")),
    )


def render(catalogue: Catalogue, selection: Selection, *, cap: int, now: float) -> Answer:
    """The selected entries, the worst first, at most `cap` of them (the tier's limit)."""
    limit = cap if selection.limit is None else min(cap, selection.limit)
    chosen = list(islice((entry for entry in catalogue.entries if selection.admits(entry)), limit))
    if selection.plaintext:
        return Answer(200, "".join(f"{entry.ip}\n" for entry in chosen).encode(), PLAIN)
    meta = {
        "generatedAt": int(now),
        "scoreMinimum": selection.score_minimum,
        "limit": limit,
        "count": len(chosen),
    }
    return Answer(200, json.dumps({"meta": meta, "data": [_row(entry) for entry in chosen]}).encode())


def _row(entry: Entry) -> dict[str, object]:
    return {
        "ip": entry.ip,
        "confidenceLevel": entry.confidence,
        "lastSeen": entry.last_seen,
        "sessions": entry.sessions,
        "protocols": list(entry.protocols),
        "countryCode": entry.country or None,
        "asn": entry.asn or None,
        "asnOrg": entry.asn_org or None,
    }


def _whole(text: str, name: str, least: int, most: int | None) -> int:
    # int() alone would take "+5", " 5" and "5_0".
    if text.isascii() and text.isdigit() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
    raise Refused(f"{name} must be a whole number {bounds}")


def _boolean(given: Mapping[str, str], name: str) -> bool:
    text = given.get(name, "false").lower()
    if text not in _BOOLEANS:
        raise Refused(f"{name} must be true or false")
    return _BOOLEANS[text]


def _names(given: Mapping[str, str], name: str) -> list[str]:
    return [part.strip() for part in given.get(name, "").split(",") if part.strip()]


def _asn(text: str) -> str:
    return text.upper().removeprefix("AS")
