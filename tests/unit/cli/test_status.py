"""What the service says of itself, in words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.cli.command import Outcome
from sikkerguard.cli.service_client import Reply, ServiceClient
from sikkerguard.cli.status import print_status
from sikkerguard.core.health import status
from sikkerguard.core.ports.protocols import REPLY
from sikkerguard.core.traffic.sample import UNATTRIBUTED
from tests.unit.core.test_health import BLOCKING, NOW

if TYPE_CHECKING:
    from sikkerguard.core.state import State


class Client(ServiceClient):
    """Of a service whose state this is."""

    def __init__(self, state: State) -> None:
        super().__init__(())
        self._found = status(state, NOW, (), {443: "ssh"})

    def ask(self, target: str, method: str = "GET") -> Reply:
        return Reply(200, json.dumps(self._found).encode(), 1)


@pytest.mark.parametrize("trouble", ["", "SikkerAPI can't be reached; 9 rows wait."])
def test_how_reporting_stands_is_said_in_words(trouble: str, capsys: pytest.CaptureFixture[str]) -> None:
    troubled = replace(BLOCKING, reports=replace(BLOCKING.reports, trouble=trouble))
    assert print_status(Client(troubled), as_json=False) is Outcome.FINE
    shown = capsys.readouterr().out.splitlines()
    numbers = "sent 247, withheld 31, rejected 2, unanswered 1, waiting 9, quota remaining 4,750, dropped 5"
    assert f"Reports:          {numbers}" in shown
    assert [line for line in shown if line.startswith("Reports wait:")] == (
        [f"Reports wait:     {trouble}"] if trouble else []
    )


def test_replies_are_shown_with_the_port_they_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    ports = (((REPLY, 443), 5), ((REPLY, UNATTRIBUTED), 4))
    replied = replace(BLOCKING, traffic=replace(BLOCKING.traffic, top_ports=ports))
    assert print_status(Client(replied), as_json=False) is Outcome.FINE
    lines = capsys.readouterr().out.splitlines()
    assert "Replies dropped:  67" in lines
    assert "Ports today:      443/TCP (reply): 5, any (further replies): 4" in lines


def test_a_small_coverage_needs_no_exponent(capsys: pytest.CaptureFixture[str]) -> None:
    few = replace(BLOCKING, lists=replace(BLOCKING.lists, covered_v4=4.25e-7, covered_v6=0.0))
    assert print_status(Client(few), as_json=False) is Outcome.FINE
    assert "Covered:          less than 0.001% of IPv4, 0% of IPv6" in capsys.readouterr().out.splitlines()
