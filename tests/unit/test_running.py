"""The wiring, as far as it can be seen without a service."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from sikkerguard.config import Config
from sikkerguard.edges import last_good
from sikkerguard.running import _client, _KeptSettings
from tests.laboratory import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_whoever_asks_at_the_same_moment_gets_the_same_client() -> None:
    together = threading.Barrier(8)

    def ask() -> object:
        together.wait(5)
        return _client(Config(api_url="http://192.0.2.80", api_key="sk_free_same_moment"))

    with ThreadPoolExecutor(8) as pool:
        found = [job.result() for job in [pool.submit(ask) for _ in range(8)]]
    assert len({id(each) for each in found}) == 1


def test_good_settings_are_kept_and_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(state_dir=tmp_path, texts={"SIKKER_SCORE_MIN": "70"})
    kept = _KeptSettings(config)
    kept.keep(config)
    wait_for("the file", lambda: last_good.load(tmp_path) == {"SIKKER_SCORE_MIN": "70"})
    kept.keep(replace(config, texts=None))
    kept.keep(replace(config, texts={}))
    wait_for("the file", lambda: last_good.load(tmp_path) == {})
    # Nothing is kept of a dry run.
    dry = replace(config, dry_run=True)
    _KeptSettings(dry).keep(dry)
    # A disk that refuses is told, and ends nothing.
    gone = replace(config, state_dir=tmp_path / "gone")
    _KeptSettings(gone).keep(gone)
    wait_for("a word", lambda: "The settings could not be kept on disk (No such file or directory)" in caplog.text)
    assert last_good.load(tmp_path) == {}
