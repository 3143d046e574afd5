"""What the service takes with the largest list there may be, twice: its own memory, the kernel's, and what the kernel
charges to the service's control group. From this come the limits in packaging/ and docker-compose.yml.

Run as root: `.venv/bin/python -m bench.memory [MIB]`, with the limit to hold it to, that of the unit by default. The
service pulls a list at all ceilings and then, beside a file of as much, another one, is started again from its cache,
and pulls once more. It runs in a laboratory and in a control group made for it, of version 1 or 2.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.flood import Process
from bench.worst import LISTS, at_all_ceilings, joined
from scripts.laboratory.api import KEY, LaboratoryApi, serving
from scripts.laboratory.network import API, Laboratory, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GROUPS = Path("/sys/fs/cgroup")
_UNIT = Path(__file__).parents[1] / "packaging/systemd/sikkerguard.service"
_LIMITS = ("memory.limit_in_bytes", "memory.max")
_USED = ("memory.usage_in_bytes", "memory.current")
_PEAK = ("memory.max_usage_in_bytes", "memory.peak")
_FAILED = ("memory.failcnt", "memory.events")


class Group:
    """A control group with a limit in bytes."""

    def __init__(self, limit: int) -> None:
        version_1 = _GROUPS / "memory"
        self.directory = (version_1 if version_1.is_dir() else _GROUPS) / f"sikkerguard-bench-{os.getpid()}"
        self.directory.mkdir()
        self._file(_LIMITS).write_text(str(limit))

    def _file(self, names: Iterable[str]) -> Path:
        return next(path for name in names if (path := self.directory / name).exists())

    def take(self, process: int) -> None:
        """Have this process in it from now on."""
        (self.directory / "cgroup.procs").write_text(str(process))

    def __str__(self) -> str:
        used, peak = (int(self._file(names).read_text()) >> 20 for names in (_USED, _PEAK))
        text = f"charged {used} MiB, {peak} at the peak"
        with suppress(OSError):  # version 1 only
            text += f", for the kernel {int((self.directory / 'memory.kmem.usage_in_bytes').read_text()) >> 20}"
        failures = self._file(_FAILED).read_text().split()
        return f"{text}; at the limit: {' '.join(failures)}"


@contextmanager
def service(lab: Laboratory, group: Group, environment: dict[str, str], log: Path) -> Iterator[Process]:
    """The service in that group, once it blocks."""
    # The groups can't be seen from within the namespace: it waits until it has been moved.
    words = ("sh", "-c", f"kill -STOP $$; exec {sys.executable} -m sikkerguard run")
    with log.open("wb") as stream:
        process = lab.host.start(words, environment, stderr=stream)
    try:
        status = Path(f"/proc/{process.pid}/status")
        wait_for("the shell", lambda: "State:\tT" in status.read_text("ascii"))
        group.take(process.pid)
        process.send_signal(signal.SIGCONT)
        wait_for("a list in force", lambda: "Blocking" in log.read_text("utf-8"), 240)
        yield Process(process.pid)
    finally:
        process.kill()  # so that the next one begins with its cache and its rules
        process.wait(30)


def sets(lab: Laboratory) -> str:
    """What the kernel says of the sets."""
    listed = lab.host.run("ipset", "list", "-t")
    sizes = [int(size) for size in re.findall(r"Size in memory: (\d+)", listed)]
    entries = [int(number) for number in re.findall(r"Number of entries: (\d+)", listed)]
    return f"sets {sum(sizes) >> 20} MiB with {sum(entries):,} entries"


def main() -> int:
    """Load all of it, and print what it takes."""
    stated = re.search(r"^MemoryMax=(\d+)M$", _UNIT.read_text(), re.MULTILINE)
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else int(stated[1]) if stated else 1 << 20
    group = Group(limit << 20)
    print(f"limit {limit} MiB; Python {sys.version.split()[0]}, Linux {os.uname().release}", flush=True)
    try:
        with (
            laboratory() as lab,
            Resolver(lab.internet),
            serving(lab) as api,
            tempfile.TemporaryDirectory() as name,
        ):
            _measure(lab, api, group, Path(name))
    finally:
        group.directory.rmdir()
    return 0


def _measure(lab: Laboratory, api: LaboratoryApi, group: Group, directory: Path) -> None:
    custom, log = directory / "custom", directory / "log"
    custom.write_text("203.0.113.7\n")
    environment = {**os.environ, "SIKKER_API_URL": f"http://{API}", "SIKKER_API_KEY": KEY}
    environment["SIKKER_ALLOW_HTTP"] = "true"
    environment |= {"SIKKER_STATE_DIR": str(directory / "state"), "SIKKER_CUSTOM_BLACKLIST": str(custom)}

    def answer(lines: Iterable[str]) -> None:
        api.body = b"".join(joined(lines))

    def tell(process: Process, what: str) -> None:
        print(f"{what}: resident {process.memory('VmRSS'):.0f} MiB, {process.memory('VmHWM'):.0f} at the peak; {group}")
        print(f"  {sets(lab)}", flush=True)

    def pull() -> None:
        lab.host.run(sys.executable, "-m", "sikkerguard", "pull", "--accept", env=environment)

    answer(LISTS["at all ceilings"](0))
    with service(lab, group, environment, log) as process:
        tell(process, "the first list")
        answer(LISTS["at all ceilings"](1))
        pull()
        tell(process, "another one in its place")
        half = partial(at_all_ceilings, share=2)
        answer(half(2))
        with custom.open("wb") as file:
            file.writelines(joined(half(3)))
        pull()
        tell(process, "half of it from a file")
    answer(half(4))
    with service(lab, group, environment, log) as process:
        pull()
        tell(process, "started from the cache, and another one")
        lab.host.run("ipset", "flush", "sikkerguard-v4")
        wait_for("the repair", lambda: "; repaired." in log.read_text("utf-8"), 60)
        tell(process, "repaired")
    lab.host.run(sys.executable, "-m", "sikkerguard", "cleanup", env=environment)


if __name__ == "__main__":
    sys.exit(main())
