"""The Debian that guests boot: made once by debootstrap, then kept as an image of the tests' Docker Engine.

It is as small as a server gets, and has no network to install anything by: what SikkerGuard needs, and the programs it
gets along with, lie in a repository of its own. So whatever a test installs was declared to be needed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.host import network
from tests.laboratory import cache, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.host.engine import Engine

SUITES = ("bookworm", "trixie")

# A server before anything is installed on it: in particular no Python, no iptables and no ipset.
_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "util-linux", "iproute2", "iputils-ping", "ca-certificates"),
)
# The directory of the image's own repository.
_REPOSITORY = "srv/packages"
# What the repository is for, each with all that it needs; some of these can't be installed beside each other.
_SERVED = (
    (
        *("python3-iptables", "python3-pyroute2", "python3-httpx", "python3-h11", "python3-systemd"),
        *("python3-sdnotify", "iptables", "ipset"),
    ),
    ("--no-install-recommends", "ufw"),
    ("--no-install-recommends", "iptables-persistent"),
    ("--no-install-recommends", "firewalld"),
    ("--no-install-recommends", "logcheck"),
)
# For a machine that knows no mirror for itself; what everyone is redirected from.
_EVERYONES = "http://deb.debian.org/debian"


def base(engine: Engine, suite: str) -> str:
    """The name of the suite's image, which is made first if it is not there, or was made by another recipe."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + Path(network.__file__).read_bytes())
    name = f"sikkerguard-guest-{suite}:{recipe.hexdigest()[:16]}"
    if not engine.has_only(name):
        for unfinished in cache().glob("base-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="base-", dir=cache(), ignore_cleanup_errors=True) as directory:
            root = Path(directory) / "root"
            bootstrap(suite, root)
            network.configure(root)
            _import(engine, root, name)
    return name


def bootstrap(suite: str, root: Path, extra: Sequence[str] = ()) -> None:
    """Make a directory with a Debian in it, with these packages too, and with the repository for what comes later."""
    mirror = _mirror(suite)
    settings = command("apt-config", "shell", "proxy", "Acquire::http::Proxy")
    proxy = settings.partition("'")[2].rpartition("'")[0]
    _run(
        *("env", f"http_proxy={proxy}") * bool(proxy),
        *("debootstrap", "--variant=minbase", f"--include={','.join((*_PACKAGES, *extra))}", suite, str(root), mirror),
    )
    _serve(suite, root, mirror, *("-o", f"Acquire::http::Proxy={proxy}") * bool(proxy))
    _clear(root)


def _serve(suite: str, root: Path, mirror: str, *options: str) -> None:
    """Fill the image's repository, and make it the only one that its apt knows."""
    packages, sources = root / _REPOSITORY, root / "etc/apt/sources.list"
    (packages / "partial").mkdir(parents=True)
    sources.write_text(f"deb {mirror} {suite} main\n")
    # Its own apt looks for its own suite, and knows the keys of that.
    apt = ("chroot", str(root), "apt-get", "-o", "Acquire::Languages=none", *options)
    _run(*apt, "update")
    for wanted in _SERVED:
        _run(*apt, "-o", f"Dir::Cache::archives=/{_REPOSITORY}", "--yes", "--download-only", "install", *wanted)
    shutil.rmtree(packages / "partial")
    (packages / "lock").unlink()
    shutil.rmtree(root / "var/lib/apt/lists")
    (packages / "Packages").write_text(command("env", "-C", str(packages), "dpkg-scanpackages", "--multiversion", "."))
    sources.write_text(f"deb [trusted=yes] file:/{_REPOSITORY} ./\n")
    _run(*apt, "update")


def _clear(root: Path) -> None:
    """Leave nothing of the machine that the image is made on, and nothing that makes two guests the same machine."""
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    for name in ("etc/resolv.conf", "etc/hostname", "var/log/bootstrap.log", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")


def _run(*words: str) -> None:
    # What it mounts and starts in there is gone with it, also when it is killed.
    contained = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "slave", "--")
    done = subprocess.run(
        (*contained, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")


def _import(engine: Engine, root: Path, name: str) -> None:
    with subprocess.Popen(("tar", "-C", str(root), "-c", "."), stdout=subprocess.PIPE) as archive:
        subprocess.run(
            (*engine.client, "import", "-", name), stdin=archive.stdout, capture_output=True, timeout=300, check=True
        )
    assert archive.returncode == 0


def _mirror(suite: str) -> str:
    """Where this machine gets its own packages, if that is a mirror of Debian by HTTP; it has the other suites too."""
    targets = command(
        "apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"
    )
    found: dict[str, str] = {}
    for line in targets.splitlines():
        release, component, address = line.split(maxsplit=2)
        if component == "main" and address.startswith("http"):
            found.setdefault(release, address)
    if suite in found:
        return found[suite]
    is_debian = "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text()
    # Other suites of the same mirror: not those of updates, which have an archive of their own.
    return next((address for release, address in found.items() if is_debian and "-" not in release), _EVERYONES)
