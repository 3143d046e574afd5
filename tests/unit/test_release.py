"""`scripts/release` in a copy of what it changes, with a git repository of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.prepare_release import CHANGES, DEBIAN_CHANGES, PLACES
from sikkerguard.version import VERSION

ROOT = Path(__file__).parents[2]
NEXT = "98.7.6"
UNRELEASED = """\
# Changes

What changes for those who upgrade, newest first.

## Unreleased

### Words

- **A setting** is `new`, in a sentence that is long enough to need a second line in a changelog of Debian's, where
  lines are short. This is a second sentence.
- Another one
"""


def git(tree: Path, *words: str) -> str:
    """What git prints, without the settings of whoever runs this."""
    settings = ("user.name=Nobody", "user.email=nobody@example.net", "commit.gpgsign=false")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tree), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ("git", *(word for setting in settings for word in ("-c", setting)), *words),
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def release(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    words = (str(tree / "scripts" / "release"), *arguments)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clean tree that has something to release."""
    found = tmp_path / "tree"
    for name in (*PLACES, DEBIAN_CHANGES, "scripts/release", "scripts/prepare_release.py", "scripts/__init__.py"):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, found / name)
    released = re.search(r"^## \d.*\Z", (ROOT / CHANGES).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert released
    (found / CHANGES).write_text(f"{UNRELEASED}\n{released[0]}", "utf-8")
    git(found, "init", "--quiet")
    git(found, "add", "--all")
    git(found, "commit", "--quiet", "--message", "All of it")
    return found


def test_every_file_names_the_new_version(tree: Path) -> None:
    before = (tree / DEBIAN_CHANGES).read_text("utf-8")
    done = release(tree, NEXT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "git tag" in done.stdout
    changed = {line[3:] for line in git(tree, "status", "--porcelain").splitlines()}
    assert changed == {*PLACES, CHANGES, DEBIAN_CHANGES}
    for name in PLACES:
        text = (tree / name).read_text("utf-8")
        assert NEXT in text
        assert not re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d./])", text), name
    changes = (tree / CHANGES).read_text("utf-8")
    assert re.search(rf"^## {NEXT} \(\d{{4}}-\d\d-\d\d\)$", changes, re.MULTILINE)
    assert "Unreleased" not in changes
    packaged = (tree / DEBIAN_CHANGES).read_text("utf-8")
    assert packaged.endswith(f"\n{before}")
    assert packaged.startswith(
        f"""\
sikkerguard ({NEXT}) stable; urgency=medium

  * A setting is new, in a sentence that is long enough to need a second line
    in a changelog of Debian's, where lines are short.
  * Another one

 -- The SikkerGuard authors <authors@sikkerguard.invalid>  """
    )
    # Nothing but the tree was changed.
    assert git(tree, "tag") == ""
    assert git(tree, "rev-list", "--count", "HEAD") == "1\n"


def test_debian_s_own_tool_can_read_the_entry(tree: Path) -> None:
    release(tree, NEXT)
    for field, expected in (("Version", NEXT), ("Distribution", "stable"), ("Source", "sikkerguard")):
        words = ("dpkg-parsechangelog", "-l", str(tree / DEBIAN_CHANGES), "-S", field)
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_a_tree_that_is_not_clean_is_not_released(tree: Path) -> None:
    (tree / "forgotten").touch()
    done = release(tree, NEXT)
    assert done.returncode == 1
    assert "forgotten" in done.stderr
    assert git(tree, "status", "--porcelain") == "?? forgotten\n"


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        (VERSION, "not later"),
        ("0.0.9", "not later"),
        ("1.0", "not a version"),
        ("v1.0.0", "not a version"),
        ("1.0.0-rc1", "not a version"),
        ("01.0.0", "not a version"),
    ],
)
def test_only_a_later_version_is_released(tree: Path, version: str, complaint: str) -> None:
    done = release(tree, version)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert git(tree, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        (CHANGES, "## Unreleased", "## Later", "no entries"),
        (CHANGES, UNRELEASED[UNRELEASED.index("###") :], "", "no entries"),
        ("docker-compose.yml", f"sikkerguard:{VERSION}", "sikkerguard:latest", "docker-compose.yml does not name"),
        (DEBIAN_CHANGES, " -- ", " by ", "can't be read"),
    ],
)
def test_what_is_not_ready_is_not_released(tree: Path, name: str, old: str, new: str, complaint: str) -> None:
    text = (tree / name).read_text("utf-8")
    assert old in text
    (tree / name).write_text(text.replace(old, new), "utf-8")
    git(tree, "commit", "--quiet", "--all", "--message", "Not ready")
    done = release(tree, NEXT)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert git(tree, "status", "--porcelain") == ""


@pytest.mark.parametrize("arguments", [(), ("1.0.0", "2.0.0"), ("--help",)])
def test_wrong_use_changes_nothing(tree: Path, arguments: tuple[str, ...]) -> None:
    done = release(tree, *arguments)
    assert done.returncode == 2
    assert "usage: scripts/release VERSION" in done.stderr
    assert git(tree, "status", "--porcelain") == ""
