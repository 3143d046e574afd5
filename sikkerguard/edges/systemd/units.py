"""What systemd knows of our unit, for commands that find no service."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNIT = "sikkerguard.service"
# sd_booted(3): this directory is there where systemd is the init.
_BOOTED = Path("/run/systemd/system")
_ANSWER_SECONDS = 2.0


def unit_properties(
    booted: Path = _BOOTED,
    words: Sequence[str] = ("systemctl", "show", "--property=LoadState,ActiveState,StatusText", _UNIT),
) -> dict[str, str]:
    """`LoadState`, `ActiveState` and `StatusText` of the unit; nothing where systemd can't be asked."""
    if not booted.is_dir():
        return {}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}  # it is a help, and the command has an error to show already
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())
