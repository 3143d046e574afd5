"""The last good settings, kept in the state directory for a start that meets wrong ones. The key is not among them."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NAME = "settings.json"
# More than all variables of the longest whitelist need.
_LARGEST = 1 << 20


def load(directory: Path) -> Mapping[str, str] | None:
    """The texts of the variables that were set, by name; None where nothing is kept, or nothing that can be trusted."""
    try:
        handle = os.open(directory / _NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            return None
        try:
            texts = json.loads(file.read(_LARGEST))
        except (OSError, ValueError, RecursionError):
            return None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        return None
    return texts


def save(directory: Path, texts: Mapping[str, str]) -> None:
    """Keep these in the place of those before, whole or not at all, for the service's user alone. What is there already
    is not written again.

    Raises:
        OSError: the disk refuses.
    """
    if load(directory) == dict(texts):
        return
    temporary = directory / f".{_NAME}.new"
    with suppress(FileNotFoundError):
        temporary.unlink()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(texts, indent=1, sort_keys=True).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / _NAME)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
