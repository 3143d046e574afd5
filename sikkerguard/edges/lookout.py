"""Settings and keys that come while the service, which waits for them, has looked already and is not watched for yet.

sikkerguard.path does not notice a change between the service's look and its own end: what is written in two steps, as
by `touch` and `echo`, would be seen too early and then missed. So each start notes when it looked, and after its end a
file is made, for which the path waits too, if something has changed since.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LOOKED, _AGAIN = "looked", "look-again"


def note_look(state: Path) -> None:
    """A start looks at the settings and the key now."""
    with suppress(OSError):  # a full disk must not keep the service from starting
        (state / _AGAIN).unlink(missing_ok=True)
        (state / _LOOKED).write_bytes(b"")


def look_again(state: Path, files: Iterable[Path]) -> bool:
    """Have the service started again if one of these files changed since the start looked, and say so."""
    with suppress(OSError):  # without a note there is nothing to compare with
        # Equal moments count as later: clocks of file systems are coarse, and one start too many does no harm.
        looked = (state / _LOOKED).stat().st_mtime_ns
        if any(file.stat().st_ctime_ns >= looked for file in files if file.exists()):
            (state / _AGAIN).touch()
            return True
    return False
