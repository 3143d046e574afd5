"""Which backend is used: the first of `_BACKENDS` that fits. For a new one see docs/architecture.md, "To add"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.dry_run import DryRunBackend
from sikkerguard.edges.kernel.ipset_legacy.backend import IpsetBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sikkerguard.core.interfaces import FirewallBackend


class _Choice(NamedTuple):
    """One backend. `fits` says whether it is the one for this host, and gets whether this is a dry run; `open` opens it
    for these families."""

    fits: Callable[[bool], bool]
    open: Callable[[Sequence[Family]], FirewallBackend]


# In the order in which they are asked. The last one fits always.
_BACKENDS = (
    _Choice(lambda dry_run: dry_run, DryRunBackend),
    _Choice(lambda dry_run: True, IpsetBackend.build),
)


def open_backend(*, dry_run: bool) -> FirewallBackend:
    """The backend that drives this host's packet filter, or the dry run. To open one changes nothing in the kernel, and
    does not read python-iptables.

    Raises:
        KernelError: netlink can't be opened.
    """
    return next(choice for choice in _BACKENDS if choice.fits(dry_run)).open(usable_families())


def usable_families(proc: Path = Path("/proc/self/net")) -> tuple[Family, ...]:
    """The families that this host speaks: a kernel without IPv6 has no such packets to protect from, and no such
    tables."""
    return tuple(Family) if (proc / "if_inet6").exists() else (Family.V4,)
