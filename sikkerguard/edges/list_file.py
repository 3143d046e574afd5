"""The file of addresses that the owner of the host keeps. What it says is none of its business."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sikkerguard.core.lists.parse import LARGEST_FILE
from sikkerguard.errors import ListError

_PIECE = 1 << 20


class ListFile:
    """Reads a file of the host's, and tells whether it is another one than before."""

    def stamp(self, path: str) -> tuple[int, ...] | None:
        """Something that differs once the file was changed or replaced; None where it can't be looked at."""
        try:
            found = Path(path).stat()
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def read(self, path: str) -> bytes:
        """All of it.

        Raises:
            ListError: it can't be read, is no regular file, or is larger than 64 MiB.
        """
        try:
            # Not to wait where somebody has put a FIFO.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise ListError(f"{path} is no regular file")
                content = _all_of(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise ListError(f"{path} can't be read ({error.strerror})") from error
        except ValueError as error:  # a NUL in the path
            raise ListError(f"{path} can't be read ({error})") from error
        if len(content) > LARGEST_FILE:
            raise ListError(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
        return content


def _all_of(handle: int) -> bytes:
    """The file's content, but no more than one piece beyond what is taken."""
    pieces: list[bytes] = []
    length = 0
    while length <= LARGEST_FILE and (piece := os.read(handle, _PIECE)):
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)
