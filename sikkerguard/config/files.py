"""Reading the settings as texts: from the environment, and from a file in the syntax of systemd's EnvironmentFile=."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PREFIX = "SIKKER_"
# Bytes: more than a whitelist of 4,096 entries takes.
_MAX_SETTINGS_BYTES = 1 << 20
_NULL = os.makedev(1, 3)  # /dev/null (null(4))


@dataclass(frozen=True, slots=True)
class Setting:
    """The text of one variable; `place` is the file and line that it stands in, empty for the environment."""

    text: str
    place: str = ""

    def suffix(self) -> str:
        """The place in brackets, for the end of a sentence; empty for the environment."""
        return f" ({self.place})" if self.place else ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All variables that are set, by name. `faults` has a sentence for each fault of the file itself; a line that can't
    be read may have set any variable."""

    by_name: Mapping[str, Setting]
    faults: tuple[str, ...] = ()


def read_settings(environment: Mapping[str, str], file: Path, *, must_exist: bool) -> Settings:
    """Read the environment, and the file for variables that the environment leaves open. A variable set to nothing
    counts as not set. A file that is missing is a fault only if it `must_exist`."""
    faults: list[str] = []
    found = dict(_read_lines(file, must_exist, faults))
    found |= {
        name: Setting(text.strip()) for name, text in environment.items() if name.startswith(PREFIX) and text.strip()
    }
    return Settings({name: setting for name, setting in found.items() if setting.text}, tuple(faults))


def read_text(file: Path, max_bytes: int) -> str:
    """Read a regular file; anything else is refused, since opening a pipe would wait for its writer.

    Raises:
        OSError: it can't be read, is no regular file, or is larger than `max_bytes`.
        UnicodeDecodeError: it is no UTF-8 text.
    """
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
        found = os.fstat(opened.fileno())
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL:
            return ""  # what Compose mounts in place of a file that does not exist
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "It is no regular file")
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"It has more than {max_bytes} bytes")
    return content.decode("utf-8")


def _read_lines(file: Path, must_exist: bool, faults: list[str]) -> Iterator[tuple[str, Setting]]:
    try:
        text = read_text(file, _MAX_SETTINGS_BYTES)
    except FileNotFoundError:
        if must_exist:
            faults.append(f"{file}: there is no such file.")
        return
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{file} can't be read: {error}.")
        return
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content[0] in "#;":
            continue
        name, equals, value = content.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.startswith(PREFIX):
            faults.append(f"{file}, line {number}: not of the form SIKKER_...=value.")
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        yield name, Setting(value.strip(), f"{file}, line {number}")
