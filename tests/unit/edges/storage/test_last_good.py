"""The last good settings on disk: who may read them, and which are believed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from sikkerguard.edges.storage import last_good
from sikkerguard.edges.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {"SIKKER_SCORE_MIN": "70", "SIKKER_WHITELIST": "198.51.100.7", "SIKKER_PORT_MAP": "2222=myssh:ssh"}


def test_what_is_kept_is_there_for_its_user_alone(tmp_path: Path) -> None:
    assert last_good.load(tmp_path) is None
    assert last_good.load(tmp_path / "nowhere") is None
    Store(tmp_path).save(GOOD)
    assert last_good.load(tmp_path) == GOOD
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.stat().st_ino
    Store(tmp_path).save(dict(reversed(GOOD.items())))
    assert file.stat().st_ino == before, "what is there already is not written again"
    Store(tmp_path).save({})
    assert last_good.load(tmp_path) == {}
    assert [file] == [*tmp_path.iterdir()]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"SIKKER_SCORE_MIN": 5}', b"\xff", b"[" * 100_000, b'{"a": '])
def test_a_damaged_one_is_none(content: bytes, tmp_path: Path) -> None:
    Store(tmp_path).save(GOOD)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert last_good.load(tmp_path) is None
    Store(tmp_path).save(GOOD)
    assert last_good.load(tmp_path) == GOOD


def test_neither_a_link_nor_a_pipe_is_followed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    victim = put(tmp_path / "victim", json.dumps(GOOD))
    (state / "settings.json").symlink_to(victim)
    assert last_good.load(state) is None
    (state / ".settings.json.new").symlink_to(victim)
    Store(state).save({})
    assert victim.read_text() == json.dumps(GOOD)
    assert last_good.load(state) == {}
    (state / "settings.json").unlink()
    os.mkfifo(state / "settings.json")
    assert last_good.load(state) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away takes root")
def test_a_file_of_another_user_is_not_believed(tmp_path: Path) -> None:
    Store(tmp_path).save(GOOD)
    os.chown(tmp_path / "settings.json", 65534, 65534)
    assert last_good.load(tmp_path) is None


def test_a_disk_that_refuses_is_said_and_leaves_what_was(tmp_path: Path) -> None:
    put(tmp_path / "file", "no directory")
    with pytest.raises(OSError, match="Not a directory"):
        Store(tmp_path / "file").save(GOOD)


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a directory away takes root")
def test_what_root_keeps_there_is_the_directory_owner_s(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    Store(tmp_path).save(GOOD)
    assert (tmp_path / "settings.json").stat().st_uid == 65534
    assert last_good.load(tmp_path) == GOOD


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path
