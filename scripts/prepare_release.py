"""What `scripts/release VERSION` does: it makes every file that names the version, and both changelogs, ready.

All is computed before anything is written, so that a release that can't be made leaves the tree as it was.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION_FILE, CHANGES, DEBIAN_CHANGES = "sikkerguard/version.py", "CHANGELOG.md", "packaging/debian/changelog"
# Each file that names the version, and how; every place in it that reads so is changed.
PLACES: Mapping[str, str] = {
    VERSION_FILE: 'VERSION = "{}"\n',
    "Dockerfile": 'org.opencontainers.image.version="{}"',
    "README.md": "\nSikkerGuard {}\n",
    "docker-compose.yml": "image: sikkerguard:{}\n",
    "packaging/podman/sikkerguard.container": "sikkerguard:{}",
    "packaging/kubernetes/sikkerguard.yaml": "sikkerguard:{}\n",
}
# Another way to name it, in a file that has both.
LABEL_FILE, LABEL = "packaging/kubernetes/sikkerguard.yaml", "app.kubernetes.io/version: {}\n"
HEADING = "## Unreleased"


class ReleaseError(Exception):
    """The release can't be made; the message says why, and nothing was written."""


def prepare(root: Path, version: str, now: datetime) -> dict[str, str]:
    """The new content of each file that changes, by its path in the tree.

    Raises:
        ReleaseError: the version is none or not a later one, a file does not name the present one, or CHANGELOG.md has
            nothing to release.
    """
    texts = {name: (root / name).read_text("utf-8") for name in (*PLACES, CHANGES, DEBIAN_CHANGES)}
    found = re.search(r'^VERSION = "(.*)"$', texts[VERSION_FILE], re.MULTILINE)
    if found is None:
        raise ReleaseError(f"{VERSION_FILE} names no version")
    if _numbers(version) <= _numbers(found[1]):
        raise ReleaseError(f"{version} is not later than {found[1]}, the version of this tree")
    for name, place in (*PLACES.items(), (LABEL_FILE, LABEL)):
        old = place.format(found[1])
        if old not in texts[name]:
            raise ReleaseError(f"{name} does not name the present version as {old.strip()!r}")
        texts[name] = texts[name].replace(old, place.format(version))
    entries = entries_of(texts[CHANGES])
    texts[CHANGES] = texts[CHANGES].replace(f"\n{HEADING}\n", f"\n## {version} ({now:%Y-%m-%d})\n")
    texts[DEBIAN_CHANGES] = debian_entry(version, entries, texts[DEBIAN_CHANGES], now) + texts[DEBIAN_CHANGES]
    return texts


def entries_of(changes: str) -> list[str]:
    """The entries of the section that is not released yet, each on one line and as its first sentence, without marks.

    Raises:
        ReleaseError: there is no such section, or nothing in it.
    """
    section = re.search(rf"\n{HEADING}\n(.*?)(?=\n## |\Z)", changes, re.DOTALL)
    entries = re.findall(r"^- (.*?)(?=\n- |\n\n|\n*\Z)", section[1] if section else "", re.MULTILINE | re.DOTALL)
    if not entries:
        raise ReleaseError(f'{CHANGES} has no entries ("- ...") in a section "{HEADING}": say what changes first')
    flat = (re.sub(r"[*`]", "", " ".join(entry.split())) for entry in entries)
    return [re.split(r"(?<=[.!?]) (?=[A-Z])", entry)[0] for entry in flat]


def debian_entry(version: str, entries: Sequence[str], earlier: str, now: datetime) -> str:
    """The package's changelog entry, by the maintainer and for the distribution of the one before it."""
    heading = re.match(r"sikkerguard \([^)]*\) (.*)\n", earlier)
    maintainer = re.search(r"^ -- (.*>)  ", earlier, re.MULTILINE)
    if heading is None or maintainer is None:
        raise ReleaseError(f"{DEBIAN_CHANGES} can't be read")
    lines = [textwrap.fill(entry, 78, initial_indent="  * ", subsequent_indent="    ") for entry in entries]
    return "\n".join(
        (
            f"sikkerguard ({version}) {heading[1]}",
            "",
            *lines,
            "",
            f" -- {maintainer[1]}  {format_datetime(now)}",
            "",
            "",
        )
    )


def check_clean(root: Path) -> None:
    """Raises `ReleaseError` where git knows of anything that is not committed."""
    done = subprocess.run(
        ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise ReleaseError(f"git can't tell whether the tree is clean: {done.stderr.strip()}")
    if done.stdout:
        raise ReleaseError(f"the tree is not clean; commit or take away first:\n{done.stdout.rstrip()}")


def main(arguments: Sequence[str], root: Path) -> int:
    """Make the release ready; the answer is the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: scripts/release VERSION", file=sys.stderr)
        return 2
    (version,) = arguments
    try:
        check_clean(root)
        texts = prepare(root, version, datetime.now(UTC))
    except ReleaseError as error:
        print(f"release: {error}.", file=sys.stderr)
        return 1
    for name, text in texts.items():
        (root / name).write_text(text, "utf-8")
    print(
        f"""Ready for {version}; nothing is committed. What comes next:
  git diff                                  read it, {DEBIAN_CHANGES} above all
  sudo scripts/test                         all tests, on what is released
  git commit -am "Release {version}"
  git tag -s v{version} -m "SikkerGuard {version}"
  sudo scripts/deb                          builds dist/sikkerguard_{version}_all.deb
  docker compose build                      builds sikkerguard:{version}"""
    )
    return 0


def _numbers(version: str) -> tuple[int, ...]:
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version, re.ASCII):
        raise ReleaseError(f"'{version}' is not a version, such as 1.2.3")
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path.cwd()))
