"""Finding the API key: a variable, a file that a variable names, a systemd credential, or the default file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.config.files import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.config.files import Setting

# The name under which a systemd credential holds the key (systemd.exec(5), LoadCredential=).
CREDENTIAL = "sikker_api_key"
# Bytes: more than any key has.
_MAX_KEY_BYTES = 1 << 12
_PRINTABLE_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Key:
    """The key and the place that it was read from, or in `faults` a sentence for each reason why there is none; all
    empty where no place has a key."""

    text: str = ""
    source: str = ""
    faults: tuple[str, ...] = ()


def key_places(settings: Mapping[str, Setting], environment: Mapping[str, str], default: Path) -> tuple[Path, ...]:
    """List the files that may hold the key, first choice first, whether they exist or not."""
    if "SIKKER_API_KEY" in settings:
        return ()
    if "SIKKER_API_KEY_FILE" in settings:
        return (Path(settings["SIKKER_API_KEY_FILE"].text),)
    # Where no credential is passed, systemd 252 may name a directory that only root can enter.
    credentials = environment.get("CREDENTIALS_DIRECTORY", "")
    return (Path(credentials) / CREDENTIAL, default) if os.access(credentials, os.X_OK) else (default,)


def find_key(settings: Mapping[str, Setting], environment: Mapping[str, str], default: Path) -> Key:
    """Read the key from the first place that has one."""
    if "SIKKER_API_KEY" in settings:
        setting = settings["SIKKER_API_KEY"]
        if "SIKKER_API_KEY_FILE" in settings:
            return Key(faults=("SIKKER_API_KEY and SIKKER_API_KEY_FILE are both set; keep one of them.",))
        return _check_key(setting.text, f"SIKKER_API_KEY{setting.suffix()}")
    named = settings.get("SIKKER_API_KEY_FILE")
    by = "SIKKER_API_KEY_FILE: " if named is not None else ""
    faults = []
    for path in key_places(settings, environment, default):
        try:
            return _check_key(read_text(path, _MAX_KEY_BYTES).strip(), str(path))
        except FileNotFoundError:
            if path.name.startswith("sk_"):
                faults.append(
                    f"SIKKER_API_KEY_FILE: this looks like a key, which belongs into SIKKER_API_KEY"
                    f"{named.suffix() if named else ''}."
                )
            elif named is not None:
                faults.append(f"SIKKER_API_KEY_FILE: there is no file {path}{named.suffix()}.")
        except PermissionError as error:
            faults.append(
                f"{by}{path} can't be read ({error.strerror}); let SikkerGuard's user read it. With Docker, that is "
                "root without a right to the files of others: chown root the file that API_KEY_FILE names."
            )
        except (OSError, ValueError) as error:
            # A ValueError: the path has a NUL in it, or the content is no text.
            reason = error.strerror if isinstance(error, OSError) else error
            faults.append(f"{by}{path} can't be read ({reason}).")
    return Key(faults=tuple(faults))


def _check_key(key: str, source: str) -> Key:
    # The key becomes part of an HTTP header: a space or control character in it is at best a mistake of copying. The
    # sentence does not show the key.
    if key and not _PRINTABLE_KEY.fullmatch(key):
        return Key(faults=(f"{source}: the key has a space or another character that no key has.",))
    return Key(key, source if key else "")
