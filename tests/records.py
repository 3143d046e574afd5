"""Reading the database of records beside a service that has it locked for as long as it runs."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from sikkerguard.edges.storage.database import FILE

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def records_of(directory: Path) -> Iterator[sqlite3.Connection]:
    """What was committed, as a process would find it that came after this one was killed: in a copy."""
    with tempfile.TemporaryDirectory() as made:
        wait_for("a moment without a write", lambda: _copied(directory, Path(made)))
        connection = sqlite3.connect(Path(made) / FILE)
        try:
            yield connection
        finally:
            connection.close()


def _copied(directory: Path, target: Path) -> bool:
    files = (directory / FILE, directory / f"{FILE}-wal")

    def stamps() -> list[tuple[int, int] | None]:
        return [(file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None for file in files]

    before = stamps()
    for file in files:
        (target / file.name).unlink(missing_ok=True)
        if file.exists():
            shutil.copy(file, target)
    return stamps() == before
