"""A booted Debian: systemd, journald and D-Bus of its own, in a container, and a network that is plugged into it."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.laboratory import RESOLVER, TAG, Namespace, command, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.host.engine import Engine

PROJECT = Path(__file__).parents[2]
# Where a guest finds the checkout, which it can't write to.
CHECKOUT = "/opt/sikkerguard"


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
    container = engine.docker("create", f"--name={name}", *_options(), image, "/sbin/init").strip()
    try:
        engine.docker("start", container)
        _wait_for_boot(engine, container)
        number = engine.docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        # A name for its network, as if it were made by `ip netns add`.
        command("ip", "netns", "attach", name, number)
        try:
            yield Guest(engine, container, Namespace(name))
        finally:
            command("ip", "netns", "del", name, check=False)
    finally:
        engine.docker("rm", "--force", "--volumes", container, check=False)


def _options() -> tuple[str, ...]:
    """What systemd needs to be at home. All capabilities but one, instead of --privileged, which a machine that lacks
    one can't give."""
    return (
        *("--hostname=guest", f"--dns={RESOLVER}", "--network=none"),
        *("--cap-add=ALL", "--cap-drop=SYS_RESOURCE"),
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
        f"--volume={PROJECT}:{CHECKOUT}:ro",
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
