"""`sikkerguard config`: what it prints, and what it takes for wrong."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from sikkerguard.cli.command import Outcome
from sikkerguard.cli.config import check_all, check_key, print_all
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import ConfigError
from tests.unit.config.reading import reader

if TYPE_CHECKING:
    from pathlib import Path

KEY = {"SIKKER_API_KEY": "sk_free_secret"}


def test_every_setting_is_printed_and_the_key_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_all(reader({**KEY, "SIKKER_SCORE_MIN": "70", "SIKKER_COLOUR": "red"})) is Outcome.FINE
    shown = capsys.readouterr()
    assert "SIKKER_API_KEY=sk_free_********\n" in shown.out
    assert "SIKKER_SCORE_MIN=70\n" in shown.out
    assert shown.err == "sikkerguard: SIKKER_COLOUR is not a variable of SikkerGuard, and is ignored.\n"


def test_without_a_key_the_rest_is_printed_and_the_want_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="SIKKER_API_KEY is not set"):
        print_all(reader({"SIKKER_SCORE_MIN": "70"}))
    assert "SIKKER_SCORE_MIN=70\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="SIKKER_SCORE_MIN: '0'"):
        print_all(reader({"SIKKER_SCORE_MIN": "0"}))
    assert capsys.readouterr().out == ""


def test_a_check_prints_nothing_but_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_all(reader(KEY)) is Outcome.FINE
    assert capsys.readouterr() == ("", "")
    assert check_all(reader({**KEY, "SIKKER_PORT_MAP": "2222=sssh"})) is Outcome.FINE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("sikkerguard: SIKKER_PORT_MAP: 'sssh' is a name of your own")
    with pytest.raises(ConfigError, match="anyone could read the key"):
        check_all(reader({**KEY, "SIKKER_API_URL": "http://192.0.2.80"}))


def test_systemd_is_told_that_the_service_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = reader({"SIKKER_STATE_DIR": str(tmp_path / "state")})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
        assert check_key(state) is Outcome.FAILED
        sentence = capsys.readouterr().err.removesuffix("\n")
        assert sentence.startswith("Waiting for a key, and starting by itself once there is one: put yours into ")
        assert manager.recv(4096).decode() == f"STATUS={sentence}"
    assert check_key(state, {"INVOCATION_ID": "0"}) is Outcome.FAILED
    assert capsys.readouterr().err == f"{sentence}\n"


def test_a_service_without_a_key_waits_unless_it_has_run_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"SIKKER_STATE_DIR": str(tmp_path / "state")}
    assert check_key(reader({**state, **KEY})) is Outcome.FINE
    assert capsys.readouterr() == ("", "")
    assert check_key(reader(state), {}) is Outcome.FAILED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("sikkerguard: There is no key: put yours into ")
    (tmp_path / "state").mkdir()
    Store(tmp_path / "state").save({})
    assert check_key(reader(state)) is Outcome.FINE
