"""The last good settings, kept in the state directory for a start that meets wrong ones. The key is not among them."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "settings.json"
# More than all variables of the longest whitelist need.
_LARGEST = 1 << 20


def load(directory: Path) -> Mapping[str, str] | None:
    """The texts of the variables that were set, by name; None where nothing is kept, or nothing that can be trusted."""
    try:
        handle = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid(), _owner(directory)):
            return None
        try:
            texts = json.loads(file.read(_LARGEST))
        except (OSError, ValueError, RecursionError):
            return None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        return None
    return texts


def _owner(directory: Path) -> int:
    """Whose the directory is: he may say what is in it."""
    try:
        return directory.stat().st_uid
    except OSError:
        return 0
