"""Kubernetes and Podman take what is written for them, and it says the same as the Compose file."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import command
from sikkerguard.config.variables import VARIABLES
from sikkerguard.version import VERSION
from tests.docker.base import PROJECT
from tests.docker.tools import kubernetes, quadlet

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = PROJECT / "packaging/kubernetes/sikkerguard.yaml"
UNIT = PROJECT / "packaging/podman/sikkerguard.container"


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_the_manifest_is_valid(tool_directory: Path, version: str) -> None:
    said = kubernetes(tool_directory, MANIFEST, version)
    assert "passed for resource namespace/sikkerguard" in said
    assert "passed for resource daemonset/sikkerguard" in said


def test_a_manifest_with_a_fault_is_not(tool_directory: Path, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text(MANIFEST.read_text().replace("hostNetwork: true", "hostNetworks: true"))
    with pytest.raises(AssertionError, match="ended with 1"):
        kubernetes(tool_directory, faulty, "1.37")


def test_podman_makes_a_service_of_the_unit(tool_directory: Path, tmp_path: Path) -> None:
    shutil.copy(UNIT, tmp_path)
    service = quadlet(tool_directory, tmp_path)
    assert "---sikkerguard.service---" in service
    (start,) = [line for line in service.splitlines() if line.startswith("ExecStart=")]
    for words in (
        "--network host",
        "--cap-drop all --cap-add net_admin --cap-add net_raw --cap-add syslog --cap-add sys_module",
        "--security-opt=no-new-privileges",
        "--read-only ",
        "-v sikkerguard-state:/var/lib/sikkerguard",
        "--tmpfs /run/sikkerguard:rw,mode=0750,size=64k",
        "-v /run/systemd/sessions:/run/systemd/sessions:ro",
        "-v /run/systemd/seats:/run/systemd/seats:ro",
        "--device /dev/kmsg:/dev/kmsg:r",
        f"localhost/sikkerguard:{VERSION}",
    ):
        assert words in start


def test_the_example_of_settings_names_what_there_is() -> None:
    names = re.findall(r"^#?([A-Z_]+)=", (PROJECT / ".env.example").read_text(), re.MULTILINE)
    others = [name for name in names if name not in VARIABLES]
    # What is not for the service is for the Compose file.
    assert others == ["API_KEY_FILE", "SSHD_CONFIG", "XTABLES_LOCK"]
    compose = (PROJECT / "docker-compose.yml").read_text()
    assert all(f"${{{name}:-/dev/null}}" in compose for name in others[1:])
    assert "${API_KEY_FILE:-./no key" in compose


def test_all_name_the_version() -> None:
    for name in (
        "docker-compose.yml",
        "packaging/kubernetes/sikkerguard.yaml",
        "packaging/podman/sikkerguard.container",
    ):
        assert f"sikkerguard:{VERSION}\n" in (PROJECT / name).read_text(), name
    assert f'org.opencontainers.image.version="{VERSION}"' in (PROJECT / "Dockerfile").read_text()
    assert f"app.kubernetes.io/version: {VERSION}\n" in MANIFEST.read_text()
    assert (PROJECT / "packaging/debian/changelog").read_text().startswith(f"sikkerguard ({VERSION}) ")
    assert f"\n## {VERSION} (" in (PROJECT / "CHANGELOG.md").read_text()


def test_a_key_is_neither_committed_nor_copied_into_an_image() -> None:
    for name in (".env", "api-key"):
        assert command("git", "-C", str(PROJECT), "check-ignore", name).strip() == name
        assert f"**/{name}\n" in (PROJECT / ".dockerignore").read_text()
