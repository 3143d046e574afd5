"""What the kernel tells of another process (proc_pid_status(5))."""

from __future__ import annotations

from pathlib import Path

_NET_ADMIN = 12


def owner_of(number: int) -> int | None:
    """The user id of this process; None where there is none that can be seen."""
    words = _field(number, "Uid")
    return int(words[0]) if words else None


def is_dying(number: int) -> bool:
    """Whether all that is left of this process is a thread in the hands of a disk that hangs, or nothing."""
    return _field(number, "State")[:1] in (["Z"], ["X"])


def may_write_rules(number: int) -> bool:
    """Whether this process has the right to change rules (CAP_NET_ADMIN of linux/capability.h): a service has."""
    words = _field(number, "CapEff")
    return bool(words and int(words[0], 16) >> _NET_ADMIN & 1)


def _field(number: int, name: str) -> list[str]:
    try:
        lines = Path(f"/proc/{number}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith(f"{name}:")), [])
