"""Which backend is used. A new one is a folder beside this file, and one line in `_BACKENDS`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.dry_run import DryRunBackend
from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sikkerguard.core.interfaces import FirewallBackend

# By name, what opens a backend for these families.
_BACKENDS: Mapping[str, Callable[[Sequence[Family]], FirewallBackend]] = {
    IpsetBackend.name: IpsetBackend.build,
    DryRunBackend.name: DryRunBackend,
}


def open_backend(*, dry_run: bool) -> FirewallBackend:
    """The backend that drives this host's packet filter, or the dry run. To open one changes nothing in the kernel, and
    does not read python-iptables.

    Raises:
        KernelError: netlink can't be opened.
    """
    return _BACKENDS[DryRunBackend.name if dry_run else IpsetBackend.name](usable_families())


def usable_families(proc: Path = Path("/proc/self/net")) -> tuple[Family, ...]:
    """The families that this host speaks: a kernel without IPv6 has no such packets to protect from, and no such
    tables."""
    return tuple(Family) if (proc / "if_inet6").exists() else (Family.V4,)
