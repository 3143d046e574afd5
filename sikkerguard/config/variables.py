"""The table of variables. A new setting is one line here, and a field of `settings.Config` with its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sikkerguard.config.readers import (
    BOOLEAN,
    DURATION,
    GROWTH,
    KEY,
    LOCAL_ADDRESS,
    OPTIONAL_PATH,
    PATH,
    PERCENTAGE,
    PORT_MAP,
    PORTS,
    SCORE,
    URL,
    WHITELIST,
    Kind,
    one_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Variable:
    """One SIKKER_* variable.

    `fields`: the fields of `Config` that it fills; the value of a variable with several fields is a tuple.
    `kind`: how its text is read and written.
    `is_key`: says what or where the key is; such a text is neither read by `kind` nor kept on disk.
    `shown`: `sikkerguard config` prints it.
    `essential`: without a good value the wrong addresses may be blocked. Others concern only words, reports and the
    page: where they are wrong, the list blocks all the same.
    `fixed`: can't change under a running service, which has opened sockets and locked files by it.
    `fallback`: values of fields that count where the text is wrong and there never was a good one, in place of the
    defaults.
    """

    name: str
    fields: tuple[str, ...]
    kind: Kind[Any]
    is_key: bool = False
    shown: bool = True
    essential: bool = True
    fixed: bool = False
    fallback: Mapping[str, object] = field(default_factory=dict)

    def values(self, text: str) -> dict[str, object]:
        """Read the text: values by field.

        Raises:
            ValueError: with a sentence that lacks its full stop.
        """
        value = self.kind.read(text)
        return dict(zip(self.fields, value if len(self.fields) > 1 else (value,), strict=True))

    def text(self, config: object) -> str:
        """The value that a `Config` has, as the variable would be set to it; a key is masked."""
        found = tuple(getattr(config, name) for name in self.fields)
        return self.kind.write(found if len(found) > 1 else found[0])


_LOG_SOURCE, _LOG_LEVEL = one_of("auto", "journald", "kmsg"), one_of("debug", "info", "warning", "error")
_HEALTH = ("health_host", "health_port")
# A wrong value shows that someone wanted to limit reports: until it is corrected none are sent.
_NO_REPORTS = {"report_enabled": False}

_TABLE = (
    Variable("SIKKER_API_KEY", ("api_key",), KEY, is_key=True),
    Variable("SIKKER_API_KEY_FILE", ("api_key",), KEY, is_key=True, shown=False),
    Variable("SIKKER_API_URL", ("api_url",), URL),
    Variable("SIKKER_ALLOW_HTTP", ("allow_http",), BOOLEAN, essential=False),
    Variable("SIKKER_SCORE_MIN", ("score_min",), SCORE),
    Variable("SIKKER_PULL_INTERVAL", ("pull_interval",), DURATION),
    Variable("SIKKER_REPORT_ENABLED", ("report_enabled",), BOOLEAN, essential=False, fallback=_NO_REPORTS),
    Variable("SIKKER_REPORT_INTERVAL", ("report_interval",), DURATION, essential=False),
    Variable("SIKKER_REPORT_SPOOFABLE", ("report_spoofable",), BOOLEAN, essential=False),
    Variable("SIKKER_REPORT_CUSTOM", ("report_custom",), BOOLEAN, essential=False),
    Variable("SIKKER_WHITELIST", ("whitelist",), WHITELIST),
    Variable("SIKKER_SSH_PORTS", ("ssh_ports",), PORTS),
    Variable("SIKKER_DRY_RUN", ("dry_run",), BOOLEAN, fixed=True),
    Variable("SIKKER_PORT_MAP", ("port_map",), PORT_MAP, essential=False),
    Variable("SIKKER_CUSTOM_BLACKLIST", ("custom_blacklist",), OPTIONAL_PATH),
    Variable("SIKKER_MAX_GROWTH", ("max_growth",), GROWTH),
    Variable("SIKKER_MAX_COVERAGE", ("max_coverage",), PERCENTAGE),
    Variable("SIKKER_HEALTH_ADDRESS", _HEALTH, LOCAL_ADDRESS, essential=False, fixed=True),
    Variable("SIKKER_STATE_DIR", ("state_dir",), PATH, fixed=True),
    Variable("SIKKER_LOG_SOURCE", ("log_source",), _LOG_SOURCE, essential=False, fixed=True),
    Variable("SIKKER_LOG_LEVEL", ("log_level",), _LOG_LEVEL, essential=False, fixed=True),
)

# By name, in the order in which they are shown.
VARIABLES: Mapping[str, Variable] = {variable.name: variable for variable in _TABLE}
# The fields that can't change under a running service, each with its variable's name.
FIXED: Mapping[str, str] = {name: variable.name for variable in _TABLE if variable.fixed for name in variable.fields}
