"""A Docker Engine of this tier's own: to build by, on the machine's network, and to be the laboratory's host.

Both keep their images in one place, so that what was built need not be carried over, and is there at the next run.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scripts.laboratory.machine import cache, locked
from tests.host.engine import Engine, clear, end, environment, remove_containers, wait_until_it_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# The name of this tier's control groups, in each hierarchy there is.
_GROUP = "sikkerguard-docker-tests"
# A whole session of another checkout may have to end first.
_TURN_SECONDS = 600.0
BUILDER: Mapping[str, object] = {
    # On the machine's own network nothing is changed: what is built there uses it as it is.
    "bridge": "none",
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    # What was built last is kept, and not what was built from all sources there ever were.
    "builder": {"gc": {"enabled": True, "defaultKeepStorage": "2GB"}},
}


@contextlib.contextmanager
def turn() -> Iterator[Path]:
    """This tier's directory, for one on a machine at a time. What a killed run has left of an engine is taken away."""
    directory = cache() / "docker-tier"
    directory.mkdir(mode=0o700, exist_ok=True)
    with locked(cache() / "docker-tier.lock", _TURN_SECONDS):
        clear(directory, _GROUP)
        try:
            yield directory
        finally:
            clear(directory, _GROUP)


@dataclass
class Daemon:
    """dockerd with these settings. `inside` are the words of a program that runs its arguments where dockerd is to be:
    with mounts of its own, so that those it makes are gone with it."""

    directory: Path
    settings: Mapping[str, object]
    inside: Sequence[str] = ("unshare", "--mount", "--propagation", "slave", "--")
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def engine(self) -> Engine:
        """What commands are sent to."""
        return Engine(self.directory)

    def start(self) -> None:
        """Start it, and wait for its first answer."""
        settings = self.directory / "daemon.json"
        settings.write_text(json.dumps({**self._places(), **self.settings}))
        # It ends with us however we end, but not by a Ctrl-C that is meant for us, since we need it to clean up.
        words = (*self.inside, "setpriv", "--pdeathsig", "TERM", "--", "dockerd", "--config-file", str(settings))
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        wait_until_it_answers(self.engine, self.process)

    def stop(self) -> None:
        """End it as a service manager does."""
        if self.process is not None:
            end(self.process)
            self.process = None

    def remove_containers(self) -> None:
        """Take away every container, also where it runs."""
        remove_containers(self.engine)

    def _places(self) -> dict[str, object]:
        return {
            "data-root": str(self.directory / "data"),
            "exec-root": str(self.directory / "exec"),
            "pidfile": str(self.directory / "pid"),
            "hosts": [f"unix://{self.directory / 'socket'}"],
            # A control group of our own name, which can be taken away again, under any first process.
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": f"/{_GROUP}",
        }


@contextlib.contextmanager
def running(made: Daemon) -> Iterator[Daemon]:
    """Start it without any container, and end it with all of its containers, whatever happens."""
    try:
        made.start()
        made.remove_containers()
        yield made
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            made.remove_containers()
        made.stop()
