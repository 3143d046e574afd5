"""Environment and files to one frozen `Config`, or to every complaint at once, each naming its variable."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sikkerguard.core.model import AllowEntry, Family, Interval, parse_prefix
from sikkerguard.core.ranges import merge
from sikkerguard.core.special import GLOBAL_UNICAST_V6
from sikkerguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_FILE = Path("/etc/sikkerguard/sikkerguard.env")
DEFAULT_KEY_FILE = Path("/etc/sikkerguard/api-key")
# The name under which a systemd credential holds the key (systemd.exec(5), LoadCredential=).
CREDENTIAL = "sikker_api_key"

_DURATION = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST_INTERVAL = 10.0
# More of them are a list, and should be ranges.
_LONGEST_WHITELIST = 4096
_LONGEST_INTERVAL = 366 * 86400.0
_PERCENTAGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%?")
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_LOG_SOURCES = ("auto", "journald", "kmsg")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_PRINTABLE_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked. Durations are in seconds."""

    api_key: str = field(default="", repr=False)
    api_url: str = "https://api.sikkerapi.com"
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


# Each variable, the field that it fills, and what it is for. SIKKER_API_KEY_FILE fills the same field as the key.
VARIABLES = {
    "SIKKER_API_KEY": "api_key",
    "SIKKER_API_KEY_FILE": "api_key",
    "SIKKER_API_URL": "api_url",
    "SIKKER_SCORE_MIN": "score_min",
    "SIKKER_PULL_INTERVAL": "pull_interval",
    "SIKKER_REPORT_ENABLED": "report_enabled",
    "SIKKER_REPORT_INTERVAL": "report_interval",
    "SIKKER_REPORT_SPOOFABLE": "report_spoofable",
    "SIKKER_REPORT_CUSTOM": "report_custom",
    "SIKKER_WHITELIST": "whitelist",
    "SIKKER_SSH_PORTS": "ssh_ports",
    "SIKKER_DRY_RUN": "dry_run",
    "SIKKER_PORT_MAP": "port_map",
    "SIKKER_CUSTOM_BLACKLIST": "custom_blacklist",
    "SIKKER_MAX_GROWTH": "max_growth",
    "SIKKER_MAX_COVERAGE": "max_coverage",
    "SIKKER_HEALTH_ADDRESS": "health_address",
    "SIKKER_STATE_DIR": "state_dir",
    "SIKKER_LOG_SOURCE": "log_source",
    "SIKKER_LOG_LEVEL": "log_level",
}


def load(environment: Mapping[str, str], file: Path | None = None, *, need_key: bool = True) -> Config:
    """Read the settings: the environment first, then what `file` says of variables that it leaves open.

    `file` is read in the syntax of systemd's EnvironmentFile=; without one, the default file counts if it exists.
    Variables set to nothing count as not set. `need_key` is False for commands that never speak to the API.

    Raises:
        ConfigError: with one sentence for each fault.
    """
    complaints: list[str] = []
    settings = _settings(environment, file, complaints)
    for name in sorted(settings.keys() - VARIABLES.keys()):
        near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0)
        complaints.append(f"{name} is not a variable of SikkerGuard; the nearest is {near[0]}.")
    values: dict[str, object] = {}
    for name, reader in _READERS.items():
        if name in settings:
            try:
                values.update(reader(settings[name]))
            except (ValueError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                complaints.append(f"{name}: {reason}.")
    key_complaints: list[str] = []
    values["api_key"] = _find_key(settings, environment, key_complaints)
    if need_key:
        if not values["api_key"] and not key_complaints:
            key_complaints.append(
                "SIKKER_API_KEY is not set; put your key there, or into the file that SIKKER_API_KEY_FILE names."
            )
        complaints += key_complaints
    if complaints:
        raise ConfigError(complaints)
    return Config(**values)  # type: ignore[arg-type]


def missing_key(environment: Mapping[str, str], file: Path | None = None) -> str:
    """Why there is no key, and what to do; empty where there is one. Other faults are not looked at."""
    settings = _settings(environment, file, [])
    complaints: list[str] = []
    if _find_key(settings, environment, complaints):
        return ""
    return " ".join(complaints) or f"put yours into {DEFAULT_KEY_FILE}."


def state_dir(environment: Mapping[str, str], file: Path | None = None) -> Path:
    """The state directory, as far as that can be known: other faults are not looked at, and what can't be read or used
    is as if it were not set."""
    text = _settings(environment, file, []).get("SIKKER_STATE_DIR", "")
    try:
        return _absolute(text)
    except ValueError:
        return Config().state_dir


def in_force(config: Config) -> list[tuple[str, str]]:
    """Every variable with its value in force, as it would be written; the key is masked."""
    shown = {f.name: getattr(config, f.name) for f in fields(config)}
    shown["api_key"] = _masked(config.api_key)
    shown["health_address"] = f"{_bracketed(config.health_host)}:{config.health_port}"
    lines = []
    for variable, name in VARIABLES.items():
        if variable != "SIKKER_API_KEY_FILE":
            lines.append((variable, _written(name, shown[name])))
    return lines


def _written(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_interval") and isinstance(value, float):
        unit = next(unit for unit in "dhms" if not value % _SECONDS[unit])
        return f"{value / _SECONDS[unit]:.0f}{unit}"
    if name == "whitelist" and isinstance(value, tuple):
        return ",".join(str(entry).partition(" ")[0] for entry in value)
    if name == "ssh_ports" and isinstance(value, tuple):
        return ",".join(map(str, value))
    if name == "port_map" and isinstance(value, dict):
        return ",".join(f"{port}={service}" for port, service in value.items())
    if name == "max_coverage" and isinstance(value, float):
        return f"{100 * value:.12g}%"
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def _masked(key: str) -> str:
    """The tier's prefix, which is no secret and helps to tell keys apart, and nothing else."""
    if not key:
        return "(not set)"
    prefix = re.match(r"sk_[a-z]+_", key)
    return f"{prefix[0] if prefix else ''}********"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _settings(environment: Mapping[str, str], file: Path | None, complaints: list[str]) -> dict[str, str]:
    settings = _read_file(file, complaints)
    settings.update({name: text for name, text in environment.items() if name.startswith("SIKKER_") and text.strip()})
    return {name: text.strip() for name, text in settings.items() if text.strip()}


def _read_file(file: Path | None, complaints: list[str]) -> dict[str, str]:
    path = file or DEFAULT_FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if file is not None:
            complaints.append(f"{path}: there is no such file.")
        return {}
    except (OSError, UnicodeDecodeError) as error:
        complaints.append(f"{path} can't be read: {error}.")
        return {}
    settings: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content[0] in "#;":
            continue
        name, equals, value = content.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name.startswith("SIKKER_"):
            complaints.append(f"{path}, line {number}: not of the form SIKKER_...=value.")
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        settings[name] = value
    return settings


def _find_key(settings: Mapping[str, str], environment: Mapping[str, str], complaints: list[str]) -> str:
    if "SIKKER_API_KEY" in settings and "SIKKER_API_KEY_FILE" in settings:
        complaints.append("SIKKER_API_KEY and SIKKER_API_KEY_FILE are both set; keep one of them.")
        return ""
    if "SIKKER_API_KEY" in settings:
        return _checked_key("SIKKER_API_KEY", settings["SIKKER_API_KEY"], complaints)
    places = []
    if "SIKKER_API_KEY_FILE" in settings:
        places = [Path(settings["SIKKER_API_KEY_FILE"])]
    else:
        # Where no credential is passed, systemd 252 may name a directory that only root can enter.
        credentials = environment.get("CREDENTIALS_DIRECTORY", "")
        if os.access(credentials, os.X_OK):
            places.append(Path(credentials) / CREDENTIAL)
        places.append(DEFAULT_KEY_FILE)
    for path in places:
        try:
            return _checked_key(str(path), path.read_text("utf-8").strip(), complaints)
        except FileNotFoundError:
            if path.name.startswith("sk_"):
                complaints.append("SIKKER_API_KEY_FILE: this looks like a key, which belongs into SIKKER_API_KEY.")
            elif "SIKKER_API_KEY_FILE" in settings:
                complaints.append(f"SIKKER_API_KEY_FILE: there is no file {path}.")
        except (OSError, ValueError) as error:
            # A ValueError is a path or a content that no file of ours has: a NUL in it, or bytes that are not text.
            reason = error.strerror if isinstance(error, OSError) else error
            complaints.append(f"SIKKER_API_KEY_FILE: {path} can't be read ({reason}); let SikkerGuard's user read it.")
    return ""


def _checked_key(name: str, key: str, complaints: list[str]) -> str:
    # It goes into a header: a space or control character there is at best a mistake of copying. It is not shown.
    if key and not _PRINTABLE_KEY.fullmatch(key):
        complaints.append(f"{name}: the key has a space or another character that no key has.")
        return ""
    return key


def _number(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise ValueError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    if len(match[1]) > 8 or int(match[1]) * _SECONDS[match[2]] > _LONGEST_INTERVAL:
        raise ValueError(f"{text!r} is longer than a year")
    seconds = float(int(match[1]) * _SECONDS[match[2]])
    if seconds < _SHORTEST_INTERVAL:
        raise ValueError(f"{text!r} is shorter than {_SHORTEST_INTERVAL:g} seconds")
    return seconds


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text.lower()

    return read


def _growth(text: str) -> float:
    try:
        growth = float(text)
    except ValueError:
        growth = 0.0
    if not 1 < growth <= 1000:
        raise ValueError(f"{text!r} is not a number over 1, such as 2.0")
    return growth


def _share(text: str) -> float:
    """A percentage, as a number from 0 to 1."""
    match = _PERCENTAGE.fullmatch(text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a percentage over 0 and up to 100, such as 2%")
    return share


def _url(text: str) -> str:
    # urlsplit would drop tabs and line ends without a word.
    if not all(character.isprintable() and not character.isspace() for character in text):
        raise ValueError(f"{text!r} has a space or a control character")
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"{text!r} is not an address that begins with https://")
    if parts.username is not None or "?" in text or "#" in text:
        raise ValueError("it may name neither a user, nor a query, nor a fragment")
    if parts.port == 0:
        raise ValueError("port 0 can't be connected to")
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(f"{parts.hostname!r} is not the name of a host") from None
    return text.rstrip("/")


def _whitelist(text: str) -> tuple[AllowEntry, ...]:
    entries, faults = [], []
    items = text.replace(",", " ").split()
    if len(items) > _LONGEST_WHITELIST:
        raise ValueError(f"{len(items)} entries are more than the {_LONGEST_WHITELIST} that fit; join some into ranges")
    for item in items:
        try:
            family, prefix = parse_prefix(item)
            if not prefix.length:
                raise ValueError("would allow every address there is")
            entries.append(AllowEntry(family, prefix, "SIKKER_WHITELIST"))
        except ValueError as error:
            faults.append(f"{item!r}: {error}")
    if not faults:
        faults = [_half_of_all(family) for family in Family if _covers_half(family, entries)]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(entries)


def _covers_half(family: Family, entries: list[AllowEntry]) -> bool:
    """Whether these leave less than half of the family's addresses to be blocked."""
    whole = GLOBAL_UNICAST_V6 if family is Family.V6 else Interval(0, (1 << family.bits) - 1)
    covered = sum(
        max(0, min(last, whole.last) - max(first, whole.first) + 1)
        for first, last in merge(
            Interval(entry.prefix.first, entry.prefix.last(family)) for entry in entries if entry.family is family
        )
    )
    return 2 * covered >= whole.last - whole.first + 1


def _half_of_all(family: Family) -> str:
    what = "2000::/3" if family is Family.V6 else "all IPv4 addresses"
    return f"together the entries would allow half of {what} or more"


def _ssh_ports(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_number(item, 1, 65535) for item in text.replace(",", " ").split()))


def _port_map(text: str) -> Mapping[int, str]:
    from sikkerguard.core.ports import parse_port_map  # a table of 390 ports, needed where one is mapped

    return parse_port_map(text)


def _custom_blacklist(text: str) -> Path:
    # Whether it can be read shows when it is, again and again: until then its last good version counts.
    return _absolute(text)


def _absolute(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def _health_address(text: str) -> dict[str, object]:
    host, colon, port_text = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        local = bool(colon) and ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{text!r} is not a local address and port, such as 127.0.0.1:8080")
    return {"health_host": host, "health_port": _number(port_text, 1, 65535)}


def _field(name: str, read: Callable[[str], object]) -> Callable[[str], dict[str, object]]:
    return lambda text: {name: read(text)}


_READERS: dict[str, Callable[[str], dict[str, object]]] = {
    "SIKKER_API_URL": _field("api_url", _url),
    "SIKKER_SCORE_MIN": _field("score_min", lambda text: _number(text, 1, 100)),
    "SIKKER_PULL_INTERVAL": _field("pull_interval", _duration),
    "SIKKER_REPORT_ENABLED": _field("report_enabled", _boolean),
    "SIKKER_REPORT_INTERVAL": _field("report_interval", _duration),
    "SIKKER_REPORT_SPOOFABLE": _field("report_spoofable", _boolean),
    "SIKKER_REPORT_CUSTOM": _field("report_custom", _boolean),
    "SIKKER_WHITELIST": _field("whitelist", _whitelist),
    "SIKKER_SSH_PORTS": _field("ssh_ports", _ssh_ports),
    "SIKKER_DRY_RUN": _field("dry_run", _boolean),
    "SIKKER_PORT_MAP": _field("port_map", _port_map),
    "SIKKER_CUSTOM_BLACKLIST": _field("custom_blacklist", _custom_blacklist),
    "SIKKER_MAX_GROWTH": _field("max_growth", _growth),
    "SIKKER_MAX_COVERAGE": _field("max_coverage", _share),
    "SIKKER_HEALTH_ADDRESS": _health_address,
    "SIKKER_STATE_DIR": _field("state_dir", _absolute),
    "SIKKER_LOG_SOURCE": _field("log_source", _one_of(_LOG_SOURCES)),
    "SIKKER_LOG_LEVEL": _field("log_level", _one_of(_LOG_LEVELS)),
}
