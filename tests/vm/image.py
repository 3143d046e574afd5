"""The disks that virtual machines boot: a Debian with its own kernel, made once for each suite, then kept."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.laboratory.machine import cache, locked
from scripts.laboratory.network import RESOLVER
from scripts.laboratory.tools import command
from tests import debian
from tests.host import base, network

# The kernel, what makes its initial file system, and the way in. The package's own needs come from the repository that
# each root has.
_PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools", "openssh-server")
_SIZE = "3G"
_MADE_BY = (__file__, base.__file__, debian.__file__, network.__file__)
# Two suites, each made in a few minutes by another run.
_TURN_SECONDS = 1800.0
# The hardware address of each link, by which the machine knows which one it is.
LINKS = {"wan": "52:54:00:00:00:01", "lan": "52:54:00:00:00:02"}


@dataclass(frozen=True)
class Disk:
    """A file system without a partition table, and what starts it. Whoever boots it must not write to it."""

    directory: Path

    @property
    def image(self) -> Path:
        """The file system, ext4."""
        return self.directory / "disk"

    @property
    def kernel(self) -> Path:
        """The kernel, as it is in the file system's /boot."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What that kernel starts from."""
        return self.directory / "initrd.img"


def disk(suite: str) -> Disk:
    """The suite's disk, which is made first if it is not there, or was made by another recipe."""
    recipe = hashlib.sha256(b"".join(Path(made_by).read_bytes() for made_by in _MADE_BY))
    kept = cache() / "vm"
    kept.mkdir(exist_ok=True)
    found = Disk(kept / f"{suite}-{recipe.hexdigest()[:16]}")
    with locked(kept / "lock", _TURN_SECONDS):
        if not found.directory.exists():
            for older in (*kept.glob(f"{suite}-*"), *kept.glob("unfinished-*")):
                shutil.rmtree(older)
            with tempfile.TemporaryDirectory(prefix="unfinished-", dir=kept) as directory:
                made = Disk(Path(directory) / "made")
                _make(suite, Path(directory) / "root", made)
                made.directory.rename(found.directory)
    return found


def _make(suite: str, root: Path, made: Disk) -> None:
    base.bootstrap(suite, root, _PACKAGES)
    network.configure(root)
    _furnish(root)
    made.directory.mkdir()
    for name, kept in (("vmlinuz", made.kernel), ("initrd.img", made.initrd)):
        (path,) = (root / "boot").glob(f"{name}-*")
        shutil.copyfile(path, kept)
    command("truncate", "--size", _SIZE, str(made.image))
    command("mkfs.ext4", "-q", "-d", str(root), str(made.image), timeout=300)


def _furnish(root: Path) -> None:
    """What a machine has that a container has not: a disk to check, links with hardware addresses, a resolver."""
    (root / "etc/fstab").write_text("/dev/vda / ext4 errors=remount-ro 0 1\n")
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 guest\n::1 localhost\n")
    (root / "etc/resolv.conf").write_text(f"nameserver {RESOLVER}\n")
    for name, address in LINKS.items():
        text = f"[Match]\nMACAddress={address}\n\n[Link]\nName={name}\n"
        (root / f"etc/systemd/network/10-{name}.link").write_text(text)
    # Nothing takes apt's lock on its own account.
    command("chroot", str(root), "systemctl", "--quiet", "mask", "apt-daily.timer", "apt-daily-upgrade.timer")
