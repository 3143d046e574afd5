"""A booted Debian: systemd, journald and D-Bus of its own, in a container, and a network that is plugged into it.

Nothing of the checkout is in it: what a test runs there, it has installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.laboratory.network import RESOLVER, TAG, Namespace
from scripts.laboratory.tools import command, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.host.engine import Engine

# The settings of a network are the guest's own, and are its to change; Docker lets nobody write to any setting.
_INIT = "mount --bind /proc/sys/net /proc/sys/net && mount -o remount,bind,rw /proc/sys/net && exec /sbin/init"


@dataclass(frozen=True)
class Guest:
    """A guest that runs. Use `guest()` to boot one."""

    engine: Engine
    container: str
    network: Namespace

    def run(
        self,
        *words: str,
        check: bool = True,
        text: str | None = None,
        timeout: float = 60.0,
        user: str = "root",
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a program in the guest and give its standard output; `text` is its standard input."""
        entered = self._entered(words, user, environment, interactive=text is not None)
        return self.engine.docker(*entered, check=check, text=text, timeout=timeout)

    def start(
        self, words: Sequence[str], environment: Mapping[str, str] | None = None, user: str = "root"
    ) -> subprocess.Popen[str]:
        """Start a program in the guest that talks by pipes. It ends when its standard input does, if it looks."""
        entered = self._entered(words, user, environment, interactive=True)
        return subprocess.Popen(
            (*self.engine.client, *entered),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """Make a file in the guest."""
        self.run("tee", path, text=text)

    def copy(self, source: Path, path: str) -> None:
        """Copy a file of the machine into the guest."""
        # `docker cp` would not find what the guest has mounted for itself, such as /tmp.
        with source.open("rb") as content:
            words = (*self.engine.client, *self._entered(("tee", path), "root", None, interactive=True))
            subprocess.run(words, stdin=content, stdout=subprocess.DEVNULL, timeout=60, check=True)

    def reboot(self, plug: Callable[[], None]) -> None:
        """Boot again by `systemctl reboot`, with the same disk and a new network, and wait until that is done.

        `plug` is called once nothing answers for the guest any more and its new network has its name, with the boot at
        its very beginning: it plugs in the links, as `Laboratory.plug` does.
        """
        former, name = _first_process(self.engine, self.container), self.network.name
        ended = os.pidfd_open(former)
        try:
            self.run("systemctl", "reboot", check=False)
            wait_for("the end of the guest", lambda: select.select([ended], [], [], 0)[0], 60)
        finally:
            os.close(ended)
        # The kernel would answer in the old network for as long as it has this name, or a socket.
        command("ip", "-n", name, "link", "set", "group", "default", "down")
        command("ip", "netns", "del", name)
        _attach(self.engine, self.container, name, former)
        plug()
        _wait_for_boot(self.engine, self.container)

    def journal(self, *selection: str) -> list[dict[str, Any]]:
        """The entries that journalctl finds, each with all of its fields."""
        printed = self.run("journalctl", "--no-pager", "--quiet", "--all", "--output=json", *selection)
        return [json.loads(line) for line in printed.splitlines()]

    def _entered(
        self, words: Sequence[str], user: str, environment: Mapping[str, str] | None, *, interactive: bool
    ) -> tuple[str, ...]:
        variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        return ("exec", *("-i",) * interactive, f"--user={user}", *variables, self.container, *words)


@contextlib.contextmanager
def guest(engine: Engine, image: str) -> Iterator[Guest]:
    """Boot the image and wait until systemd has started everything; whatever happens, nothing is left of it."""
    name = f"{TAG}{secrets.token_hex(2)}-guest"
    container = engine.docker("create", f"--name={name}", *_options(), image, "sh", "-c", _INIT).strip()
    try:
        engine.docker("start", container)
        try:
            _attach(engine, container, name)
            _wait_for_boot(engine, container)
            yield Guest(engine, container, Namespace(name))
        finally:
            command("ip", "netns", "del", name, check=False)
    finally:
        engine.docker("rm", "--force", "--volumes", container, check=False)


def _first_process(engine: Engine, container: str) -> int:
    """The number that the guest's first process has on the machine; 0 when the guest does not run."""
    return int(engine.docker("inspect", "--format", "{{.State.Pid}}", container))


def _attach(engine: Engine, container: str, name: str, former: int = 0) -> None:
    """Give the guest's network a name, as if it were made by `ip netns add`, once there is another first process."""

    def number() -> int:
        found = _first_process(engine, container)
        return found if found != former else 0

    command("ip", "netns", "attach", name, str(wait_for("the guest's first process", number, 30)))


def _options() -> tuple[str, ...]:
    """What systemd needs to be at home. Almost all capabilities, instead of --privileged, which a machine that lacks
    one can't give."""
    return (
        *("--hostname=guest", f"--dns={RESOLVER}", "--network=none"),
        # Modules are the machine's, which loads by itself what a guest's rules need.
        *("--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--cap-drop=SYS_MODULE"),
        *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
        # Only the second version's hierarchy: given the directory of all the first version's, systemd remounts it
        # read-only, for the whole machine.
        *("--cgroupns=host", f"--volume={_control_groups()}:/sys/fs/cgroup:rw"),
        *("--tmpfs=/run:exec", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec"),
        # Without the rule journald gets no line of the kernel, and says nothing about it.
        *("--device=/dev/kmsg", "--device-cgroup-rule=a *:* rwm"),
        *("--sysctl=net.ipv6.conf.all.disable_ipv6=0", "--sysctl=net.ipv6.conf.default.disable_ipv6=0"),
        # A reboot ends the container with 129; a halt is what ends it well.
        *("--restart=on-failure:20", "--stop-signal=SIGRTMIN+3"),
    )


def _control_groups() -> str:
    """Where this machine has mounted the second version's control groups."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return fields.split()[4]
    raise AssertionError("no cgroup2 is mounted on this machine; systemd in a container needs it")


def _wait_for_boot(engine: Engine, container: str) -> None:
    def state() -> str:
        found = engine.docker("exec", container, "systemctl", "is-system-running", "--wait", check=False).strip()
        # Before D-Bus is there, it can't wait.
        return found if found in ("running", "degraded") else ""

    if wait_for("systemd", state, 30) != "running":
        raise AssertionError(engine.docker("exec", container, "systemctl", "--failed", "--no-legend"))
