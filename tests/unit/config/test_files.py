"""Files of settings: read whole, or refused, and never left open."""

from __future__ import annotations

from pathlib import Path

import pytest

from sikkerguard.config.files import read_text


def test_a_directory_in_the_place_of_a_file_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        with pytest.raises(IsADirectoryError):
            read_text(tmp_path, 100)
    assert len(list(descriptors.iterdir())) == before


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("x" * 100)
    assert read_text(file, 100) == "x" * 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_text(file, 99)
