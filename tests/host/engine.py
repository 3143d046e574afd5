"""A Docker Engine of the tests' own, which leaves the machine's rules, links, mounts and settings alone.

It is always our own, also where another one runs: what that one holds is not ours, and how it is set up is not known.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.laboratory.machine import cache, locked
from scripts.laboratory.tools import command, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

# The name of our control groups, in each hierarchy there is.
_GROUP = "sikkerguard-tests"
# A whole session of another checkout may have to end first.
_TURN_SECONDS = 600.0


@dataclass(frozen=True)
class Engine:
    """A Docker Engine that runs. Use `engine()` to start one."""

    directory: Path

    @property
    def client(self) -> tuple[str, ...]:
        """The words that a command to this engine begins with."""
        return ("docker", "--config", str(self.directory / "client"), "-H", f"unix://{self.directory / 'socket'}")

    def docker(self, *words: str, check: bool = True, text: str | None = None, timeout: float = 60.0) -> str:
        """Run a command of the Docker client and give its standard output."""
        return command(*self.client, *words, check=check, text=text, timeout=timeout, env=environment())

    def has_only(self, name: str) -> bool:
        """Whether there is an image of this name and tag; those with other tags are older ones, and are removed."""
        listed = ("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name.partition(":")[0])
        found = self.docker(*listed).split()
        if older := [other for other in found if other != name]:
            self.docker("image", "rm", *older)
        return name in found


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Start the engine, and end it with all of its containers, whatever happens. One on a machine at a time."""
    directory = cache() / "engine"
    directory.mkdir(exist_ok=True)
    with locked(cache() / "engine.lock", _TURN_SECONDS):
        clear(directory)
        try:
            process = _start(directory)
            made = Engine(directory)
            try:
                wait_until_it_answers(made, process)
                remove_containers(made)
                yield made
            finally:
                with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                    remove_containers(made)
                end(process)
        finally:
            clear(directory)


def environment() -> dict[str, str]:
    """Ours, but for what would lead the client to another engine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}


def _start(directory: Path) -> subprocess.Popen[bytes]:
    settings = directory / "daemon.json"
    settings.write_text(
        json.dumps(
            {
                "data-root": str(directory / "data"),
                "exec-root": str(directory / "exec"),
                "pidfile": str(directory / "pid"),
                "hosts": [f"unix://{directory / 'socket'}"],
                # The machine's own network stays as it is: guests have none but what is plugged into them.
                "bridge": "none",
                "iptables": False,
                "ip6tables": False,
                "ip-forward": False,
                # A control group of our own name, which we can take away again, under any first process.
                "exec-opts": ["native.cgroupdriver=cgroupfs"],
                "cgroup-parent": f"/{_GROUP}",
            }
        )
    )
    # Its mounts are made in a mount namespace of its own and are gone with it; unmounting on the machine is followed,
    # so that nothing of others is kept alive. It ends with us however we end, but not by a Ctrl-C that is meant for
    # us, since we need it to clean up.
    words = ("unshare", "--mount", "--propagation", "slave", "--", "setpriv", "--pdeathsig", "TERM", "--", "dockerd")
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            (*words, "--config-file", str(settings)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )


def wait_until_it_answers(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            log = (engine.directory / "log").read_text("utf-8", "replace")
            raise AssertionError(f"dockerd ended with {process.returncode}:\n{log[-4000:]}")
        return bool(engine.docker("version", "--format", "{{.Server.Version}}", check=False).strip())

    wait_for("an answer of dockerd", answers, 30)


def remove_containers(engine: Engine) -> None:
    if found := engine.docker("ps", "--all", "--quiet").split():
        engine.docker("rm", "--force", "--volumes", *found)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def clear(directory: Path, name: str = _GROUP) -> None:
    """Take away what an engine leaves, and first the engine itself that a killed run has left; `name` is that of its
    control groups."""
    end_programs(directory)
    root = Path("/sys/fs/cgroup")
    for group in (path for path in (root / name, *root.glob(f"*/{name}")) if path.is_dir()):
        wait_for(f"the end of all in {group}", functools.partial(emptied, group))
        for path in sorted(group.glob("**/"), key=lambda path: len(path.parts), reverse=True):
            path.rmdir()
    shutil.rmtree(directory / "exec", ignore_errors=True)
    for file in ("pid", "socket", "log"):
        (directory / file).unlink(missing_ok=True)


def end_programs(directory: Path) -> None:
    """Only those that a killed dockerd left are ended here: the last resort, for it ends them itself."""
    for number in _programs(directory, "dockerd"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
    with contextlib.suppress(AssertionError):
        wait_for("the end of an earlier dockerd", lambda: not _programs(directory, "dockerd"), 20)
    for number in _programs(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    wait_for("the end of all that dockerd started", lambda: not _programs(directory))


def _programs(directory: Path, *names: str) -> list[int]:
    """The processes of this engine: dockerd, its containerd, and what that starts for each container."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program, *words = path.read_text("utf-8", "replace").split("\0")
            name = Path(program).name
            if any(str(directory) in word for word in words) and name.startswith(names or ("dockerd", "containerd")):
                found.append(int(path.parent.name))
    return found


def emptied(group: Path) -> bool:
    """Whether no process is in there; those that are get a SIGKILL."""
    found = [number for path in group.glob("**/cgroup.procs") for number in path.read_text().split()]
    for number in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
    return not found
