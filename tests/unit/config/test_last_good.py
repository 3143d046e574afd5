"""Wrong settings: what counts instead, what is kept of good ones, and what is never kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sikkerguard.config.settings import Config
from sikkerguard.config.variables import VARIABLES
from sikkerguard.errors import ConfigError
from tests.unit.config.reading import load, reader

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "sk_free_0123456789abcdef"
WITH_KEY = {"SIKKER_API_KEY": KEY}
GOOD = {"SIKKER_SCORE_MIN": "70", "SIKKER_WHITELIST": "198.51.100.7", "SIKKER_PORT_MAP": "2222=myssh:ssh"}
# For each variable a value that no version took.
WRONG = {name: "\N{SNOWMAN}" for name in VARIABLES if not name.startswith("SIKKER_API_KEY")}


def started(
    environment: Mapping[str, str],
    file: Path | None = None,
    *,
    kept: Mapping[str, str] | None = None,
    need_key: bool = True,
    defaults: bool = False,
) -> Config:
    return reader(environment, file).load_or_last_good(lambda _: kept, need_key=need_key, defaults=defaults)


def test_good_settings_are_taken_as_they_are_and_are_to_be_kept() -> None:
    found = started({**WITH_KEY, **GOOD}, kept={"SIKKER_SCORE_MIN": "90"})
    assert found == load({**WITH_KEY, **GOOD})
    assert (found.score_min, found.troubles) == (70, ())
    assert found.texts == GOOD


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_one_has_its_last_good_value_and_the_others_their_own(name: str, tmp_path: Path) -> None:
    former = load({**WITH_KEY, "SIKKER_SCORE_MIN": "90", "SIKKER_LOG_LEVEL": "debug", "SIKKER_DRY_RUN": "true"})
    assert former.texts is not None
    file = put(tmp_path / "settings", f"# mine\nSIKKER_WHITELIST=198.51.100.7\n{name}={WRONG[name]}\n")
    found = started(WITH_KEY, file, kept=former.texts)
    now = load({**WITH_KEY, **{k: v for k, v in former.texts.items() if k == name}, "SIKKER_WHITELIST": "198.51.100.7"})
    assert found == (now if name != "SIKKER_WHITELIST" else Config(api_key=KEY))
    # It is said which line is wrong, and what counts; and none of this is kept.
    (trouble,) = found.troubles
    assert trouble.startswith(f"{name}: ")
    assert trouble.endswith(f" ({file}, line 3). Until it is corrected, the last good value counts.")
    assert found.texts is None


@pytest.mark.parametrize("name", WRONG)
def test_where_there_never_were_good_ones_only_words_may_be_wrong(name: str) -> None:
    words = {
        *("SIKKER_PORT_MAP", "SIKKER_LOG_LEVEL", "SIKKER_LOG_SOURCE", "SIKKER_HEALTH_ADDRESS", "SIKKER_ALLOW_HTTP"),
        *("SIKKER_REPORT_ENABLED", "SIKKER_REPORT_INTERVAL", "SIKKER_REPORT_SPOOFABLE", "SIKKER_REPORT_CUSTOM"),
    }
    wrong = {**WITH_KEY, name: WRONG[name]}
    if name in words:
        found = started(wrong)
        # Who tried to say something of reports may not have wanted any.
        assert found == Config(api_key=KEY, report_enabled=name != "SIKKER_REPORT_ENABLED")
        assert "its default counts" in found.troubles[0]
    else:
        with pytest.raises(ConfigError, match=name):
            started(wrong)
    # A command that only asks is not kept from it.
    assert started(wrong, defaults=True).troubles


def test_a_line_that_can_not_be_read_may_have_been_any(tmp_path: Path) -> None:
    file = put(tmp_path / "settings", "SIKKER_WHITELIST 198.51.100.7\nSIKKER_SCORE_MIN=60\n")
    found = started(WITH_KEY, file, kept=GOOD)
    assert (found.score_min, found.whitelist, found.port_map) == (
        60,
        load({**WITH_KEY, **GOOD}).whitelist,
        {2222: "myssh:ssh"},
    )
    assert f"{file}, line 1" in found.troubles[0]
    with pytest.raises(ConfigError, match="line 1"):
        started(WITH_KEY, file)


@pytest.mark.parametrize("content", [None, b"SIKKER_DRY_RUN=\xff\n"])
def test_a_file_that_can_not_be_read_leaves_all_as_it_was(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    if content is not None:
        file.write_bytes(content)
    found = started({**WITH_KEY, "SIKKER_LOG_LEVEL": "debug"}, file, kept=GOOD)
    assert found == load({**WITH_KEY, **GOOD, "SIKKER_LOG_LEVEL": "debug"})
    assert str(file) in found.troubles[0]


def test_a_name_that_was_mistyped_leaves_its_variable_as_it_was() -> None:
    mistyped = {"SIKKER_WHITE_LIST": "198.51.100.7 198.51.100.8"}
    found = started({**WITH_KEY, **mistyped}, kept=GOOD)
    assert found.whitelist == load({**WITH_KEY, **GOOD}).whitelist
    assert found.score_min == 50
    # It never ends a start, and where the variable itself is set, that counts.
    assert started({**WITH_KEY, **mistyped}) == Config(api_key=KEY)
    assert started({**WITH_KEY, **mistyped, "SIKKER_WHITELIST": "203.0.113.1"}, kept=GOOD) == load(
        {**WITH_KEY, "SIKKER_WHITELIST": "203.0.113.1"}
    )


def test_what_was_good_for_another_version_has_its_default() -> None:
    kept = {"SIKKER_SCORE_MIN": "a lot", "SIKKER_FORMER": "1", "SIKKER_REPORT_ENABLED": "?"}
    found = started({**WITH_KEY, "SIKKER_SCORE_MIN": "?", "SIKKER_REPORT_ENABLED": "?"}, kept=kept)
    assert (found.score_min, found.report_enabled) == (50, False)


def test_the_key_is_never_a_former_one() -> None:
    found = started({}, kept={**GOOD, "SIKKER_API_KEY": "sk_free_former"})
    assert (found.api_key, found.score_min) == ("", 50)
    assert "SIKKER_API_KEY is not set" in found.refusal
    assert found.texts is None
    both = started({**WITH_KEY, "SIKKER_API_KEY_FILE": "/nowhere"}, kept={})
    assert "are both set" in both.refusal
    with pytest.raises(ConfigError, match="SIKKER_API_KEY is not set"):
        started({})
    # To block by the list on disk takes none.
    assert started({}, need_key=False) == Config()
    assert started({}, need_key=False).refusal == ""


def test_a_mistake_elsewhere_does_not_hide_the_key_of_the_moment() -> None:
    with pytest.raises(ConfigError) as refused:
        load({**WITH_KEY, "SIKKER_SCORE_MIN": "?"})
    assert refused.value.key == (KEY, "SIKKER_API_KEY")
    assert KEY not in repr(refused.value) + str(refused.value)
    with pytest.raises(ConfigError) as refused:
        load({"SIKKER_SCORE_MIN": "?"})
    assert refused.value.key is None


def test_the_state_directory_of_the_moment_is_asked_for_what_was_kept() -> None:
    asked = []

    def kept(directory: Path) -> None:
        asked.append(directory)

    with pytest.raises(ConfigError):
        reader({"SIKKER_STATE_DIR": "/srv/guard", "SIKKER_SCORE_MIN": "?"}).load_or_last_good(kept)
    with pytest.raises(ConfigError):
        reader({"SIKKER_STATE_DIR": "guard"}).load_or_last_good(kept)
    assert asked == [Path("/srv/guard"), Path("/var/lib/sikkerguard")]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from([*VARIABLES, "SIKKER_X"]), st.text(max_size=12)), st.binary(max_size=40))
def test_with_good_ones_kept_nothing_ends_a_start(values: dict[str, str], content: bytes) -> None:
    file = Path("/dev/null") if not content else None
    environment = {**values, "SIKKER_STATE_DIR": "/srv/guard"}
    found = started(environment, file, kept=GOOD)
    try:
        strict = load(environment, file)
    except ConfigError:
        assert found.troubles or found.key_missing
        assert found.texts is None
    else:
        assert found == strict


# http


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("https://api.example", False),
        ("http://127.0.0.1:8900", False),
        ("http://127.9.9.9", False),
        ("http://[::1]:8900", False),
        ("http://localhost:8900", False),
        ("HTTP://LocalHost", False),
        ("http://api.example", True),
        ("HTTP://api.example", True),
        ("hTTp://192.0.2.1", True),
        ("http://[2001:db8::1]", True),
        ("http://localhost.example", True),
        ("http://127.0.0.1.example", True),
        ("http://0.0.0.0:80", True),
    ],
)
def test_a_key_is_sent_in_the_clear_only_where_that_is_allowed(url: str, refused: bool) -> None:
    found = load({**WITH_KEY, "SIKKER_API_URL": url})
    assert bool(found.refusal) == refused
    if refused:
        assert "SIKKER_ALLOW_HTTP=true" in found.refusal
    assert load({**WITH_KEY, "SIKKER_API_URL": url, "SIKKER_ALLOW_HTTP": "true"}).refusal == ""


# Where it comes from


def test_the_place_of_the_key_is_named(tmp_path: Path) -> None:
    assert load(WITH_KEY).key_source == "SIKKER_API_KEY"
    file = put(tmp_path / "settings", f"#\nSIKKER_API_KEY={KEY}\n")
    assert load({}, file).key_source == f"SIKKER_API_KEY ({file}, line 2)"
    key = put(tmp_path / "api-key", KEY)
    assert load({}, defaults=tmp_path).key_source == str(key)
    named = put(tmp_path / "named", KEY)
    assert load({"SIKKER_API_KEY_FILE": str(named)}).key_source == str(named)


def test_the_files_that_may_change_the_settings_are_named(tmp_path: Path) -> None:
    def files(environment: Mapping[str, str], file: Path | None = None) -> tuple[Path, ...]:
        return reader(environment, file, defaults=tmp_path / "default").files()

    default_file, default_key_file = tmp_path / "default" / "sikkerguard.env", tmp_path / "default" / "api-key"
    assert files(WITH_KEY) == (default_file,)
    assert files({}) == (default_file, default_key_file)
    file = tmp_path / "settings"
    assert files({"SIKKER_API_KEY_FILE": "/run/key"}, file) == (file, Path("/run/key"))
    put(file, "SIKKER_API_KEY_FILE=/run/other\n")
    assert files({}, file) == (file, Path("/run/other"))
    assert files({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == (
        default_file,
        tmp_path / "sikker_api_key",
        default_key_file,
    )


def test_the_state_directory_is_found_whatever_else_is_wrong(tmp_path: Path) -> None:
    assert reader({"SIKKER_STATE_DIR": "/srv/guard", "SIKKER_SCORE_MIN": "?"}).state_dir() == Path("/srv/guard")
    assert reader({"SIKKER_STATE_DIR": "guard"}).state_dir() == Path("/var/lib/sikkerguard")
    assert reader({}, tmp_path / "missing").state_dir() == Path("/var/lib/sikkerguard")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_key_of_another_user_is_told_with_what_to_do(tmp_path: Path) -> None:
    key = put(tmp_path / "api-key", KEY)
    key.chmod(0o600)
    for directory in (*tmp_path.parents[:2], tmp_path):
        directory.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError) as refused:
            load({}, defaults=tmp_path)
    finally:
        os.seteuid(0)
    complaint = refused.value.complaints[-1]
    # Neither a variable that was not set, nor a file that is only in the container, is all that is said.
    assert complaint.startswith(f"{key} can't be read (Permission denied)")
    assert "chown root" in complaint
    assert "SIKKER_API_KEY_FILE" not in complaint


# What is read is a file, and has an end


@pytest.mark.parametrize("kind", ["pipe", "zero", "directory", "large"])
def test_neither_settings_nor_a_key_are_waited_for(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "zero":
        place = Path("/dev/zero")
    elif kind == "directory":
        place.mkdir()
    else:
        place.write_text("# \n" * (1 << 19))
    with pytest.raises(ConfigError) as wrong:
        load({"SIKKER_API_KEY_FILE": str(place)})
    assert f"{place} can't be read" in wrong.value.complaints[0]
    with pytest.raises(ConfigError) as wrong:
        load({"SIKKER_API_KEY": "sk_free_x"}, place)
    assert f"{place} can't be read" in wrong.value.complaints[0]


def test_the_null_device_in_the_place_of_a_key_is_none() -> None:
    with pytest.raises(ConfigError) as wrong:
        load({"SIKKER_API_KEY_FILE": "/dev/null"})
    assert "SIKKER_API_KEY is not set" in wrong.value.complaints[0]


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path
