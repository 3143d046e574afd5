"""Reading settings in a test: none of this host's own files are read, unless a test names a directory of defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.config.settings import Config, SettingsReader

if TYPE_CHECKING:
    from collections.abc import Mapping

NOWHERE = Path("/nonexistent")


def reader(environment: Mapping[str, str], file: Path | None = None, *, defaults: Path = NOWHERE) -> SettingsReader:
    """A reader for which `defaults` stands in the place of /etc/sikkerguard."""
    return SettingsReader(
        environment, file, default_file=defaults / "sikkerguard.env", default_key_file=defaults / "api-key"
    )


def load(
    environment: Mapping[str, str], file: Path | None = None, *, need_key: bool = True, defaults: Path = NOWHERE
) -> Config:
    """The settings, read strictly."""
    return reader(environment, file, defaults=defaults).load(need_key=need_key)
