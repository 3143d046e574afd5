"""What systemd says of our unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.edges.systemd.units import unit_properties

if TYPE_CHECKING:
    from pathlib import Path


def test_what_systemd_says_is_read_and_its_absence_is_nothing(tmp_path: Path) -> None:
    text = "LoadState=loaded\nActiveState=active\nStatusText=a=b\n"
    assert unit_properties(tmp_path, ("printf", "%s", text)) == {
        "LoadState": "loaded",
        "ActiveState": "active",
        "StatusText": "a=b",
    }
    assert unit_properties(tmp_path, ("false",)) == {}
    assert unit_properties(tmp_path, (str(tmp_path / "none"),)) == {}
    assert unit_properties(tmp_path / "none", ("printf", "%s", text)) == {}
