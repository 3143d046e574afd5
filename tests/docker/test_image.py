"""What is in the image, and what is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.version import VERSION
from tests.docker.base import name

if TYPE_CHECKING:
    from tests.host.engine import Engine

IMAGE = f"sikkerguard:{VERSION}"
UNKEPT = tuple(f"/usr/share/{name}/" for name in ("doc", "man", "locale", "info", "lintian"))
LARGEST = 135_000_000  # bytes; 128 MB when this was written, 79 of them the base


@pytest.fixture(scope="module")
def config(engine: Engine) -> dict[str, Any]:
    """What the image says of itself."""
    found: dict[str, Any] = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config}}", IMAGE))
    return found


def run(engine: Engine, script: str) -> str:
    """What a shell in the image prints."""
    return engine.docker("run", "--rm", "--network=none", "--entrypoint=sh", IMAGE, "-ec", script)


def test_it_is_small_and_built_on_the_base_that_the_dockerfile_names(engine: Engine) -> None:
    def layers(image: str) -> list[str]:
        found: list[str] = json.loads(engine.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
        return found

    assert layers(IMAGE)[:1] == layers(name())
    assert int(engine.docker("image", "inspect", "--format", "{{.Size}}", IMAGE)) < LARGEST


def test_python_is_the_first_process_and_gets_the_signals(config: dict[str, Any]) -> None:
    assert config["Entrypoint"] == ["/usr/bin/sikkerguard"]
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/sikkerguard", "health"]


def test_it_says_what_it_is(config: dict[str, Any]) -> None:
    labels = {
        label.removeprefix("org.opencontainers.image."): text
        for label, text in config["Labels"].items()
        if label.startswith("org.opencontainers.image.")
    }
    assert labels["title"] == "SikkerGuard"
    assert labels["version"] == VERSION
    assert labels["licenses"] == "MIT"
    assert labels["base.name"] == f"docker.io/library/{name()}"
    assert {"description", "url", "vendor"} <= labels.keys()


def test_it_holds_the_debian_package_whole_and_in_order(engine: Engine) -> None:
    assert run(engine, "dpkg-query --show --showformat='${Version}' sikkerguard") == VERSION
    # A slim Debian leaves documents out, and nothing else may be missing or changed.
    different = [line.split()[-1] for line in run(engine, "dpkg --verify || :").splitlines()]
    assert [path for path in different if not path.startswith(UNKEPT)] == []
    assert run(engine, "apt-get check -qq; dpkg --audit") == ""
    assert run(engine, "sikkerguard version") == f"sikkerguard {VERSION}\n"


def test_nothing_is_left_of_its_making(engine: Engine) -> None:
    tools = run(engine, "for tool in cc gcc make dpkg-buildpackage pip pip3 systemctl; do command -v $tool || :; done")
    assert tools == ""
    places = "/tmp /var/tmp /var/cache /var/log /var/lib/apt/lists /src /package /root/.cache"
    assert run(engine, f"for place in {places}; do find $place ! -type d 2>/dev/null || :; done") == ""
