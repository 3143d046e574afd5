"""A directory whose owner is not trusted by everyone who works in it: root's commands meet that of the service's user.

Each file is opened by its name in the directory that was opened before, never through a symbolic link, and believed
only where the directory's owner owns it too. What is written is written beside its place, synced, and renamed into it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Not to wait where somebody has put a FIFO.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """Every method raises `OSError`. `path` may itself be a link: that is its administrator's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """A handle of the directory; with `make` it is made where there is none, private to its owner."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            handle = os.open(self.path, flags)
        except FileNotFoundError:
            if not make:
                raise
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, flags)
        try:
            yield handle
        finally:
            os.close(handle)

    def open(self, name: str) -> int:
        """A handle for reading this file; the caller closes it."""
        with self.opened() as place:
            return _trusted(os.open(name, _READ, dir_fd=place), place)

    def open_or_make(self, name: str, *, make_directory: bool = True) -> int:
        """The same, of a file that is made, empty, where there is none. Nothing is written where there is one."""
        with self.opened(make=make_directory) as place:
            try:
                handle = os.open(name, _READ, dir_fd=place)
            except FileNotFoundError:
                made = os.open(name, _NEW, 0o600, dir_fd=place)
                try:
                    _give(made, place)
                finally:
                    os.close(made)
                handle = os.open(name, _READ, dir_fd=place)
            return _trusted(handle, place)

    def read(self, name: str, most: int = -1) -> bytes:
        """All of this file, or its first `most` bytes."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read(most)

    def has(self, name: str) -> bool:
        """Whether there is something of this name."""
        try:
            with self.opened() as place:
                os.stat(name, dir_fd=place, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def move(self, name: str, other: str) -> None:
        """Give the file another name."""
        with self.opened() as place:
            os.rename(name, other, src_dir_fd=place, dst_dir_fd=place)

    def overwrite(self, name: str, content: bytes) -> None:
        """Have this content in a file that is there, in place: on a disk without room, what it has is enough."""
        with self.opened() as place:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = _trusted(os.open(name, flags, dir_fd=place), place)
            try:
                os.pwrite(handle, content, 0)
                os.ftruncate(handle, len(content))
            finally:
                os.close(handle)

    def replace(self, name: str, *parts: bytes, before: str = "") -> None:
        """Have this content under this name: a reader sees the old file or the new one. With `before`, the old one
        stays under that name, in place of the one before it, unless there is no room for three."""
        with self.opened(make=True) as place:
            try:
                self._replace(place, name, parts, before)
            except OSError as error:
                if not before or error.errno != errno.ENOSPC:
                    raise
                # The newest is worth more than the one before the last.
                with suppress(FileNotFoundError):
                    os.unlink(before, dir_fd=place)
                self._replace(place, name, parts, "")

    def _replace(self, place: int, name: str, parts: tuple[bytes, ...], before: str) -> None:
        temporary = f".{name}.new"
        with suppress(FileNotFoundError):  # of a process that was killed, or laid as a trap
            os.unlink(temporary, dir_fd=place)
        handle = os.open(temporary, _NEW, 0o600, dir_fd=place)
        try:
            with os.fdopen(handle, "wb") as file:
                _give(file.fileno(), place)
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            if before:
                _keep(place, name, before)
            os.rename(temporary, name, src_dir_fd=place, dst_dir_fd=place)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=place)
            raise
        os.fsync(place)


def _keep(place: int, name: str, before: str) -> None:
    """Have the file of this name under the other name too, by a link: at no moment is it away from its own."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
            return
    except FileNotFoundError:
        return
    temporary = f".{before}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=place)
    try:
        os.link(name, temporary, src_dir_fd=place, dst_dir_fd=place, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        # A file system without links, such as FAT: who reads now finds the one before.
        os.rename(name, before, src_dir_fd=place, dst_dir_fd=place)
        return
    os.rename(temporary, before, src_dir_fd=place, dst_dir_fd=place)


def _trusted(handle: int, place: int) -> int:
    """The handle, if what it leads to is a file of the directory's owner. A second name for a file of root's is what
    another user may have made, who could not read it."""
    try:
        found, owner = os.fstat(handle), os.fstat(place).st_uid
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        known = {owner, os.geteuid() or owner}
        if found.st_uid not in known and not (found.st_nlink == 1 and found.st_uid == 0):
            raise OSError(errno.EPERM, "its owner is not that of the directory")
    except OSError:
        os.close(handle)
        raise
    return handle


def _give(handle: int, place: int) -> None:
    """What root makes in the directory of another is that one's, who could not use it otherwise."""
    owner = os.fstat(place)
    if os.geteuid() == 0 and owner.st_uid != 0:
        with suppress(OSError):  # a file system that knows no owners, or root without that right
            os.fchown(handle, owner.st_uid, owner.st_gid)
