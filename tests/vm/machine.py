"""A virtual machine: Debian's own kernel in QEMU, on the network of the laboratory, and in the hands of ssh."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scripts.laboratory.network import GATEWAY, HOST, TAG, Namespace, laboratory
from scripts.laboratory.tools import command, wait_for
from tests.vm.image import LINKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from scripts.laboratory.network import Laboratory
    from tests.vm.image import Disk

# The machine is emulated, and shares the processors with whatever else runs.
BOOT_SECONDS = 600.0


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long this took, and that it failed if it did."""
    started = time.monotonic()
    outcome = "FAILED: "
    try:
        yield
        outcome = ""
    finally:
        print(f"\n    {time.monotonic() - started:6.1f} s  {outcome}{what}", end="", flush=True)


@dataclass
class Machine(Namespace):
    """A machine whose links end in the namespace of this name, where QEMU runs too. Use `machine()` to boot one.

    What `run` runs, it runs in the machine. `internet` is where ssh connects from, by the gateway's address.
    """

    disk: Disk
    directory: Path
    internet: Namespace
    _emulator: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _session: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def run(
        self,
        *words: str,
        check: bool = True,
        text: str | None = None,
        timeout: float = 180.0,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a program in the machine, as root, and give its standard output; `text` is its standard input."""
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        entered = shlex.join(["env", *variables, *words] if variables else words)
        return self.internet.run(
            "ssh", *self._options(), f"root@{HOST}", entered, check=check, text=text, timeout=timeout
        )

    def copy(self, source: Path, path: str) -> None:
        """Copy a file into the machine."""
        self.internet.run("scp", "-q", *self._options(), str(source), f"root@{HOST}:{path}", timeout=180)

    def write(self, path: str, text: str) -> None:
        """Make a file in the machine."""
        self.run("tee", path, text=text)

    def journal(self, *selection: str) -> list[dict[str, Any]]:
        """The entries that journalctl finds, each with all of its fields."""
        printed = self.run("journalctl", "--no-pager", "--quiet", "--all", "--output=json", *selection)
        return [json.loads(line) for line in printed.splitlines()]

    def modules(self) -> set[str]:
        """The modules that the kernel has loaded."""
        return {line.split()[0] for line in self.run("cat", "/proc/modules").splitlines()}

    def boot(self) -> None:
        """Switch the machine on, and wait until it can be used."""
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.directory / "key"))
        # It ends with us, however we end.
        words = ("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *self._hardware(), *self._software())
        with (self.directory / "qemu").open("wb") as log:
            self._emulator = Namespace(self.name).start(
                words, os.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait_until_booted("")

    def boot_id(self) -> str:
        """What is another one after each boot; nothing where there is no machine to ask."""
        return self.run("cat", "/proc/sys/kernel/random/boot_id", check=False).strip() if self._in_session() else ""

    def wait_until_booted(self, former: str, seconds: float = BOOT_SECONDS) -> None:
        """Wait until systemd has started everything, in another boot than the former."""

        def state() -> str:
            if self.boot_id() in ("", former):
                return ""
            found = self.run("systemctl", "is-system-running", check=False).strip()
            return found if found in ("running", "degraded") else ""

        try:
            found = wait_for("systemd", state, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.console()[-4000:]}") from None
        if found != "running":
            raise AssertionError(self.run("systemctl", "--failed", "--no-legend", "--no-pager"))

    def console(self) -> str:
        """What kernel, systemd and QEMU have printed."""
        return "".join((self.directory / name).read_text("utf-8", "replace") for name in ("serial", "qemu"))

    def end(self) -> None:
        """Pull the plug."""
        for process in (self._session, self._emulator):
            if process is not None:
                process.kill()
                process.wait(10)

    def _in_session(self) -> bool:
        """Whether there is a connection that all commands go through; another one is begun where there is not."""
        assert self._emulator is not None
        if self._emulator.poll() is not None:
            raise AssertionError(f"QEMU ended with {self._emulator.returncode}:\n{self.console()[-4000:]}")
        if self._session is None or self._session.poll() is not None:
            words = ("ssh", "-M", "-N", *self._options(), f"root@{HOST}")
            quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            self._session = self.internet.start(("setpriv", "--pdeathsig", "KILL", "--", *words), os.environ, **quiet)
        # It makes the socket once it is in.
        return (self.directory / "session").is_socket()

    def _options(self) -> tuple[str, ...]:
        settings = {
            "ControlPath": self.directory / "session",
            "IdentityFile": self.directory / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "no",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "BindAddress": GATEWAY,
            "ConnectTimeout": 10,
            # A machine that boots says no word of farewell.
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 6,
        }
        return ("-F", "/dev/null", *(f"-o{name}={value}" for name, value in settings.items()))

    def _hardware(self) -> tuple[str, ...]:
        links: list[str] = []
        for name, address in LINKS.items():
            links += ("-netdev", f"tap,id={name},ifname=vm-{name},script=no,downscript=no")
            links += ("-device", f"virtio-net-pci,netdev={name},mac={address}")
        return (
            # Emulation throughout: it is the same on every machine, with and without KVM.
            *(
                "-nodefaults",
                "-no-user-config",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "qemu64",
                "-smp",
                "2",
                "-m",
                "1024",
            ),
            *("-display", "none", "-serial", f"file:{self.directory / 'serial'}", "-device", "virtio-rng-pci"),
            # What it writes goes into a file that has no name, and is gone with it.
            *("-drive", f"file={self.disk.image},format=raw,if=virtio,snapshot=on"),
            *links,
        )

    def _software(self) -> tuple[str, ...]:
        # systemd-tmpfiles puts it where sshd looks for it: there is no key in what is kept.
        key = (self.directory / "key.pub").read_text().strip()
        words = f'root=/dev/vda rw console=ttyS0 "systemd.set_credential=ssh.authorized_keys.root:{key}"'
        return ("-kernel", str(self.disk.kernel), "-initrd", str(self.disk.initrd), "-append", words)


@contextlib.contextmanager
def machine(disk: Disk, directory: Path) -> Iterator[tuple[Machine, Laboratory]]:
    """A laboratory whose `host` is a machine that boots from this disk. It is not switched on yet."""
    cables = Namespace(f"{TAG}{secrets.token_hex(2)}-guest")
    command("ip", "netns", "add", cables.name)
    try:
        with laboratory(cables) as lab:
            _join(cables)
            made = Machine(cables.name, disk, directory, lab.internet)
            lab.host = made
            try:
                yield made, lab
            finally:
                made.end()
    finally:
        command("ip", "netns", "del", cables.name)


def _join(cables: Namespace) -> None:
    """A bridge for each link of the laboratory and the machine's end of it; the namespace itself keeps silent."""
    cables.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    for name in LINKS:
        cables.run("ip", "tuntap", "add", f"vm-{name}", "mode", "tap")
        cables.run("ip", "link", "add", f"br-{name}", "type", "bridge")
        for end in (name, f"vm-{name}"):
            cables.run("ip", "link", "set", end, "master", f"br-{name}", "up")
        cables.run("ip", "link", "set", f"br-{name}", "up")
