"""`Config`, all settings as one frozen value; and `SettingsReader`, which reads it: strictly, with every complaint at
once, or, for a start that must protect whatever was mistyped, with the last good value in place of each wrong one."""

from __future__ import annotations

import difflib
import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sikkerguard.config.files import PREFIX, read_settings
from sikkerguard.config.key import find_key, key_places
from sikkerguard.config.variables import VARIABLES
from sikkerguard.core.durations import duration_text
from sikkerguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sikkerguard.config.files import Settings
    from sikkerguard.config.key import Key
    from sikkerguard.core.lists.allowlist import AllowEntry

DEFAULT_FILE = Path("/etc/sikkerguard/sikkerguard.env")
DEFAULT_KEY_FILE = Path("/etc/sikkerguard/api-key")
# Two names that are this much alike (difflib, from 0 to 1, without the prefix) are one of them and its misspelling.
_SIMILARITY = 0.7


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked. Durations are in seconds.

    `key_source` names the place that the key was read from, and `key_missing` says why there is none where one is
    needed. `texts` is what to keep on disk of good settings: the texts of the variables that were set, without the
    key's; None where not all were good. `troubles` has a sentence for each setting that is not used.
    """

    api_key: str = field(default="", repr=False)
    api_url: str = "https://api.sikkerapi.com"
    allow_http: bool = False
    score_min: int = 50
    pull_interval: float = 86400.0
    report_enabled: bool = True
    report_interval: float = 1800.0
    report_spoofable: bool = False
    report_custom: bool = False
    whitelist: tuple[AllowEntry, ...] = ()
    ssh_ports: tuple[int, ...] = ()
    dry_run: bool = False
    port_map: Mapping[int, str] = field(default_factory=dict)
    custom_blacklist: Path | None = None
    max_growth: float = 2.0
    max_coverage: float = 0.02
    health_host: str = "127.0.0.1"
    health_port: int = 8080
    state_dir: Path = Path("/var/lib/sikkerguard")
    log_source: str = "auto"
    log_level: str = "info"
    key_source: str = field(default="", compare=False)
    key_missing: str = field(default="", compare=False)
    texts: Mapping[str, str] | None = field(default=None, repr=False, compare=False)
    troubles: tuple[str, ...] = field(default=(), compare=False)

    def summary(self) -> str:
        """Say what is pulled and reported, in one line."""
        reports = f"Reports every {duration_text(self.report_interval)}" if self.report_enabled else "Reports off"
        return f"Score threshold: {self.score_min} | Pull every {duration_text(self.pull_interval)} | {reports}"

    @property
    def hints(self) -> tuple[str, ...]:
        """Sentences on settings that are allowed, but perhaps not meant."""
        if not self.port_map:
            return ()
        from sikkerguard.core.ports.lookup import doubtful_labels  # a table of 390 ports, needed where one is mapped

        return tuple(
            f"SIKKER_PORT_MAP: {label!r} is a name of your own; if you mean {known!r}, write that, or "
            f"{label}:{known} for its category."
            for label, known in doubtful_labels(self.port_map).items()
        )

    @property
    def refusal(self) -> str:
        """Why SikkerAPI may not be asked with these settings, and what to do, without a full stop; empty where it may.
        The committed list stays in force meanwhile."""
        if self.key_missing:
            return self.key_missing
        if self.is_plain and not self.allow_http:
            return (
                f"SIKKER_API_URL is {self.api_url}, and on the way there anyone could read the key; begin it with "
                "https:// or set SIKKER_ALLOW_HTTP=true"
            )
        return ""

    @property
    def is_plain(self) -> bool:
        """Whether the key crosses a network where anyone on the way can read it."""
        parts = urlsplit(self.api_url)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


@dataclass(frozen=True, slots=True)
class _Fault:
    """One mistake: the variable that it is about, empty where that is unknown; the sentence; and whether it matters to
    what is blocked."""

    variable: str
    sentence: str
    essential: bool


class SettingsReader:
    """Reads the settings: the environment first, then a file for variables that the environment leaves open.

    `file` is read in the syntax of systemd's EnvironmentFile=; without one, `default_file` counts if it exists.
    Variables set to nothing count as not set. Each call reads anew.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        file: Path | None = None,
        *,
        default_file: Path = DEFAULT_FILE,
        default_key_file: Path = DEFAULT_KEY_FILE,
    ) -> None:
        self._environment = environment
        self._file = file or default_file
        self._must_exist = file is not None
        self._default_key_file = default_key_file

    def load(self, *, need_key: bool = True) -> Config:
        """Read the settings, all of which must be good. `need_key` is False for commands that never ask the API.

        Raises:
            ConfigError: with one sentence for each fault.
        """
        settings = self._read()
        values, faults = _parse(settings)
        key = self._find_key(settings)
        complaints = [fault.sentence for fault in faults]
        if need_key and not key.text:
            complaints += self._explain_missing_key(key)
        if complaints:
            raise ConfigError(complaints, (key.text, key.source) if key.text else None)
        return _make_config(values, settings, key, troubles=_unknown_names(settings))

    def load_or_last_good(
        self,
        last_good: Callable[[Path], Mapping[str, str] | None],
        *,
        need_key: bool = True,
        defaults: bool = False,
    ) -> Config:
        """Read the settings, with the last good value in place of each wrong one, and a sentence on it in `troubles`.

        `last_good` reads what was kept of good settings in a state directory: `Config.texts`, or None where there is
        nothing. A line that can't be read may have set any variable: all variables that are not set get their last
        good value then; for one that was not set at that time, it is the default. The key is never an old one: where
        it is missing, `key_missing` says so. Where there never were good settings, only mistakes that leave what is
        blocked as it is are tolerated, and a missing key is not, unless `defaults` says that defaults will do.

        Raises:
            ConfigError: something is wrong, and there never were good settings.
        """
        settings = self._read()
        values, faults = _parse(settings)
        key = self._find_key(settings)
        lacks_key = self._explain_missing_key(key) if need_key and not key.text else []
        troubles = _unknown_names(settings)
        if not faults and not lacks_key:
            return _make_config(values, settings, key, troubles)
        kept = last_good(Path(str(values.get("state_dir", Config().state_dir))))
        if kept is None and not defaults and (lacks_key or any(fault.essential for fault in faults)):
            raise ConfigError([*(fault.sentence for fault in faults), *lacks_key])
        wrong = {fault.variable for fault in faults}
        for name in VARIABLES.keys() - settings.by_name.keys() if "" in wrong else wrong - {""}:
            # A good value stays, also where a misspelling of its variable is set beside it.
            values = {**_last_good_values(name, kept), **values}
        instead = "the last good value counts" if kept is not None else "its default counts"
        troubles = (*(f"{fault.sentence} Until it is corrected, {instead}." for fault in faults), *troubles)
        config = _make_config(values, settings, key, troubles)
        return replace(config, key_missing=" ".join(lacks_key).removesuffix("."), texts=None)

    def files(self) -> tuple[Path, ...]:
        """List the files that settings and key are read from, whether they exist or not: a change of one of them may
        be a change of the settings."""
        return (self._file, *key_places(self._read().by_name, self._environment, self._default_key_file))

    def missing_key(self) -> str:
        """Say why there is no key, and what to do; empty where there is one. Other faults are ignored."""
        key = self._find_key(self._read())
        return "" if key.text else " ".join(key.faults) or f"put yours into {self._default_key_file}."

    def state_dir(self) -> Path:
        """Find the state directory; other faults are ignored, and one that can't be used counts as not set."""
        setting = self._read().by_name.get("SIKKER_STATE_DIR")
        with suppress(ValueError):
            if setting is not None:
                return Path(str(VARIABLES["SIKKER_STATE_DIR"].values(setting.text)["state_dir"]))
        return Config().state_dir

    def _read(self) -> Settings:
        return read_settings(self._environment, self._file, must_exist=self._must_exist)

    def _find_key(self, settings: Settings) -> Key:
        return find_key(settings.by_name, self._environment, self._default_key_file)

    def _explain_missing_key(self, key: Key) -> list[str]:
        return list(key.faults) or [
            f"SIKKER_API_KEY is not set; put your key there, or into {self._default_key_file}, with Docker into .env."
        ]


def effective(config: Config) -> list[tuple[str, str]]:
    """List every variable with its value as it would be written; the key is masked."""
    return [(name, variable.text(config)) for name, variable in VARIABLES.items() if variable.shown]


def _parse(settings: Settings) -> tuple[dict[str, object], list[_Fault]]:
    """The good values, by field, and what is wrong with the rest."""
    faults = [_Fault("", sentence, essential=True) for sentence in settings.faults]
    for name, setting in sorted(settings.by_name.items()):
        if near := _nearest(name):
            sentence = f"{name} is not a variable of SikkerGuard; the nearest is {near}{setting.suffix()}."
            faults.append(_Fault(near, sentence, essential=False))
    values: dict[str, object] = {}
    for name, variable in VARIABLES.items():
        if name in settings.by_name and not variable.is_key:
            setting = settings.by_name[name]
            try:
                values |= variable.values(setting.text)
            except ValueError as error:
                faults.append(_Fault(name, f"{name}: {error}{setting.suffix()}.", variable.essential))
    return values, faults


def _last_good_values(name: str, kept: Mapping[str, str] | None) -> Mapping[str, object]:
    """By field; empty where the default is the last good value."""
    variable = VARIABLES[name]
    if variable.is_key:
        return {}
    if kept is None:
        return variable.fallback
    try:
        return variable.values(kept[name]) if name in kept else {}
    except ValueError:
        # It was good for another version.
        return variable.fallback


def _make_config(values: Mapping[str, object], settings: Settings, key: Key, troubles: tuple[str, ...]) -> Config:
    texts = {
        name: setting.text
        for name, setting in settings.by_name.items()
        if name in VARIABLES and not VARIABLES[name].is_key
    }
    found: dict[str, object] = {"api_key": key.text, "key_source": key.source, "texts": texts, "troubles": troubles}
    return Config(**values, **found)  # type: ignore[arg-type]


def _nearest(name: str) -> str:
    """The variable that this name was probably meant to be; empty where it is one, or is like none."""
    if name in VARIABLES:
        return ""
    words = {known.removeprefix(PREFIX): known for known in VARIABLES}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), words, n=1, cutoff=_SIMILARITY)
    return words[near[0]] if near else ""


def _unknown_names(settings: Settings) -> tuple[str, ...]:
    """A sentence for each name that is no variable, and is like none."""
    return tuple(
        f"{name} is not a variable of SikkerGuard, and is ignored{setting.suffix()}."
        for name, setting in sorted(settings.by_name.items())
        if name not in VARIABLES and not _nearest(name)
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
