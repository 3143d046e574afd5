"""What changes between a look and the end of the service that looked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sikkerguard.edges.lookout import look_again, note_look

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(name="key")
def _key(tmp_path: Path) -> Path:
    """A file that was there long before."""
    (tmp_path / "state").mkdir()
    key = tmp_path / "api-key"
    key.write_text("sk_free_0123")
    note_look(tmp_path / "state")
    # A file's ctime can't be set back: let the look be later instead.
    later = key.stat().st_ctime_ns + 1_000_000_000
    os.utime(tmp_path / "state/looked", ns=(later, later))
    return key


def begins_again(state: Path) -> bool:
    return (state / "look-again").exists()


def test_what_was_there_already_is_no_reason(key: Path, tmp_path: Path) -> None:
    assert not look_again(tmp_path / "state", (key, tmp_path / "nothing"))
    assert not begins_again(tmp_path / "state")


def test_a_state_directory_that_can_not_be_used_is_in_nobodys_way(key: Path, tmp_path: Path) -> None:
    note_look(tmp_path / "nothing")
    assert not look_again(tmp_path / "nothing", (key,))


@pytest.mark.parametrize("change", ["write", "rights", "replace", "same moment"])
def test_what_changed_since_is_looked_at_again_once(key: Path, tmp_path: Path, change: str) -> None:
    state = tmp_path / "state"
    if change == "same moment":
        now = key.stat().st_ctime_ns
        os.utime(state / "looked", ns=(now, now))
    else:
        os.utime(state / "looked", ns=(0, 0))
    if change == "write":
        key.write_text("sk_free_4567")
    elif change == "rights":
        key.chmod(0o640)
    elif change == "replace":
        (tmp_path / "new").write_text("sk_free_4567")
        (tmp_path / "new").replace(key)
    assert look_again(state, (tmp_path / "nothing", key))
    assert begins_again(state)
    note_look(state)
    assert not begins_again(state)
