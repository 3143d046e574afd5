"""The commands that ask the service, and what they say where none answers; over real Unix sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.cli.command import Outcome
from sikkerguard.cli.health import print_health
from sikkerguard.cli.pull import pull
from sikkerguard.cli.service_client import ServiceClient, find_directories
from sikkerguard.cli.status import print_status
from sikkerguard.core.state import LogState, PullResult, PullState, RepairState
from sikkerguard.edges.http import control, control_socket
from sikkerguard.edges.http.control_socket import NAME, Peer
from sikkerguard.errors import SikkerGuardError
from tests.unit.config.reading import reader
from tests.unit.edges.http.test_control import ESCAPES, NOW, SECONDS, STATE, with_control

if TYPE_CHECKING:
    from pathlib import Path

    from sikkerguard.core.state import State
    from tests.unit.edges.http.test_control import Guarded


def pulled(*, answered: int, failure: str = "") -> State:
    """The service after a pull that ended so, and has answered this request."""
    return replace(STATE, pull=PullState(last_pull=PullResult(NOW, failure), pull_answered=answered))


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests is root to the server."""
    peer_of = control_socket.peer_of
    monkeypatch.setattr(control, "peer_of", lambda connection: replace(peer_of(connection), user=0))


def test_the_commands_say_what_the_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask(made: Guarded) -> None:
        assert await made.command(print_status, as_json=True) is Outcome.FINE
        assert json.loads(capsys.readouterr().out) == made.status()
        assert await made.command(print_status, as_json=False) is Outcome.FINE
        shown = capsys.readouterr().out.splitlines()
        assert "Status:           active" in shown
        assert "Uptime:           2h 15m" in shown
        assert await made.command(print_health) is Outcome.FINE
        assert capsys.readouterr().out == "OK\n"
        made.reasons = ("No list is in force yet.",)
        assert await made.command(print_health) is Outcome.FAILED
        assert capsys.readouterr().out == "No list is in force yet.\n"
        assert await made.command(print_status, as_json=False) is Outcome.FAILED
        assert "Trouble:          No list is in force yet." in capsys.readouterr().out

    with_control(tmp_path, ask)


@pytest.mark.usefixtures("root")
def test_a_pull_by_other_settings_than_those_that_are_written_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(made: Guarded) -> None:
        assert await made.command(pull, accept=False) is Outcome.FINE
        assert capsys.readouterr() == ("Blocking 8774 IPs\n", "")
        made.complaint = f"The new configuration is not used{ESCAPES}"
        assert await made.command(pull, accept=False) is Outcome.FAILED
        out, err = capsys.readouterr()
        assert out == "Blocking 8774 IPs\n"
        assert err.startswith("sikkerguard: The new configuration is not used?]0;owned")
        assert err.removesuffix("\n").isprintable()

    with_control(tmp_path, ask, state=pulled(answered=9))


@pytest.mark.usefixtures("root")
def test_a_pull_of_a_dry_run_does_not_say_that_it_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask(made: Guarded) -> None:
        assert await made.command(pull, accept=False) is Outcome.FINE
        assert capsys.readouterr() == ("Dry run: would be blocking 8774 IPs\n", "")

    with_control(tmp_path, ask, state=replace(pulled(answered=9), dry_run=True))


@pytest.mark.usefixtures("root")
def test_nothing_that_is_printed_can_act_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = pulled(answered=9, failure=ESCAPES)
    state = replace(state, repair=RepairState(last_repair=ESCAPES), log=LogState(source=ESCAPES))
    printed = []

    async def ask(made: Guarded) -> None:
        for action, options in (
            (print_status, {"as_json": True}),
            (print_status, {"as_json": False}),
            (print_health, {}),
        ):
            assert await made.command(action, **options) is Outcome.FAILED
            printed.append(capsys.readouterr())
        with pytest.raises(SikkerGuardError, match="owned") as caught:
            await made.command(pull, accept=False)
        assert caught.value.args[0].isprintable()

    with_control(tmp_path, ask, state=state, reasons=(f"Bad{ESCAPES}", "Worse."))
    for text in (text for each in printed for text in each):
        assert all(" " <= character <= "~" or character == "\n" for character in text), text
    assert json.loads(printed[0].out)["lastRepair"] == ESCAPES


def test_a_server_that_does_not_answer_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / NAME))
        silent.listen()
        with pytest.raises(SikkerGuardError, match=r"no answer from the service at .*timed out"):
            print_health(ServiceClient([tmp_path], answer_seconds=0.2))


# pull


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("accept", [True, False])
def test_a_pull_shows_what_it_waits_for_and_ends_with_its_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], accept: bool
) -> None:
    async def ask(made: Guarded) -> None:
        made.state = pulled(answered=0, failure="an earlier failure")
        asked = asyncio.create_task(made.command(pull, accept=accept, step_seconds=0.3))
        said = ""
        async with asyncio.timeout(SECONDS):
            for on_trial, line in (
                (False, "waiting for SikkerAPI's list ..."),
                (True, "waiting for the trial of the list ..."),
                # A fetch that a reload has cancelled and begun anew is no end.
                (False, "waiting for SikkerAPI's list ..."),
            ):
                made.state = replace(made.state, on_trial=on_trial, pull=replace(made.state.pull, pulling=True))
                said += f"sikkerguard: {line}\n"
                shown = ""
                while shown != f"sikkerguard: {line}\n":
                    shown += capsys.readouterr().err
                    await asyncio.sleep(0.01)
            made.state = pulled(answered=1)
            assert await asked is Outcome.FINE
        assert capsys.readouterr() == ("Blocking 8774 IPs\n", "")
        assert made.pulls == [accept]

    with_control(tmp_path, ask)


@pytest.mark.usefixtures("root")
def test_a_pull_that_fails_says_why(tmp_path: Path) -> None:
    async def ask(made: Guarded) -> None:
        made.state = pulled(answered=1, failure="SikkerAPI does not know this key (401)")
        with pytest.raises(SikkerGuardError, match=r"^the pull failed: SikkerAPI does not know this key \(401\)$"):
            await made.command(pull, accept=False)

    with_control(tmp_path, ask)


@pytest.mark.usefixtures("root")
def test_a_pull_of_a_service_that_was_started_anew_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = iter(range(10))
    peer_of = control_socket.peer_of
    monkeypatch.setattr(control_socket, "peer_of", lambda found: replace(peer_of(found), process=next(processes)))

    async def ask(made: Guarded) -> None:
        made.state = pulled(answered=5)
        with pytest.raises(SikkerGuardError, match="was started again"):
            await made.command(pull, accept=False)

    with_control(tmp_path, ask)


def test_who_is_not_root_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_of", lambda connection: Peer(1, 4711, frozenset({os.getegid()})))

    async def ask(made: Guarded) -> None:
        with pytest.raises(SikkerGuardError, match=r"Only root may change something: run it as root \(sudo\)\."):
            await made.command(pull, accept=False)
        assert made.pulls == []

    with_control(tmp_path, ask)


# Where nobody answers


def test_where_nobody_answers_the_sentence_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(SikkerGuardError) as caught:
        print_health(ServiceClient([tmp_path / "none", tmp_path], read_unit=dict))
    one, other = tmp_path / "none" / NAME, tmp_path / NAME
    assert str(caught.value) == f"no sikkerguard answers at {one} or {other}; is the service running?"


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (
            {"ActiveState": "inactive", "StatusText": "Waiting for a key: put it there.\x1b[2J"},
            "^Waiting for a key: put it there.\\?",
        ),
        ({"ActiveState": "inactive", "StatusText": ""}, "sikkerguard.service is inactive. Start it: systemctl start"),
        ({"ActiveState": "failed", "StatusText": ""}, "sikkerguard.service is failed. Start it"),
        (
            {"ActiveState": "active", "StatusText": "Blocking"},
            "though sikkerguard.service is active; see why: journalctl",
        ),
        ({"LoadState": "not-found", "ActiveState": "inactive", "StatusText": ""}, "is the service running"),
    ],
)
def test_where_systemd_knows_more_it_is_said(tmp_path: Path, unit: dict[str, str], said: str) -> None:
    service = ServiceClient([tmp_path], read_unit=lambda: {"LoadState": "loaded"} | unit)
    with pytest.raises(SikkerGuardError, match=said):
        print_health(service)


@pytest.mark.parametrize(
    ("environment", "settings", "expected"),
    [
        ({}, "", ["/run/sikkerguard", "/var/lib/sikkerguard"]),
        ({"SIKKER_STATE_DIR": "/a"}, "SIKKER_STATE_DIR=/b\n", ["/run/sikkerguard", "/a"]),
        ({}, "nonsense\nSIKKER_SCORE_MIN=abc\nSIKKER_STATE_DIR='/b'\n", ["/run/sikkerguard", "/b"]),
        ({"SIKKER_STATE_DIR": "relative"}, "", ["/run/sikkerguard", "/var/lib/sikkerguard"]),
        ({"RUNTIME_DIRECTORY": "/run/x:/run/y"}, None, ["/run/x", "/run/sikkerguard", "/var/lib/sikkerguard"]),
        ({"RUNTIME_DIRECTORY": "/run/sikkerguard"}, "", ["/run/sikkerguard", "/var/lib/sikkerguard"]),
        ({"SIKKER_SCORE_MIN": "abc", "SIKKER_NONE": "x"}, "", ["/run/sikkerguard", "/var/lib/sikkerguard"]),
    ],
)
def test_the_places_are_known_whatever_the_settings_are(
    tmp_path: Path, environment: dict[str, str], settings: str | None, expected: list[str]
) -> None:
    file = tmp_path / "settings.env"
    if settings is not None:
        file.write_text(settings)
    assert [str(place) for place in find_directories(environment, reader(environment, file).state_dir())] == expected
