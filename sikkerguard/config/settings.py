"""Environment and files to one frozen `Config`: strictly, with every complaint at once, or, for a start that must come
to protect whatever was mistyped, with the last good value in the place of each that is wrong."""

from __future__ import annotations

import difflib
import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sikkerguard.config import files
from sikkerguard.config.files import PREFIX, Key, Settings
from sikkerguard.config.readers import INSTEAD_OF_DEFAULTS, READERS, VARIABLES, WITHOUT_EFFECT_ON_BLOCKING, written
from sikkerguard.core.durations import duration_text
from sikkerguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sikkerguard.core.lists.allowlist import AllowEntry

DEFAULT_FILE = Path("/etc/sikkerguard/sikkerguard.env")
DEFAULT_KEY_FILE = Path("/etc/sikkerguard/api-key")
# From this likeness of two names on, as difflib measures it without the prefix, one is taken for the other mistyped.
_NEAR = 0.7


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked. Durations are in seconds.

    `key_source` names the place that the key was read from, and `key_missing` says why there is none where one is
    needed. `texts` is what is to be kept of good settings: the variables that were set, as they were written, but for
    the key's; None where not all was good. `troubles` has a sentence for each setting that is not used.
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
        """What is pulled and reported, in one line."""
        reports = f"Reports every {duration_text(self.report_interval)}" if self.report_enabled else "Reports off"
        return f"Score threshold: {self.score_min} | Pull every {duration_text(self.pull_interval)} | {reports}"

    @property
    def hints(self) -> tuple[str, ...]:
        """Sentences on what is allowed and may not be meant."""
        if not self.port_map:
            return ()
        from sikkerguard.core.services.lookup import doubtful_labels  # a table of 390 ports, needed where one is mapped

        return tuple(
            f"SIKKER_PORT_MAP: {label!r} is a name of your own; if you mean {known!r}, write that, or "
            f"{label}:{known} for its category."
            for label, known in doubtful_labels(self.port_map).items()
        )

    @property
    def refusal(self) -> str:
        """Why SikkerAPI may not be asked with these settings, and what to do, without a full stop; empty where it may.
        What is blocked stays blocked meanwhile."""
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
        """Whether the key goes over a network as anyone there can read it."""
        parts = urlsplit(self.api_url)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


@dataclass(frozen=True, slots=True)
class _Fault:
    """One mistake: the variable that it is about, empty where that can't be said, the sentence, and whether nothing can
    be blocked as it was meant without a good value."""

    variable: str
    sentence: str
    essential: bool


def load(environment: Mapping[str, str], file: Path | None = None, *, need_key: bool = True) -> Config:
    """Read the settings: the environment first, then what `file` says of variables that it leaves open.

    `file` is read in the syntax of systemd's EnvironmentFile=; without one, the default file counts if it exists.
    Variables set to nothing count as not set. `need_key` is False for commands that never speak to the API.

    Raises:
        ConfigError: with one sentence for each fault.
    """
    settings = _settings(environment, file)
    values, faults = _values(settings)
    key = files.find_key(settings.of, environment, DEFAULT_KEY_FILE)
    complaints = [fault.sentence for fault in faults]
    if need_key and not key.text:
        complaints += _why_no_key(key)
    if complaints:
        raise ConfigError(complaints, (key.text, key.source) if key.text else None)
    return _config(values, settings, key, troubles=_strangers(settings))


def load_or_last_good(
    environment: Mapping[str, str],
    file: Path | None,
    last_good: Callable[[Path], Mapping[str, str] | None],
    *,
    need_key: bool = True,
    defaults: bool = False,
) -> Config:
    """The same, with the last good value in the place of each that is wrong, and a sentence on it in `troubles`.

    `last_good` gives what was kept of good settings in a state directory: `Config.texts`, or None where nothing was. A
    line that can't be read may have been any variable's: for all that are not set, the last good value counts then. Of
    a variable that was not set then, that is its default. The key is never a former one: where it is missing,
    `key_missing` says so. Where there never were good settings, only a mistake that leaves what is blocked as it is,
    and the key's want, can be lived with, unless `defaults` says that defaults will do.

    Raises:
        ConfigError: something is wrong, and there never were good settings.
    """
    settings = _settings(environment, file)
    values, faults = _values(settings)
    key = files.find_key(settings.of, environment, DEFAULT_KEY_FILE)
    lacks_key = _why_no_key(key) if need_key and not key.text else []
    troubles = _strangers(settings)
    if not faults and not lacks_key:
        return _config(values, settings, key, troubles)
    kept = last_good(Path(str(values.get("state_dir", Config().state_dir))))
    if kept is None and not defaults and (lacks_key or any(fault.essential for fault in faults)):
        raise ConfigError([*(fault.sentence for fault in faults), *lacks_key])
    wrong = {fault.variable for fault in faults}
    for name in READERS.keys() - settings.of.keys() if "" in wrong else wrong & READERS.keys():
        # One that is set well stays, also where a name like it is set as well.
        values = {**_last_good_value(name, kept), **values}
    instead = "the last good value counts" if kept is not None else "its default counts"
    troubles = (*(f"{fault.sentence} Until it is corrected, {instead}." for fault in faults), *troubles)
    found = _config(values, settings, key, troubles)
    return replace(found, key_missing=" ".join(lacks_key).removesuffix("."), texts=None)


def missing_key(environment: Mapping[str, str], file: Path | None = None) -> str:
    """Why there is no key, and what to do; empty where there is one. Other faults are not looked at."""
    key = files.find_key(_settings(environment, file).of, environment, DEFAULT_KEY_FILE)
    return "" if key.text else " ".join(key.faults) or f"put yours into {DEFAULT_KEY_FILE}."


def sources(environment: Mapping[str, str], file: Path | None = None) -> tuple[Path, ...]:
    """The files that settings and key are read from, whether they are there or not: a change of one of them may be a
    change of the settings."""
    settings = _settings(environment, file)
    return (file or DEFAULT_FILE, *files.key_places(settings.of, environment, DEFAULT_KEY_FILE))


def state_dir(environment: Mapping[str, str], file: Path | None = None) -> Path:
    """The state directory, as far as that can be known: other faults are not looked at, and what can't be read or used
    is as if it were not set."""
    setting = _settings(environment, file).of.get("SIKKER_STATE_DIR")
    with suppress(ValueError):
        if setting is not None:
            return Path(str(READERS["SIKKER_STATE_DIR"](setting.text)["state_dir"]))
    return Config().state_dir


def in_force(config: Config) -> list[tuple[str, str]]:
    """Every variable with its value in force, as it would be written; the key is masked."""
    shown = {f.name: getattr(config, f.name) for f in fields(config)}
    shown["api_key"] = _masked(config.api_key)
    shown["health_address"] = f"{_bracketed(config.health_host)}:{config.health_port}"
    lines = []
    for variable, name in VARIABLES.items():
        if variable != "SIKKER_API_KEY_FILE":
            lines.append((variable, written(name, shown[name])))
    return lines


def _settings(environment: Mapping[str, str], file: Path | None) -> Settings:
    return files.read(environment, file or DEFAULT_FILE, must_exist=file is not None)


def _values(settings: Settings) -> tuple[dict[str, object], list[_Fault]]:
    """What can be read of it, by field, and what is wrong with the rest."""
    faults = [_Fault("", sentence, essential=True) for sentence in settings.faults]
    for name, setting in sorted(settings.of.items()):
        if near := _nearest(name):
            sentence = f"{name} is not a variable of SikkerGuard; the nearest is {near}{setting.placed()}."
            faults.append(_Fault(near, sentence, essential=False))
    values: dict[str, object] = {}
    for name, read in READERS.items():
        if name in settings.of:
            try:
                values |= read(settings.of[name].text)
            except ValueError as error:
                sentence = f"{name}: {error}{settings.of[name].placed()}."
                faults.append(_Fault(name, sentence, name not in WITHOUT_EFFECT_ON_BLOCKING))
    return values, faults


def _last_good_value(name: str, kept: Mapping[str, str] | None) -> Mapping[str, object]:
    """By field; empty where its default is the last good value."""
    if kept is None:
        return INSTEAD_OF_DEFAULTS.get(name, {})
    try:
        return READERS[name](kept[name]) if name in kept else {}
    except ValueError:
        # It was good for another version.
        return INSTEAD_OF_DEFAULTS.get(name, {})


def _config(values: Mapping[str, object], settings: Settings, key: Key, troubles: tuple[str, ...]) -> Config:
    texts = {name: setting.text for name, setting in settings.of.items() if name in READERS}
    found: dict[str, object] = {"api_key": key.text, "key_source": key.source, "texts": texts, "troubles": troubles}
    return Config(**values, **found)  # type: ignore[arg-type]


def _why_no_key(key: Key) -> list[str]:
    return list(key.faults) or [
        f"SIKKER_API_KEY is not set; put your key there, or into {DEFAULT_KEY_FILE}, with Docker into .env."
    ]


def _nearest(name: str) -> str:
    """The variable that this name was probably meant to be; empty where it is one, or near to none."""
    if name in VARIABLES:
        return ""
    words = {known.removeprefix(PREFIX): known for known in VARIABLES}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), words, n=1, cutoff=_NEAR)
    return words[near[0]] if near else ""


def _strangers(settings: Settings) -> tuple[str, ...]:
    """A sentence for each name that means nothing here, and is like none that does."""
    return tuple(
        f"{name} is not a variable of SikkerGuard, and is ignored{setting.placed()}."
        for name, setting in sorted(settings.of.items())
        if name not in VARIABLES and not _nearest(name)
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _masked(key: str) -> str:
    """The tier's prefix, which is no secret and helps to tell keys apart, and nothing else."""
    if not key:
        return "(not set)"
    prefix = re.match(r"sk_[a-z]+_", key)
    return f"{prefix[0] if prefix else ''}********"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
