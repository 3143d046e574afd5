"""The settings: every variable, every complaint, all of them at once, and a key that is never shown."""

from __future__ import annotations

import tempfile
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.config.settings import Config, effective
from sikkerguard.config.variables import FIXED, VARIABLES
from sikkerguard.core import health
from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.schedule import jittered
from sikkerguard.core.state import PullState, State
from sikkerguard.errors import ConfigError
from tests.unit.config.reading import NOWHERE, load, reader

KEY = "sk_free_0123456789abcdef"
WITH_KEY = {"SIKKER_API_KEY": KEY}


def complaints(environment: dict[str, str], file: Path | None = None, *, defaults: Path = NOWHERE) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(environment, file, defaults=defaults)
    assert str(refused.value) == "\n".join(refused.value.complaints)
    return refused.value.complaints


def outcome(environment: dict[str, str], file: Path | None = None, *, need_key: bool = True) -> Config | list[str]:
    try:
        return load(environment, file, need_key=need_key)
    except ConfigError as error:
        return error.complaints


def whitelist(*texts: str) -> tuple[AllowEntry, ...]:
    return tuple(AllowEntry(*parse_prefix(text), "SIKKER_WHITELIST") for text in texts)


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_defaults_are_those_of_the_design() -> None:
    assert load(WITH_KEY) == Config(
        api_key=KEY,
        api_url="https://api.sikkerapi.com",
        score_min=50,
        pull_interval=24 * 3600.0,
        report_enabled=True,
        report_interval=30 * 60.0,
        report_spoofable=False,
        report_custom=False,
        whitelist=(),
        ssh_ports=(),
        dry_run=False,
        port_map={},
        custom_blacklist=None,
        max_growth=2.0,
        max_coverage=0.02,
        health_host="127.0.0.1",
        health_port=8080,
        state_dir=Path("/var/lib/sikkerguard"),
        log_source="auto",
        log_level="info",
    )


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("SIKKER_API_URL", "http://192.0.2.1:8080/", {"api_url": "http://192.0.2.1:8080"}),
        # A scheme's case means nothing, and must not hide what is sent in the clear.
        ("SIKKER_API_URL", "HTTP://192.0.2.1:8080", {"api_url": "http://192.0.2.1:8080"}),
        ("SIKKER_API_URL", "Https://api.example", {"api_url": "https://api.example"}),
        ("SIKKER_ALLOW_HTTP", "true", {"allow_http": True}),
        ("SIKKER_API_URL", "https://api.example/base/", {"api_url": "https://api.example/base"}),
        ("SIKKER_API_URL", "https://[2001:db8::1]:8443", {"api_url": "https://[2001:db8::1]:8443"}),
        ("SIKKER_SCORE_MIN", "1", {"score_min": 1}),
        ("SIKKER_SCORE_MIN", "100", {"score_min": 100}),
        ("SIKKER_SCORE_MIN", " 70 ", {"score_min": 70}),
        ("SIKKER_PULL_INTERVAL", "90s", {"pull_interval": 90.0}),
        ("SIKKER_PULL_INTERVAL", "30m", {"pull_interval": 1800.0}),
        ("SIKKER_PULL_INTERVAL", "7d", {"pull_interval": 604800.0}),
        ("SIKKER_PULL_INTERVAL", "366d", {"pull_interval": 366 * 86400.0}),
        ("SIKKER_REPORT_ENABLED", "false", {"report_enabled": False}),
        ("SIKKER_REPORT_ENABLED", "No", {"report_enabled": False}),
        ("SIKKER_REPORT_ENABLED", "0", {"report_enabled": False}),
        ("SIKKER_REPORT_INTERVAL", "2h", {"report_interval": 7200.0}),
        ("SIKKER_REPORT_SPOOFABLE", "TRUE", {"report_spoofable": True}),
        ("SIKKER_REPORT_CUSTOM", "yes", {"report_custom": True}),
        ("SIKKER_WHITELIST", "198.51.100.7", {"whitelist": whitelist("198.51.100.7")}),
        (
            "SIKKER_WHITELIST",
            " 198.51.100.9/24,2001:db8::/32  203.0.113.1, ",
            {"whitelist": whitelist("198.51.100.0/24", "2001:db8::/32", "203.0.113.1")},
        ),
        # A quarter of IPv4, and less than half of what is assigned of IPv6.
        ("SIKKER_WHITELIST", "0.0.0.0/2 2000::/5", {"whitelist": whitelist("0.0.0.0/2", "2000::/5")}),
        # What no list can block anyway does not count.
        ("SIKKER_WHITELIST", "fc00::/7,8000::/1", {"whitelist": whitelist("fc00::/7", "8000::/1")}),
        ("SIKKER_SSH_PORTS", "2222", {"ssh_ports": (2222,)}),
        ("SIKKER_SSH_PORTS", " 2222, 65535 1,2222 ", {"ssh_ports": (2222, 65535, 1)}),
        ("SIKKER_DRY_RUN", "yes", {"dry_run": True}),
        ("SIKKER_DRY_RUN", "on", {"dry_run": True}),
        ("SIKKER_DRY_RUN", "1", {"dry_run": True}),
        ("SIKKER_PORT_MAP", "8443=https,2222=ssh", {"port_map": {8443: "https", 2222: "ssh"}}),
        (
            "SIKKER_PORT_MAP",
            "2222=SSH 8000-8001=myapp 23=door:telnet",
            {"port_map": {2222: "ssh", 8000: "myapp", 8001: "myapp", 23: "door:telnet"}},
        ),
        ("SIKKER_CUSTOM_BLACKLIST", __file__, {"custom_blacklist": Path(__file__)}),
        ("SIKKER_MAX_GROWTH", "1.5", {"max_growth": 1.5}),
        ("SIKKER_MAX_GROWTH", "1000", {"max_growth": 1000.0}),
        ("SIKKER_CUSTOM_BLACKLIST", "/nowhere/yet.txt", {"custom_blacklist": Path("/nowhere/yet.txt")}),
        ("SIKKER_MAX_COVERAGE", "5", {"max_coverage": 0.05}),
        ("SIKKER_MAX_COVERAGE", "0.5%", {"max_coverage": 0.005}),
        ("SIKKER_MAX_COVERAGE", "100 %", {"max_coverage": 1.0}),
        ("SIKKER_HEALTH_ADDRESS", "127.0.0.2:1", {"health_host": "127.0.0.2", "health_port": 1}),
        ("SIKKER_HEALTH_ADDRESS", "[::1]:65535", {"health_host": "::1", "health_port": 65535}),
        ("SIKKER_HEALTH_ADDRESS", "localhost:9090", {"health_host": "127.0.0.1", "health_port": 9090}),
        ("SIKKER_STATE_DIR", "/srv/guard", {"state_dir": Path("/srv/guard")}),
        ("SIKKER_LOG_SOURCE", "kmsg", {"log_source": "kmsg"}),
        ("SIKKER_LOG_SOURCE", "Journald", {"log_source": "journald"}),
        ("SIKKER_LOG_LEVEL", "DEBUG", {"log_level": "debug"}),
    ],
)
def test_each_variable_fills_its_field(name: str, text: str, values: dict[str, Any]) -> None:
    assert load({**WITH_KEY, name: text}) == replace(Config(api_key=KEY), **values)


@pytest.mark.parametrize("zeros", [1, 6, 7, 8, 9, 12, 5000])
def test_a_number_is_never_read_in_part(zeros: int) -> None:
    # Taken or refused, but not another number.
    interval = outcome({**WITH_KEY, "SIKKER_PULL_INTERVAL": f"{'0' * zeros}100000s"})
    assert not isinstance(interval, Config) or interval.pull_interval == 100000.0
    score = outcome({**WITH_KEY, "SIKKER_SCORE_MIN": f"{'0' * zeros}70"})
    assert not isinstance(score, Config) or score.score_min == 70


BAD = {
    "SIKKER_API_URL": [
        "api.sikkerapi.com",
        "ftp://api.example",
        "https://",
        "https:///path",
        "https://me@api.example",
        "https://api.example/?a=b",
        "https://api.example/#a",
        "https://api.example:0",
        "https://api.example:65536",
        "https://api.example:http",
        "https://[2001:db8::1",
        # None of these can ever be asked: the first three are no names, the others swallow the path behind them.
        "https://api..example",
        "https://" + "a" * 64 + ".example",
        "https://api\t.example",
        "https://api .example",
        "https://api.example/a b",
        "https://api.example/a\x7fb",
        "https://api.example?",
        "https://api.example#",
    ],
    "SIKKER_ALLOW_HTTP": ["please"],
    "SIKKER_SCORE_MIN": ["0", "101", "-1", "+50", "50.0", "5e1", "half", "\u0665\u0660", "000000050000"],
    "SIKKER_PULL_INTERVAL": [
        "24",
        "24 h",
        "h",
        "1.5h",
        "-1h",
        "9s",
        "0s",
        "1w",
        "24H",
        "\u0662h",
        "1h30m",
        "367d",
        "9" * 9 + "d",
    ],
    "SIKKER_REPORT_ENABLED": ["maybe", "2", "truee"],
    "SIKKER_REPORT_INTERVAL": ["soon", "5s"],
    "SIKKER_REPORT_SPOOFABLE": ["y"],
    "SIKKER_REPORT_CUSTOM": ["custom"],
    "SIKKER_WHITELIST": [
        "198.51.100.256",
        "198.51.100.7/33",
        "0.0.0.0/0",
        "::/0",
        "office.example",
        "198.51.100.7;2001:db8::1",
        "198.51.100.1-198.51.100.9",
        # Each is an exception, and together they are everything.
        "0.0.0.0/1,128.0.0.0/1",
        "0.0.0.0/1",
        "0.0.0.0/2 192.0.0.0/2",
        "2000::/3",
        "2000::/4",
        "::/1",
        "2000::/5 3800::/5",
    ],
    "SIKKER_SSH_PORTS": ["ssh", "0", "65536", "22-23", "2222=ssh", "22;23", "-1"],
    "SIKKER_DRY_RUN": ["nope"],
    "SIKKER_PORT_MAP": ["ssh=2222", "2222", "0=ssh", "65536=ssh", "2222=mine:sssh", "22=my_ssh", "22=ssh,22=http"],
    "SIKKER_CUSTOM_BLACKLIST": ["list.txt", "~/list.txt", "list\0"],
    "SIKKER_MAX_COVERAGE": ["0", "0%", "101", "100.1%", "-1", "2,5", "nan", "1e1", "two", "%", "1%%"],
    "SIKKER_MAX_GROWTH": ["1", "1.0", "0.5", "-2", "nan", "inf", "1001", "twice", "2,0"],
    "SIKKER_HEALTH_ADDRESS": [
        "8080",
        ":8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:000000808099",
        "127.0.0.1:http",
        "0.0.0.0:8080",
        "[::]:8080",
        "198.51.100.7:8080",
        "[2001:db8::1]:8080",
        "health.example:8080",
    ],
    "SIKKER_STATE_DIR": ["state", "./state", "~/state", "/srv/\0"],
    "SIKKER_LOG_SOURCE": ["syslog", "journal"],
    "SIKKER_LOG_LEVEL": ["loud", "notset", "critical", "10"],
    "SIKKER_API_KEY": ["sk_free_a b", "sk_free_a\tb", "sk_free_\u00e4", "sk_free_a\x7f", "Bearer sk_free_a"],
    "SIKKER_API_KEY_FILE": ["/nowhere/at/all", "/", "/etc/key\0"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_each_bad_value_is_complained_of_by_its_variable(name: str, text: str) -> None:
    key = {} if name.startswith("SIKKER_API_KEY") else WITH_KEY
    (complaint,) = complaints({**key, name: text})
    assert complaint.startswith((f"{name}: ", f"{name} "))
    assert complaint.endswith(".")
    assert not complaint.endswith((": .", "None.", ".."))


def test_every_variable_has_bad_values_here() -> None:
    assert BAD.keys() == VARIABLES.keys()
    filled = {name for variable in VARIABLES.values() for name in variable.fields}
    assert filled == set(Config.__dataclass_fields__) - {"key_source", "key_missing", "texts", "troubles"}


def test_what_sockets_and_locks_depend_on_is_fixed_while_a_service_runs() -> None:
    assert FIXED == {
        "dry_run": "SIKKER_DRY_RUN",
        "health_host": "SIKKER_HEALTH_ADDRESS",
        "health_port": "SIKKER_HEALTH_ADDRESS",
        "state_dir": "SIKKER_STATE_DIR",
        "log_level": "SIKKER_LOG_LEVEL",
        "log_source": "SIKKER_LOG_SOURCE",
    }


def test_all_complaints_come_at_once() -> None:
    names = sorted(BAD.keys() - {"SIKKER_API_KEY", "SIKKER_API_KEY_FILE"})
    found = complaints({**WITH_KEY, **{name: BAD[name][0] for name in names}, "SIKKER_SCORE": "9"})
    assert sorted(complaint.partition(":")[0].partition(" ")[0] for complaint in found) == [
        *sorted([*names, "SIKKER_SCORE"])
    ]


def test_a_missing_key_is_complained_of_beside_the_rest() -> None:
    found = complaints({"SIKKER_SCORE_MIN": "0"})
    assert [complaint.partition(" ")[0].rstrip(":") for complaint in found] == ["SIKKER_SCORE_MIN", "SIKKER_API_KEY"]


def test_every_fault_of_one_variable_is_named() -> None:
    (complaint,) = complaints({**WITH_KEY, "SIKKER_WHITELIST": "198.51.100.300,203.0.113.1,office,0.0.0.0/0"})
    assert all(repr(fault) in complaint for fault in ("198.51.100.300", "office", "0.0.0.0/0"))
    assert "203.0.113.1" not in complaint


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SIKKER_APIKEY", "SIKKER_API_KEY"),
        ("SIKKER_SCORE", "SIKKER_SCORE_MIN"),
        ("SIKKER_SCOREMIN", "SIKKER_SCORE_MIN"),
        ("SIKKER_WHITE_LIST", "SIKKER_WHITELIST"),
        ("SIKKER_PULL_INTERVALL", "SIKKER_PULL_INTERVAL"),
        ("SIKKER_DRYRUN", "SIKKER_DRY_RUN"),
        ("SIKKER_HEALTH_ADRESS", "SIKKER_HEALTH_ADDRESS"),
        ("SIKKER_LOGLEVEL", "SIKKER_LOG_LEVEL"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, nearest: str, tmp_path: Path) -> None:
    expected = f"{name} is not a variable of SikkerGuard; the nearest is {nearest}"
    file = put(tmp_path / "settings", f"\n{name}=1\n")
    # A key that is missing is said beside it.
    assert complaints({**WITH_KEY, name: "1"}) == [f"{expected}."]
    assert complaints(WITH_KEY, file) == [f"{expected} ({file}, line 2)."]


@pytest.mark.parametrize("name", ["SIKKER_COUNTRIES", "SIKKER_COLOUR", "SIKKER_", "SIKKER_STATS_KEY", "SIKKER_NOTIFY"])
def test_a_name_like_no_other_is_ignored_and_said(name: str, tmp_path: Path) -> None:
    found = load({**WITH_KEY, name: "1"})
    assert found == Config(api_key=KEY)
    assert found.troubles == (f"{name} is not a variable of SikkerGuard, and is ignored.",)
    file = put(tmp_path / "settings", f"{name}=1\n")
    assert load(WITH_KEY, file).troubles == (
        f"{name} is not a variable of SikkerGuard, and is ignored ({file}, line 1).",
    )


def test_the_environment_of_others_is_none_of_our_business() -> None:
    assert load({**WITH_KEY, "PATH": "/bin", "SIKKERGUARD_X": "1", "sikker_dry_run": "1"}) == Config(api_key=KEY)


@pytest.mark.parametrize("nothing", ["", " ", "\t\n"])
def test_a_variable_set_to_nothing_is_not_set(nothing: str) -> None:
    environment = dict.fromkeys([*VARIABLES, "SIKKER_UNKNOWN"], nothing)
    assert load({**environment, **WITH_KEY}) == Config(api_key=KEY)


# The file


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("SIKKER_SCORE_MIN=70", 70),
        ("  SIKKER_SCORE_MIN = 70  ", 70),
        ('SIKKER_SCORE_MIN="70"', 70),
        ("SIKKER_SCORE_MIN='70'", 70),
        ("SIKKER_SCORE_MIN=", 50),
        ('SIKKER_SCORE_MIN=""', 50),
        ("SIKKER_SCORE_MIN=60\nSIKKER_SCORE_MIN=70", 70),
        ("# SIKKER_SCORE_MIN=70", 50),
        ("  ; SIKKER_SCORE_MIN=70", 50),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_is_read_as_systemd_reads_it(line: str, score: int, newline: str, tmp_path: Path) -> None:
    content = f"# settings\n\n{line}\n".replace("\n", newline)
    assert load(WITH_KEY, put(tmp_path / "settings", content)).score_min == score


def test_a_value_may_hold_an_equals_sign_and_quotes(tmp_path: Path) -> None:
    file = put(tmp_path / "settings", "SIKKER_PORT_MAP=8443=https,2222=ssh\nSIKKER_LOG_SOURCE='kmsg\"\n")
    assert complaints(WITH_KEY, file) == [
        f"SIKKER_LOG_SOURCE: '\\'kmsg\"' is none of auto, journald, kmsg ({file}, line 2)."
    ]
    # A quote alone is no pair around nothing.
    file.write_text("SIKKER_LOG_SOURCE='")
    assert complaints(WITH_KEY, file) == [f'SIKKER_LOG_SOURCE: "\'" is none of auto, journald, kmsg ({file}, line 1).']
    file.write_text("SIKKER_PORT_MAP=8443=https,2222=ssh")
    assert load(WITH_KEY, file).port_map == {8443: "https", 2222: "ssh"}


def test_a_comment_behind_a_value_is_part_of_it(tmp_path: Path) -> None:
    # As systemd has it; better refused here than meant otherwise there.
    (complaint,) = complaints(WITH_KEY, put(tmp_path / "settings", "SIKKER_SCORE_MIN=70 # high\n"))
    assert complaint.startswith("SIKKER_SCORE_MIN: '70 # high'")


def test_a_continued_line_is_never_read_by_half(tmp_path: Path) -> None:
    file = put(tmp_path / "settings", "SIKKER_WHITELIST=198.51.100.1 \\\n198.51.100.2\n")
    found = outcome(WITH_KEY, file)
    if isinstance(found, Config):
        assert found.whitelist == whitelist("198.51.100.1", "198.51.100.2")
    else:
        assert any("SIKKER_WHITELIST" in complaint for complaint in found)


@pytest.mark.parametrize(
    "line", ["SIKKER_SCORE_MIN", "SIKKER_SCORE_MIN 70", "SCORE_MIN=70", "=70", "export SIKKER_X=1"]
)
def test_a_line_of_another_form_is_named(line: str, tmp_path: Path) -> None:
    file = put(tmp_path / "settings", f"# one\nSIKKER_DRY_RUN=true\n{line}\n")
    (complaint,) = complaints(WITH_KEY, file)
    assert complaint.startswith(f"{file}, line 3: ")


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    file = put(tmp_path / "settings", "SIKKER_SCORE_MIN=70\nSIKKER_DRY_RUN=true\n")
    found = load({**WITH_KEY, "SIKKER_SCORE_MIN": "80"}, file)
    assert (found.score_min, found.dry_run) == (80, True)


def test_a_variable_set_to_nothing_leaves_the_word_to_the_file(tmp_path: Path) -> None:
    # As `SIKKER_SCORE_MIN: ${SIKKER_SCORE_MIN:-}` in a compose file sets it.
    file = put(tmp_path / "settings", "SIKKER_SCORE_MIN=70\n")
    assert load({**WITH_KEY, "SIKKER_SCORE_MIN": ""}, file).score_min == 70


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    assert complaints(WITH_KEY, file) == [f"{file}: there is no such file."]


@pytest.mark.parametrize("content", [None, b"SIKKER_DRY_RUN=\xff\n"])
def test_a_file_that_can_not_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    (complaint,) = complaints(WITH_KEY, file)
    assert complaint.startswith(f"{file} can't be read: ")


def test_the_default_file_is_read_where_it_exists(tmp_path: Path) -> None:
    assert load(WITH_KEY, defaults=tmp_path).score_min == 50
    put(tmp_path / "sikkerguard.env", f"SIKKER_SCORE_MIN=70\nSIKKER_API_KEY={KEY}\n")
    found = load({}, defaults=tmp_path)
    assert (found.score_min, found.api_key) == (70, KEY)


def test_a_file_that_was_asked_for_takes_the_place_of_the_default_one(tmp_path: Path) -> None:
    put(tmp_path / "sikkerguard.env", "SIKKER_SCORE_MIN=70\nSIKKER_OOPS=1\n")
    file = put(tmp_path / "settings", "SIKKER_DRY_RUN=1\n")
    assert load(WITH_KEY, file, defaults=tmp_path) == Config(api_key=KEY, dry_run=True)


# The key


def key_from(*places: str, tmp_path: Path) -> str:
    """The key that is found when it lies in these places, each with a key of its own."""
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    if "environment" in places:
        environment["SIKKER_API_KEY"] = "sk_free_environment"
    if "named file" in places:
        environment["SIKKER_API_KEY_FILE"] = str(put(tmp_path / "key", "sk_free_named\n"))
    if "credential" in places:
        put(tmp_path / "credentials" / "sikker_api_key", "sk_free_credential\n")
    if "default file" in places:
        put(tmp_path / "api-key", "sk_free_default\r\n")
    return load(environment, need_key=False, defaults=tmp_path).api_key


@pytest.mark.parametrize(
    ("places", "key"),
    [
        (["environment"], "sk_free_environment"),
        (["named file"], "sk_free_named"),
        (["credential"], "sk_free_credential"),
        (["default file"], "sk_free_default"),
        (["environment", "credential", "default file"], "sk_free_environment"),
        (["named file", "credential", "default file"], "sk_free_named"),
        (["credential", "default file"], "sk_free_credential"),
        ([], ""),
    ],
)
def test_the_nearest_key_is_taken(places: list[str], key: str, tmp_path: Path) -> None:
    assert key_from(*places, tmp_path=tmp_path) == key


def test_a_key_and_a_key_file_are_one_too_many(tmp_path: Path) -> None:
    (complaint,) = complaints({**WITH_KEY, "SIKKER_API_KEY_FILE": str(put(tmp_path / "key", KEY))})
    assert "SIKKER_API_KEY and SIKKER_API_KEY_FILE are both set" in complaint


def test_a_key_file_that_is_not_there_is_not_made_up_for_by_another(tmp_path: Path) -> None:
    put(tmp_path / "api-key", KEY)
    (complaint,) = complaints({"SIKKER_API_KEY_FILE": str(tmp_path / "key")}, defaults=tmp_path)
    assert complaint == f"SIKKER_API_KEY_FILE: there is no file {tmp_path / 'key'}."


def test_without_a_key_the_variable_is_named() -> None:
    (complaint,) = complaints({})
    assert complaint.startswith("SIKKER_API_KEY is not set")
    with pytest.raises(ConfigError, match="SIKKER_API_KEY is not set"):
        load({})
    assert load({}, need_key=False) == Config()


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_an_empty_key_file_is_no_key(content: str, tmp_path: Path) -> None:
    (complaint,) = complaints({"SIKKER_API_KEY_FILE": str(put(tmp_path / "key", content))})
    assert "SIKKER_API_KEY" in complaint


@pytest.mark.parametrize(
    "content", [b"sk_free_a\nsk_free_b\n", b"sk_free_\xff", b"sk_free_\xc3\xa4", b"sk free", b"sk\0"]
)
def test_a_key_file_with_something_else_in_it_is_refused_unseen(content: bytes, tmp_path: Path) -> None:
    file = put(tmp_path / "key", content)
    (complaint,) = complaints({"SIKKER_API_KEY_FILE": str(file)})
    assert str(file) in complaint
    assert "sk_free" not in complaint.replace(str(file), "")


def test_a_command_that_needs_no_key_runs_where_the_key_may_not_be_read(tmp_path: Path) -> None:
    # An ordinary user who asks for the status; a directory stands for a file of which the rights are missing, since
    # root may read those.
    (tmp_path / "api-key").mkdir()
    assert load({}, need_key=False, defaults=tmp_path) == Config()
    assert "api-key can't be read" in complaints({}, defaults=tmp_path)[0]


def test_a_missing_key_is_reported_with_what_to_do(tmp_path: Path) -> None:
    def missing_key(**environment: str) -> str:
        return reader(environment, defaults=tmp_path).missing_key()

    assert missing_key() == f"put yours into {tmp_path}/api-key."
    # A service that waits for its key must not start only to have another fault seen.
    assert missing_key(SIKKER_SCORE_MIN="nonsense") == f"put yours into {tmp_path}/api-key."
    put(tmp_path / "api-key", "\n")
    assert missing_key() != ""
    put(tmp_path / "api-key", "a key with spaces")
    assert "no key has" in missing_key()
    assert "spaces" not in missing_key()
    put(tmp_path / "api-key", KEY)
    assert missing_key() == ""


def test_a_key_is_found_wherever_it_may_be(tmp_path: Path) -> None:
    file = put(tmp_path / "some.env", f"SIKKER_API_KEY={KEY}\n")
    credential = put(tmp_path / "credentials" / "sikker_api_key", KEY)
    assert reader(WITH_KEY).missing_key() == ""
    assert reader({}, file).missing_key() == ""
    assert reader({"SIKKER_API_KEY_FILE": str(credential)}).missing_key() == ""
    assert reader({"CREDENTIALS_DIRECTORY": str(credential.parent)}).missing_key() == ""


def test_a_directory_of_credentials_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    put(tmp_path / "api-key", KEY)
    assert load({"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}, defaults=tmp_path).api_key == KEY


@pytest.mark.parametrize("key", [KEY, "sk_business_abc", "plainkey", "sk_x", "SK_FREE_abc", "sk_free_a_b_c"])
def test_the_key_is_never_shown(key: str) -> None:
    found = load({"SIKKER_API_KEY": key})
    assert found.api_key == key
    secret = key.rpartition("sk_free_")[2].rpartition("sk_business_")[2]
    for shown in (repr(found), str(found), str(effective(found))):
        assert secret not in shown


def test_the_tier_of_the_key_is_shown() -> None:
    assert dict(effective(load(WITH_KEY)))["SIKKER_API_KEY"] == "sk_free_********"
    assert dict(effective(Config()))["SIKKER_API_KEY"] == "(not set)"


def test_no_complaint_shows_the_key() -> None:
    for name in VARIABLES.keys() - {"SIKKER_API_KEY", "SIKKER_API_KEY_FILE"}:
        assert KEY not in str(complaints({**WITH_KEY, name: BAD[name][0]}))
    assert KEY not in str(complaints({"SIKKER_APIKEY": KEY}))
    assert KEY not in str(complaints({"SIKKER_API_KEY": f"{KEY} {KEY}"}))


# Effective values


def test_every_variable_is_shown_with_its_effective_value() -> None:
    assert [name for name, _ in effective(Config())] == [name for name in VARIABLES if name != "SIKKER_API_KEY_FILE"]
    assert dict(effective(load(WITH_KEY))) == {
        "SIKKER_API_KEY": "sk_free_********",
        "SIKKER_API_URL": "https://api.sikkerapi.com",
        "SIKKER_ALLOW_HTTP": "false",
        "SIKKER_SCORE_MIN": "50",
        "SIKKER_PULL_INTERVAL": "1d",
        "SIKKER_REPORT_ENABLED": "true",
        "SIKKER_REPORT_INTERVAL": "30m",
        "SIKKER_REPORT_SPOOFABLE": "false",
        "SIKKER_REPORT_CUSTOM": "false",
        "SIKKER_WHITELIST": "",
        "SIKKER_SSH_PORTS": "",
        "SIKKER_DRY_RUN": "false",
        "SIKKER_PORT_MAP": "",
        "SIKKER_CUSTOM_BLACKLIST": "",
        "SIKKER_MAX_GROWTH": "2",
        "SIKKER_MAX_COVERAGE": "2%",
        "SIKKER_HEALTH_ADDRESS": "127.0.0.1:8080",
        "SIKKER_STATE_DIR": "/var/lib/sikkerguard",
        "SIKKER_LOG_SOURCE": "auto",
        "SIKKER_LOG_LEVEL": "info",
    }


booleans = st.sampled_from(["true", "false"])
durations = st.builds(
    lambda number, unit: f"{number}{unit}", st.integers(10, 365), st.sampled_from(["s", "m", "h", "d"])
)
good = st.fixed_dictionaries(
    {},
    optional={
        "SIKKER_API_URL": st.sampled_from(["http://192.0.2.1:8080", "https://[2001:db8::1]", "https://api.example/a"]),
        "SIKKER_SCORE_MIN": st.integers(1, 100).map(str),
        "SIKKER_PULL_INTERVAL": durations,
        "SIKKER_REPORT_ENABLED": booleans,
        "SIKKER_REPORT_INTERVAL": durations,
        "SIKKER_REPORT_SPOOFABLE": booleans,
        "SIKKER_REPORT_CUSTOM": booleans,
        "SIKKER_WHITELIST": st.lists(
            st.sampled_from(["198.51.100.7", "203.0.113.0/24", "2001:db8::7", "2001:db8::/32", "::ffff:c633:6407"])
        ).map(",".join),
        "SIKKER_DRY_RUN": booleans,
        "SIKKER_ALLOW_HTTP": booleans,
        "SIKKER_PORT_MAP": st.dictionaries(
            st.integers(8000, 8020), st.sampled_from(["ssh", "my-app", "door:telnet"])
        ).map(lambda known: " ".join(f"{port}={service}" for port, service in known.items())),
        "SIKKER_CUSTOM_BLACKLIST": st.just(__file__),
        "SIKKER_MAX_GROWTH": st.integers(11, 10_000).map(lambda tenths: str(tenths / 10)),
        "SIKKER_MAX_COVERAGE": st.integers(1, 10_000).map(lambda hundredths: f"{hundredths / 100}%"),
        "SIKKER_HEALTH_ADDRESS": st.sampled_from(["127.0.0.3:1", "[::1]:65535", "localhost:9090"]),
        "SIKKER_STATE_DIR": st.just("/srv/guard of sikker"),
        "SIKKER_LOG_SOURCE": st.sampled_from(["auto", "journald", "kmsg"]),
        "SIKKER_LOG_LEVEL": st.sampled_from(["debug", "info", "warning", "error"]),
    },
)


@settings(max_examples=200)
@given(good)
def test_effective_values_can_be_set_again(environment: dict[str, str]) -> None:
    found = load({**environment, **WITH_KEY})
    assert load({**dict(effective(found)), **WITH_KEY}) == found


def test_a_config_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().dry_run = True  # type: ignore[misc]


@pytest.mark.parametrize("interval", ["7d", "365d", "36500d", "9999999d", "99999999d"])
def test_an_interval_that_is_taken_can_be_lived_with(interval: str) -> None:
    found = outcome({**WITH_KEY, "SIKKER_PULL_INTERVAL": interval})
    if not isinstance(found, Config):
        assert found[0].startswith("SIKKER_PULL_INTERVAL: ")
        assert interval != "7d"
        return
    now = 1_800_000_000.0
    pull = PullState(next_pull_at=now + jittered(found.pull_interval, lambda: 1.0))
    state = State(started_at=now, dry_run=False, pull=pull)
    assert health.status(state, now, ())["nextPull"]


# Whatever else


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*VARIABLES]), st.text(max_size=20)), st.booleans())
def test_no_value_is_too_strange_for_a_sentence(values: dict[str, str], need_key: bool) -> None:
    found = outcome(values, need_key=need_key)
    if not isinstance(found, Config):
        assert found
        return
    assert 1 <= found.score_min <= 100
    assert 1 <= found.health_port <= 65535
    assert found.pull_interval >= 10
    assert 1 < found.max_growth <= 1000
    assert found.state_dir.is_absolute()


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda name, value: name.encode() + b"=" + value,
            st.sampled_from([*VARIABLES]),
            st.binary(max_size=8),
        ),
    )
)
def test_no_file_is_too_strange_for_a_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        assert outcome({}, put(Path(directory) / "settings", content), need_key=False)
