"""How the Debian package is built: the same each time, and to the satisfaction of lintian."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from scripts.laboratory.tools import command
from tests.host.conftest import PROJECT


def test_the_same_sources_give_the_same_bytes(package: Path, tmp_path: Path) -> None:
    # Another place, another user's habits, another moment.
    tree = tmp_path / "another" / "checkout"
    tree.mkdir(parents=True)
    for name in ("sikkerguard", "packaging", "docs", "scripts"):
        shutil.copytree(
            PROJECT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copy
        )
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(PROJECT / name, tree)
    built = subprocess.run(
        ("sh", "-c", f"umask 077; exec {tree}/scripts/deb {tmp_path}/built"),
        env={**os.environ, "TZ": "Asia/Tokyo", "LANG": "C", "SOURCE_DATE_EPOCH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    again = Path(built.stdout.splitlines()[-1])
    assert again.parent == tmp_path / "built"
    assert again.read_bytes() == package.read_bytes()


def test_lintian_has_nothing_to_say(package: Path) -> None:
    assert command("lintian", "--allow-root", "--fail-on", "warning", str(package), timeout=120) == ""


def test_it_brings_no_library_and_no_compiled_file(package: Path) -> None:
    names = [line.split()[5] for line in command("dpkg-deb", "--contents", str(package)).splitlines()]
    libraries = {name.split("/")[5] for name in names if name.startswith("./usr/lib/python3/dist-packages/")}
    assert {name.partition("-")[0] for name in libraries if name} == {"sikkerguard"}
    assert not [name for name in names if name.endswith((".pyc", ".so"))]
    needed = command("dpkg-deb", "--field", str(package), "Depends")
    for name in ("iptables", "pyroute2", "httpx", "h11", "systemd", "sdnotify"):
        assert f"python3-{name}" in needed


def test_the_demo_has_its_list_and_the_licences_and_no_test_is_shipped(package: Path) -> None:
    names = [line.split()[5] for line in command("dpkg-deb", "--contents", str(package)).splitlines()]
    for name in ("demo.py", "demo_server.py", "demo_list.txt", "demo_list.LICENCE.md"):
        assert f"./usr/lib/python3/dist-packages/sikkerguard/cli/{name}" in names
    assert not [name for name in names if "standin" in name or "laboratory" in name]


def test_nothing_lies_where_a_link_leads_elsewhere(package: Path) -> None:
    # Debian 13's lintian has an error of it, aliased-location; Debian 12's has none.
    names = [line.split()[5] for line in command("dpkg-deb", "--contents", str(package)).splitlines()]
    assert {name.split("/")[1] for name in names} == {"", "etc", "usr"}
    assert "./usr/lib/systemd/system/sikkerguard.service" in names
    # Debhelper knew of it at its place.
    assert "sikkerguard.service" in command("dpkg-deb", "--info", str(package), "postinst")
