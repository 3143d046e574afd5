"""The Debian that guests boot: made once by debootstrap, then kept as an image of the tests' Docker Engine."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.laboratory import cache, command

if TYPE_CHECKING:
    from tests.host.engine import Engine

SUITE = "bookworm"

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "util-linux", "iproute2", "iputils-ping", "ca-certificates"),
    *("iptables", "ipset", "python3", "python3-iptables", "python3-pyroute2", "python3-systemd", "python3-sdnotify"),
    *("python3-httpx", "python3-h11"),
)
# For a machine that knows no mirror for itself; what everyone is redirected from.
_EVERYONES = "http://deb.debian.org/debian"


def base(engine: Engine, suite: str = SUITE) -> str:
    """The name of the suite's image, which is made first if it is not there, or was made by another recipe."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    repository = f"sikkerguard-guest-{suite}"
    name = f"{repository}:{recipe}"
    found = engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository).split()
    if name not in found:
        if found:
            engine.docker("image", "rm", *found)
        for unfinished in cache().glob("base-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="base-", dir=cache(), ignore_cleanup_errors=True) as directory:
            _bootstrap(suite, Path(directory) / "root")
            _import(engine, Path(directory) / "root", name)
    return name


def _bootstrap(suite: str, root: Path) -> None:
    settings = command("apt-config", "shell", "proxy", "Acquire::http::Proxy")
    proxy = settings.partition("'")[2].rpartition("'")[0]
    # What it mounts and starts in there is gone with it, also when it is killed.
    contained = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "slave", "--")
    done = subprocess.run(
        (
            *contained,
            *("env", f"http_proxy={proxy}") * bool(proxy),
            *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", suite, str(root), _mirror(suite)),
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"debootstrap ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    # Each guest is a machine of its own.
    (root / "etc/machine-id").write_text("")


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
