"""Wrong settings on a host: what is blocked stays so, through a restore and a start, and a word says what is wrong."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from scripts.laboratory.network import API
from scripts.laboratory.tools import wait_for
from tests.kernel.test_life import INNOCENT, LISTED, protect
from tests.kernel.test_restore import reboot, restore
from tests.standin.server import DEMO_KEY

if TYPE_CHECKING:
    from tests.kernel.conftest import Guard


def reasons(guard: Guard) -> str:
    return " ".join(json.loads(guard.cli("status", "--json").stdout or '{"reasons": []}')["reasons"])


def kept(guard: Guard) -> dict[str, str]:
    file = guard.state / "settings.json"
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return found


def test_a_start_that_meets_mistakes_blocks_by_the_last_good_settings(guard: Guard) -> None:
    guard.environment |= {"SIKKER_SCORE_MIN": "60", "SIKKER_WHITELIST": INNOCENT}
    protect(guard, LISTED)
    wait_for("what is kept", lambda: kept(guard).get("SIKKER_SCORE_MIN") == "60")
    assert DEMO_KEY not in (guard.state / "settings.json").read_text()
    reboot(guard)
    assert guard.lab.reaches(LISTED)
    guard.environment |= {"SIKKER_SCORE_MIN": "nonsense", "SIKKER_PORT_MAP": "22=my_ssh", "SIKKER_COLOUR": "red"}
    # A restore takes neither sound settings nor a key.
    key = guard.environment.pop("SIKKER_API_KEY")
    restore(guard)
    assert not guard.lab.passes(LISTED)
    guard.environment["SIKKER_API_KEY"] = key
    guard.expected_errors.append("SIKKER_SCORE_MIN: 'nonsense'")
    guard.start()
    guard.logged("Blocking 1 IPs .from the cache")
    guard.logged("Blocking 1 IPs$", times=2)
    assert not guard.lab.passes(LISTED)
    assert guard.lab.reaches(INNOCENT)
    assert ("scoreMinimum", "60") in guard.standin.record.requests[-1].query
    said = reasons(guard)
    for sentence in ("SIKKER_SCORE_MIN: 'nonsense' is not", "'my_ssh' is no name", "SIKKER_COLOUR is not a variable"):
        assert sentence in said
    # What is wrong is never kept.
    assert kept(guard)["SIKKER_SCORE_MIN"] == "60"
    guard.stop()


def test_without_a_key_a_list_that_was_in_force_stays_and_the_host_is_followed(guard: Guard) -> None:
    protect(guard, LISTED)
    wait_for("what is kept", lambda: kept(guard))
    reboot(guard)
    asked = guard.standin.record.requests_total
    guard.expected_errors.append("SIKKER_API_KEY is not set")
    guard.start(SIKKER_API_KEY="")
    guard.logged("Blocking 1 IPs .from the cache")
    assert not guard.lab.passes(LISTED)
    guard.logged("ERROR SIKKER_API_KEY is not set")
    guard.lab.host.run("ip", "addr", "add", "198.51.100.77/24", "dev", "wan")
    wait_for("the new address", lambda: "198.51.100.77" in guard.lab.sets(), 5)
    assert guard.cli("health").stdout == "OK\n"
    assert guard.standin.record.requests_total == asked
    guard.stop()


def test_http_that_is_not_allowed_stops_pulling_and_never_blocking(guard: Guard) -> None:
    protect(guard, LISTED)
    wait_for("the list on disk", (guard.state / "list.bin").exists)
    reboot(guard)
    asked = guard.standin.record.requests_total
    guard.expected_errors.append("SIKKER_API_URL is http://")
    # What was dropped of pings is reported too.
    guard.environment |= {"SIKKER_REPORT_INTERVAL": "10s", "SIKKER_REPORT_SPOOFABLE": "true"}
    guard.start(SIKKER_ALLOW_HTTP="false", SIKKER_API_URL=f"HTTP://{API}")
    guard.logged("Blocking 1 IPs .from the cache")
    assert not guard.lab.passes(LISTED)
    line = guard.logged(f"ERROR SIKKER_API_URL is http://{API}")
    assert "set SIKKER_ALLOW_HTTP=true" in line
    # About once an hour, as a key that is refused.
    assert re.search(r"stays in force; next try in (1h|[45]\dm)\.$", line), line
    wait_for("a word in the status", lambda: "SIKKER_ALLOW_HTTP=true" in reasons(guard))
    # Nor is anything reported, though there is something to.
    wait_for("a word on reports", lambda: "SIKKER_ALLOW_HTTP" in str(guard.status()["reports"]["trouble"]), 30)
    assert guard.cli("health").stdout == "OK\n"
    assert guard.standin.record.requests_total == asked
    guard.stop()
