"""The protected host: the laboratory's, with a Docker Engine on its network and a file system that looks like its own.

Of the host's files, /etc and /run are made here and seen by the engine, and so by containers, in the machine's place.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.laboratory.network import API, HOST, RESOLVER, Laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from tests.docker.base import PROJECT
from tests.docker.engine import Daemon, running
from tests.standin.entries import Entry
from tests.standin.server import DEMO_KEY, Standin

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINER = "sikkerguard"
# Who is on the list, and who is on none.
LISTED = tuple(f"203.0.113.{number}" for number in range(201, 211))
INNOCENT = "203.0.113.200"
_SETTINGS = {"bip": "172.30.0.1/24"}
# Of the machine's /etc, what programs need to run at all, and to find each other.
_NEEDED = ("alternatives", "ld.so.cache", "passwd", "group", "nsswitch.conf", "protocols", "services", "hosts")
# Holds a mount namespace for as long as its standard input is open.
_HOLD = 'mount --bind "$1/etc" /etc && mount --bind "$1/run" /run && echo held && exec cat'
# Seconds that a connection may take: more than one that is let through needs, and less than it takes to try again.
_CONNECT_SECONDS = 0.9


@dataclass
class DockerHost:
    """The host, with Docker running, and SikkerGuard's Compose project, not yet up."""

    lab: Laboratory
    standin: Standin
    daemon: Daemon
    files: Path
    project: Path
    variables: dict[str, str] = field(default_factory=lambda: {"SIKKER_API_KEY": DEMO_KEY})

    def docker(self, *words: str, check: bool = True) -> str:
        """Run a command of the Docker client."""
        return self.daemon.engine.docker(*words, check=check)

    def compose(self, *words: str, check: bool = True) -> str:
        """Run `docker compose` as in a directory with the project's own file; what it prints, errors included."""
        files = ("--project-directory", str(self.project), "--file", str(PROJECT / "docker-compose.yml"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SIKKER_", "DOCKER_"))}
        done = subprocess.run(
            (*self.daemon.engine.client, "compose", *files, *words),
            env={**inherited, **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def configure(self, **settings: str) -> None:
        """Write the project's .env."""
        lines = {"SIKKER_API_URL": f"http://{API}", "SIKKER_ALLOW_HTTP": "true", **settings}
        (self.project / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def serve(self, *addresses: str) -> None:
        """Have SikkerAPI's list be these from now on."""
        self.standin.replace(map(Entry, addresses))

    def up(self, *addresses: str) -> None:
        """`docker compose up -d`, and wait until exactly these are blocked, or what was served before."""
        if addresses:
            self.serve(*addresses)
        self.compose("up", "-d")
        self.logged(r" INFO Blocking \d+ IPs$")

    def log(self) -> str:
        """What `docker logs` has of the service: standard output and errors."""
        words = (*self.daemon.engine.client, "logs", CONTAINER)
        return subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
        ).stdout

    def logged(self, pattern: str, *, times: int = 1, seconds: float = 20.0) -> str:
        """Wait until so many lines match, and give the last of them."""

        def found() -> list[str] | None:
            lines = [line for line in self.log().splitlines() if re.search(pattern, line)]
            return lines if len(lines) >= times else None

        try:
            return wait_for(f"{pattern!r} in the log", found, seconds)[-1]
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log()}") from None

    def command(self, *words: str, check: bool = True) -> str:
        """Run a command of sikkerguard in its container."""
        return self.docker("exec", CONTAINER, "sikkerguard", *words, check=check)

    def status(self) -> dict[str, Any]:
        """What `sikkerguard status --json` prints."""
        found: dict[str, Any] = json.loads(self.command("status", "--json", check=False))
        return found

    def state(self, template: str) -> str:
        """What `docker inspect` says of the container."""
        return self.docker("inspect", "--format", template, CONTAINER).strip()

    def publish(self, name: str, port: int, *options: str) -> None:
        """Start a container with a web server, and publish its port 80 on this one of the host."""
        server = ("python3", "-m", "http.server", "--directory", "/etc/dpkg", "80")
        # Python, as the first process, does not hear a SIGTERM.
        start = (
            "run",
            "--detach",
            f"--name={name}",
            "--restart=always",
            "--stop-signal=SIGINT",
            f"--publish={port}:80",
        )
        self.docker(*start, *options, f"--entrypoint={server[0]}", self.image(), *server[1:])
        wait_for(f"{name} at port {port}", lambda: self.gets(INNOCENT, port), 20)

    def image(self) -> str:
        """The name of SikkerGuard's image, which has what a container needs here."""
        (name,) = self.compose("config", "--images").split()
        return name

    def gets(self, source: str, port: int) -> bool:
        """Whether this source, on the internet, gets an answer of the web server at the host's port."""
        self.lab.own(source)

        def get() -> bool:
            connection = http.client.HTTPConnection(HOST, port, timeout=_CONNECT_SECONDS, source_address=(source, 0))
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                return connection.getresponse().status == 200
            return False

        return self.lab.internet.inside(get)

    def everything(self) -> str:
        """Every rule and set of the host."""
        # Has the kernel make the empty table, which is not taken away again.
        for tool in ("iptables-legacy", "ip6tables-legacy"):
            self.lab.host.run(tool, "-t", "raw", "-L")
        return self.lab.everything()

    def rules_of_others(self) -> str:
        """Every rule that is not SikkerGuard's."""
        return "\n".join(line for line in self.everything().splitlines() if "sikkerguard" not in line.lower())


@contextlib.contextmanager
def docker_host(directory: Path, lab: Laboratory, project: Path) -> Iterator[DockerHost]:
    """Start Docker on the laboratory's host, and SikkerAPI's stand-in and a resolver on its internet."""
    files = directory / "host"
    shutil.rmtree(files, ignore_errors=True)
    _make_files(files)
    standin = Standin(API, 80)
    with (
        Resolver(lab.internet),
        _place(files, lab) as place,
        running(Daemon(directory, _SETTINGS, ("nsenter", f"--target={place}", "--mount", "--net", "--"))) as started,
    ):
        lab.internet.inside(standin.start)
        try:
            made = DockerHost(lab, standin, started, files, project)
            made.configure()
            yield made
        finally:
            standin.stop()
            started.remove_containers()
            for kind in ("volume", "network"):
                started.engine.docker(kind, "prune", "--force")


@contextlib.contextmanager
def _place(files: Path, lab: Laboratory) -> Iterator[int]:
    """A process with the host's files and network in the place of the machine's, where dockerd can start again and
    again."""
    words = ("unshare", "--mount", "--propagation", "slave", "--", "nsenter", f"--net=/run/netns/{lab.host.name}", "--")
    with subprocess.Popen(
        (*words, "sh", "-c", _HOLD, "sh", str(files)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holding:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "held\n"
        # Leaving closes its standard input.
        yield holding.pid


def _make_files(files: Path) -> None:
    (files / "run").mkdir(parents=True)
    (files / "etc").mkdir()
    for name in _NEEDED:
        found = Path("/etc", name)
        if found.is_dir():
            shutil.copytree(found, files / "etc" / name, symlinks=True)
        elif found.exists():
            shutil.copy(found, files / "etc" / name)
    (files / "etc/resolv.conf").write_text(f"nameserver {RESOLVER}\n")
