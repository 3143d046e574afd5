"""Fixtures of the kernel tier: a fresh laboratory for each test, and the real service in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.laboratory.network import API, TAG, Laboratory, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import command, wait_for
from tests.standin.server import DEMO_KEY, Standin

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]
SIKKERGUARD = (sys.executable, "-m", "sikkerguard")
UNPROTECTED = (sys.executable, "-m", "scripts.laboratory.unprotected")


@dataclass
class Guard:
    """The service in the laboratory's host. An error in its log that a test did not announce fails the test."""

    lab: Laboratory
    standin: Standin
    directory: Path
    environment: dict[str, str]
    expected_errors: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.directory / "state"

    def start(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start `sikkerguard run`, or another program, with these SIKKER_* variables changed."""
        assert self.process is None or self.process.poll() is not None, "one service at a time"
        with (self.directory / "log").open("ab") as log:
            self.process = self.lab.host.start(
                words or (*SIKKERGUARD, "run"), {**self.environment, **variables}, stderr=log, cwd=PROJECT
            )
        return self.process

    def log(self) -> str:
        """All that the service has logged, over all of its starts."""
        path = self.directory / "log"
        return path.read_text("utf-8") if path.exists() else ""

    def logged(self, pattern: str, *, times: int = 1, seconds: float = 15.0) -> str:
        """Wait until so many lines match, and give the last of them."""

        def matching() -> list[str] | None:
            lines = [line for line in self.log().splitlines() if re.search(pattern, line)]
            return lines if len(lines) >= times else None

        try:
            return wait_for(repr(pattern), matching, seconds)[-1]
        except AssertionError as error:
            # The log as it is now, and not as it was when the wait began.
            raise AssertionError(f"{error}; the log:\n{self.log()}") from None

    def stop(self, seconds: float = 5.0) -> None:
        """SIGTERM, and a clean end within the time."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(seconds) == 0, self.log()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def cli(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run another command of sikkerguard beside the service."""
        return subprocess.run(
            ["ip", "netns", "exec", self.lab.host.name, *SIKKERGUARD, *words],
            env={**self.environment, **variables},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=130,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """What `sikkerguard status --json` prints."""
        found: dict[str, Any] = json.loads(self.cli("status", "--json").stdout)
        return found

    def blocked(self) -> set[str]:
        """The entries of the committed sets, as `ipset save` prints them."""
        pattern = re.compile(r"^add sikkerguard-v[46](?:-net)? (\S+)", re.MULTILINE)
        return set(pattern.findall(self.lab.sets()))

    def serve(self, *addresses: str, times: int = 1000) -> None:
        """Have the stand-in answer with exactly these lines from now on."""
        self.standin.clear_faults()
        self.answer("".join(f"{address}\n" for address in addresses).encode(), times=times)

    def answer(self, body: bytes, *, times: int = 1000) -> None:
        """Have the stand-in answer with this body from now on."""
        from tests.standin.faults import Canned

        self.standin.fault("blacklist", Canned(body=body, content_type="text/plain; charset=utf-8"), times)


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    """Three namespaces, gone afterwards."""
    with laboratory() as made:
        yield made


@pytest.fixture
def standin(lab: Laboratory) -> Iterator[Standin]:
    """SikkerAPI's stand-in, on the internet of the laboratory."""
    server = Standin(API, 80)
    lab.internet.inside(server.start)
    yield server
    server.stop()


@pytest.fixture
def resolver(lab: Laboratory) -> Iterator[Resolver]:
    """The internet's name server."""
    with Resolver(lab.internet) as server:
        yield server


@pytest.fixture
def guard(lab: Laboratory, standin: Standin, resolver: Resolver, tmp_path: Path) -> Iterator[Guard]:
    """The service, not yet started. What is left of it is killed at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIKKER_")}
    environment |= {
        "SIKKER_API_URL": f"http://{API}",
        "SIKKER_ALLOW_HTTP": "true",
        "SIKKER_API_KEY": DEMO_KEY,
        "SIKKER_STATE_DIR": str(tmp_path / "state"),
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    made = Guard(lab, standin, tmp_path, environment)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()
    unexpected = [
        line
        for line in made.log().splitlines()
        if re.match(r"[0-9:]{8} (ERROR|CRITICAL)|Traceback|\S*(Error|Warning): ", line)
        and not any(re.search(pattern, line) for pattern in made.expected_errors)
    ]
    assert not unexpected, made.log()


@pytest.fixture(autouse=True, scope="session")
def _lock_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """iptables' lock is one for all network namespaces of a machine: who tests beside us is not to be in our way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "xtables.lock"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _untouched() -> Iterator[None]:
    """The machine's own rules and sets are afterwards what they were before, and no namespace of ours is left."""

    def look() -> str:
        texts = [
            command(*words) for words in (("iptables-legacy-save",), ("ip6tables-legacy-save",), ("ipset", "save"))
        ]
        texts.append("\n".join(name for name in command("ip", "netns", "list").splitlines() if name.startswith(TAG)))
        return "\n".join(line.partition(" [")[0] for text in texts for line in text.splitlines() if line[:1] != "#")

    before = look()
    yield
    assert look() == before
