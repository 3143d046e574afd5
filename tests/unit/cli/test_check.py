"""`sikkerguard check`: what is said of an address."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.cli.check import combine, read_address
from sikkerguard.core.firewall.state import Inspection
from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.lists.sources import LeftOut, ListedSource, VerifiedList
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.errors import ConfigError
from tests.unit.core.lists.test_admission import listing

if TYPE_CHECKING:
    from sikkerguard.cli.check import Finding
    from sikkerguard.core.net.family import Family

STATE = Path("/var/lib/sikkerguard")
LIST = VerifiedList((ListedSource("SikkerAPI", listing("203.0.113.0/24"), 1_700_000_000.0),), 1_800_000_000.0)
DROPPED = Inspection(active=True, listed=True, allowed=False, packets=1234)
NOT_SEEN = Inspection(active=True, listed=False, allowed=False, packets=0)


def parse_one(text: str) -> tuple[Family, int]:
    family, prefix = parse_prefix(text)
    return family, prefix.first


def found(
    text: str, seen: Inspection, verified: VerifiedList | None = LIST, allowlist: Allowlist | None = None
) -> Finding:
    return combine(*read_address(text), verified, allowlist or Allowlist(()), seen)


@pytest.mark.parametrize("text", ["203.0.113", "office.example", "203.0.113.0/24", "2001:db8::/64", ""])
def test_only_one_address_can_be_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="can't be checked"):
        read_address(text)


def test_a_blocked_address_is_said_with_its_entry_and_packets() -> None:
    assert found("203.0.113.7", DROPPED).as_text(STATE) == (
        "203.0.113.7 is blocked.\n"
        "Listed by SikkerAPI as 203.0.113.0/24, since 2023-11-14 22:13 UTC.\n"
        "Packets dropped: 1,234."
    )


def test_an_address_on_no_list_is_not_blocked() -> None:
    assert found("198.51.100.7", NOT_SEEN).as_text(STATE) == "198.51.100.7 is not blocked.\nIt is on no list."


def test_without_a_list_on_disk_nothing_is_said_of_lists() -> None:
    unknown = found("203.0.113.7", NOT_SEEN, None)
    assert unknown.as_text(STATE) == (
        "203.0.113.7 is not blocked.\nNo list is kept in /var/lib/sikkerguard, so it is not known whether it is listed."
    )
    assert asdict(unknown)["listings"] is None


def test_what_keeps_a_listed_address_from_being_blocked_is_said() -> None:
    allowed = Allowlist((AllowEntry(*parse_prefix("203.0.113.7"), "SIKKER_WHITELIST"),))
    seen = Inspection(active=True, listed=True, allowed=True, packets=5)
    shown = found("203.0.113.7", seen, allowlist=allowed)
    assert shown.as_text(STATE).endswith("The allowlist protects it: 203.0.113.7 (SIKKER_WHITELIST).")
    assert (shown.blocked, shown.packets) == (False, 0)
    gone = Inspection(active=False, listed=True, allowed=False, packets=0)
    assert found("203.0.113.7", gone).as_text(STATE).endswith("No rule blocks it now: is the service running?")


def test_an_address_that_is_left_out_is_said_with_the_self_test_that_failed() -> None:
    left_out = LeftOut(*parse_one("203.0.113.7"), "gateway 203.0.113.7 by ping")
    shown = found("203.0.113.7", NOT_SEEN, replace(LIST, left_out=(left_out,))).as_text(STATE)
    assert "It is left out of the list: with it, 'gateway 203.0.113.7 by ping' failed in the trial." in shown
    assert "No rule blocks it now" not in shown


def test_it_has_every_member_for_json() -> None:
    assert asdict(found("203.0.113.7", DROPPED)) == {
        "address": "203.0.113.7",
        "blocked": True,
        "listings": ({"source": "SikkerAPI", "entry": "203.0.113.0/24", "since": 1_700_000_000.0},),
        "allowed_by": None,
        "packets": 1234,
        "left_out": None,
    }
