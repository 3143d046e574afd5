"""Where settings are read from, the environment and a file, and where the key is, which may be in some places more."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# In bytes: more than a whitelist of 4,096 entries takes, and than any key has.
_LARGEST_SETTINGS, _LARGEST_KEY = 1 << 20, 1 << 12
_NULL = os.makedev(1, 3)  # /dev/null (null(4))
PREFIX = "SIKKER_"
# The name under which a systemd credential holds the key (systemd.exec(5), LoadCredential=).
CREDENTIAL = "sikker_api_key"
_PRINTABLE_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Setting:
    """The text of one variable; `place` is the line that has it, empty where the environment does."""

    text: str
    place: str = ""

    def placed(self) -> str:
        """The place, to be put behind a word."""
        return f" ({self.place})" if self.place else ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that was set, and a sentence for each fault of the file as such: behind such a line may have stood any
    variable."""

    of: Mapping[str, Setting]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """The key and where it comes from, or a sentence for each reason why there is none; all empty where there is no
    word of one."""

    text: str = ""
    source: str = ""
    faults: tuple[str, ...] = ()


def read(environment: Mapping[str, str], file: Path, *, must_exist: bool) -> Settings:
    """The environment first, then what the file says of variables that it leaves open. What is set to nothing is not
    set. The file has the syntax of systemd's EnvironmentFile=."""
    faults: list[str] = []
    found = dict(_lines(file, must_exist, faults))
    found |= {
        name: Setting(text.strip()) for name, text in environment.items() if name.startswith(PREFIX) and text.strip()
    }
    return Settings({name: setting for name, setting in found.items() if setting.text}, tuple(faults))


def _text(file: Path, largest: int) -> str:
    """What a regular file holds, which is not waited for: a pipe would have a start wait for whoever writes to it.

    Raises:
        OSError, UnicodeDecodeError: it can't be read, is no regular file, or is larger than that, in bytes.
    """
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as opened:
        found = os.fstat(handle)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL:
            return ""  # as Compose has it in the place of a file that there is not
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "It is no regular file")
        content = opened.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"It has more than {largest} bytes")
    return content.decode("utf-8")


def _lines(file: Path, must_exist: bool, faults: list[str]) -> Iterator[tuple[str, Setting]]:
    try:
        text = _text(file, _LARGEST_SETTINGS)
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


def key_places(settings: Mapping[str, Setting], environment: Mapping[str, str], default: Path) -> tuple[Path, ...]:
    """The files that may hold the key, in the order in which they are asked, whether they are there or not."""
    if "SIKKER_API_KEY" in settings:
        return ()
    if "SIKKER_API_KEY_FILE" in settings:
        return (Path(settings["SIKKER_API_KEY_FILE"].text),)
    # Where no credential is passed, systemd 252 may name a directory that only root can enter.
    credentials = environment.get("CREDENTIALS_DIRECTORY", "")
    return (Path(credentials) / CREDENTIAL, default) if os.access(credentials, os.X_OK) else (default,)


def find_key(settings: Mapping[str, Setting], environment: Mapping[str, str], default: Path) -> Key:
    """The key from the first place that has one."""
    if "SIKKER_API_KEY" in settings:
        setting = settings["SIKKER_API_KEY"]
        if "SIKKER_API_KEY_FILE" in settings:
            return Key(faults=("SIKKER_API_KEY and SIKKER_API_KEY_FILE are both set; keep one of them.",))
        return _checked(setting.text, f"SIKKER_API_KEY{setting.placed()}")
    named = settings.get("SIKKER_API_KEY_FILE")
    by = "SIKKER_API_KEY_FILE: " if named is not None else ""
    faults = []
    for path in key_places(settings, environment, default):
        try:
            return _checked(_text(path, _LARGEST_KEY).strip(), str(path))
        except FileNotFoundError:
            if path.name.startswith("sk_"):
                faults.append(
                    f"SIKKER_API_KEY_FILE: this looks like a key, which belongs into SIKKER_API_KEY"
                    f"{named.placed() if named else ''}."
                )
            elif named is not None:
                faults.append(f"SIKKER_API_KEY_FILE: there is no file {path}{named.placed()}.")
        except PermissionError as error:
            faults.append(
                f"{by}{path} can't be read ({error.strerror}); let SikkerGuard's user read it. With Docker, that is "
                "root without a right to the files of others: chown root the file that API_KEY_FILE names."
            )
        except (OSError, ValueError) as error:
            # A ValueError is a path or a content that no file of ours has: a NUL in it, or bytes that are not text.
            reason = error.strerror if isinstance(error, OSError) else error
            faults.append(f"{by}{path} can't be read ({reason}).")
    return Key(faults=tuple(faults))


def _checked(key: str, source: str) -> Key:
    # It goes into a header: a space or control character there is at best a mistake of copying. It is not shown.
    if key and not _PRINTABLE_KEY.fullmatch(key):
        return Key(faults=(f"{source}: the key has a space or another character that no key has.",))
    return Key(key, source if key else "")
