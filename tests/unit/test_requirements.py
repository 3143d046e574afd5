"""What a checkout installs: in one version each, known by its hash, and within the bounds of the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("requirements-build.txt", "requirements.txt", "requirements-test.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
DIRECT = {
    "requirements-build.txt": PROJECT["dependency-groups"]["build"],
    "requirements.txt": PROJECT["project"]["dependencies"] + EXTRAS["journal"],
    "requirements-test.txt": PROJECT["project"]["dependencies"] + EXTRAS["journal"] + EXTRAS["test"],
}


def locked(file: str) -> dict[str, str]:
    """The version of each library; every line of the file has to be understood."""
    text = (ROOT / file).read_text("ascii").replace(" \\\n", "")
    found = {}
    for line in text.splitlines()[1:]:
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)(?: ; [^#]+?)?((?: +--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, line
        found[match[1]] = match[2]
    return found


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


@pytest.mark.parametrize("file", FILES)
def test_every_library_has_one_version_and_hashes_and_keeps_the_bounds(file: str) -> None:
    found = locked(file)
    for requirement in DIRECT[file]:
        match = re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+),<([0-9.]+)", requirement)
        assert match, f"{requirement} has no bounds"
        name, low, high = match.groups()
        assert numbers(low) <= numbers(found[name]) < numbers(high), name


def test_tests_run_with_what_is_run() -> None:
    run, tests = locked("requirements.txt"), locked("requirements-test.txt")
    assert run.items() <= tests.items()


@pytest.mark.parametrize("file", [*FILES, "scripts/lock", "scripts/setup"])
def test_no_file_says_where_libraries_come_from(file: str) -> None:
    text = (ROOT / file).read_text("ascii")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|pypi|\.org\b", text)


def test_nothing_is_installed_that_is_not_known_by_its_hash() -> None:
    # The project itself is the one without, and brings nothing.
    text = (ROOT / "scripts" / "setup").read_text("ascii")
    installs = re.findall(r"^ +\$pip (.*)$", text, re.MULTILINE)
    assert len(installs) == 3
    assert text.count("pip install") == 1
    assert [line for line in installs if "--require-hashes" not in line] == [
        "--no-deps --no-index --use-pep517 --no-build-isolation --editable ."
    ]
