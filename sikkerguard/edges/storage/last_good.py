"""The last good settings, kept in the state directory for a start that meets wrong ones. The key is not among them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sikkerguard.edges.storage.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "settings.json"
# More than all variables of the longest whitelist need.
_LARGEST = 1 << 20


def load(directory: Path) -> Mapping[str, str] | None:
    """The texts of the variables that were set, by name; None where nothing is kept, or nothing that can be trusted."""
    try:
        texts = json.loads(Directory(directory).read(NAME, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        return None
    return texts
