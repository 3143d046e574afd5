"""The configuration of a running service: read again when it is asked for, and when a person has corrected it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sikkerguard.config.variables import FIXED
from sikkerguard.errors import ConfigError
from sikkerguard.service.disk_thread import DiskThread, within
from sikkerguard.service.wakeup import Watched

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sikkerguard.config.settings import Config
    from sikkerguard.core.interfaces import Signal
    from sikkerguard.service.announcer import Announcer
    from sikkerguard.service.pull_loop import PullLoop
    from sikkerguard.service.state_writer import StateWriter
    from sikkerguard.service.supervision import UnexpectedErrors

log = logging.getLogger(__name__)

# What the files of settings may take to be read, while all else waits.
_READ_SECONDS = 2.0
# A file that has stayed as it is from one look to the next has been written to its end.
_LOOK_SECONDS = 0.3


class SettingsReader(Protocol):
    """Where settings come from."""

    def load(self) -> Config:
        """The settings as they are written now. Raises `ConfigError`."""

    def files(self) -> Iterable[Path]:
        """The files that `load` reads, the key's among them."""


class FileStamps(Protocol):
    """Tells versions of files apart."""

    def file_stamp(self, path: Path) -> object:
        """What differs once the file at this path has changed; None without one. Reads the disk."""


class Settings:
    """The one writer of `config`. `trouble` says what is the matter with the settings as they are written, or is empty;
    `read_stamps` tells which versions of the files were read last.
    Good ones are kept by the `writer`, for a start that meets wrong ones."""

    def __init__(
        self, config: Config, reader: SettingsReader, stamps: FileStamps, writer: StateWriter, changes: Signal
    ) -> None:
        self._reader = reader
        self._stamps = stamps
        self._writer = writer
        self._changes = changes
        self.read_stamps = self.stamps()
        self.config = Watched(config)
        self.trouble = ""

    def begin(self) -> None:
        """See what is the matter with the settings of the start."""
        self._note(" ".join(self.config.value.troubles))

    def reload(self) -> None:
        """Read the settings again, and use them where they are good."""
        config = self.config.value
        try:
            # A disk that does not answer is waited for by nobody, and so not by the loop.
            self.read_stamps = within(_READ_SECONDS, self.stamps)
            fresh = within(_READ_SECONDS, self._reader.load)
        except TimeoutError:
            self._note(f"The settings can't be read within {_READ_SECONDS:g} s; those before stay.")
        except ConfigError as error:
            what = " ".join(error.complaints)
            self._note(f"The new configuration is not used, the one before it stays: {what}")
            if error.key is not None:
                key, source = error.key
                self.config.set(replace(config, api_key=key, key_source=source, key_missing=""))
        else:
            for name, variable in FIXED.items():
                if getattr(fresh, name) != getattr(config, name):
                    log.warning("The new %s takes effect with the next start only.", variable)
            self.config.set(replace(fresh, **{name: getattr(config, name) for name in FIXED}))
            self._note(" ".join(fresh.troubles))
            self.save()
            log.info("Settings reloaded; pulling now.")

    def save(self) -> None:
        """Say what may not be meant, and keep the settings where all of them are good."""
        config = self.config.value
        for hint in config.hints:
            log.warning("%s", hint)
        if config.texts is not None:
            self._writer.save(config.texts)

    def stamps(self) -> dict[Path, object]:
        """What tells the versions of the files apart. Reads the disk."""
        return {file: self._stamps.file_stamp(file) for file in self._reader.files()}

    def _note(self, trouble: str) -> None:
        self.trouble = trouble
        self._changes.set()


@dataclass(frozen=True, slots=True)
class Reload:
    """Reading the settings again and pulling by them, as SIGHUP, `sikkerguard pull` and a corrected key ask for."""

    settings: Settings
    pulls: PullLoop
    announcer: Announcer
    unexpected: UnexpectedErrors

    def now(self, *, accept: bool = False) -> int:
        """Read the settings again, and pull now, taking that list whatever its size if `accept` says so. Returns the
        number of the pull: see `PullState.pull_answered`."""
        with self.unexpected.survived():
            self.announcer.reloading()
        with self.unexpected.survived("The settings can't be read (%s); those before stay."):
            self.settings.reload()
        number = self.pulls.pull_now(accept=accept)
        self.announcer.reloaded()
        return number


class SettingsWatch:
    """Notices that a person has corrected what only a person could, a key or a setting, and has it read."""

    work = "watching for corrections"

    def __init__(self, reload: Reload) -> None:
        self._reload = reload
        # Not a thread of the loop's own, for whose end the process waits: this disk may hang too.
        self._disk = DiskThread("settings")

    async def run(self) -> None:
        """Look until cancelled."""
        before: dict[Path, object] | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            settings = self._reload.settings
            if not self._reload.pulls.needs_correction and not settings.trouble:
                continue
            found = await self._disk.run(settings.stamps)
            if found == before and found != settings.read_stamps:
                self._reload.now()
            before = found
