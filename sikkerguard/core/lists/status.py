"""The sources of the list in force, for the status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.lists.sources import SourceStatus
from sikkerguard.core.net.family import Family

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sikkerguard.core.lists.pull_memory import PullMemory


def source_statuses(
    memory: PullMemory, in_force: Collection[str], troubles: Mapping[str, str]
) -> tuple[SourceStatus, ...]:
    """One for each source that is known or in trouble. `in_force` has the names of those in the list in force, and
    `troubles` says by name why a newer version is not used."""
    statuses = []
    for name in sorted(memory.sources.keys() | troubles.keys(), reverse=True):
        versions = memory.of(name).versions if name in in_force else ()
        extent = versions[-1].extent if versions else None
        statuses.append(
            SourceStatus(
                name,
                entries=extent.entries if extent else 0,
                taken_at=versions[-1].taken_at if versions else None,
                covered_v4=extent.share(Family.V4) if extent else 0.0,
                covered_v6=extent.share(Family.V6) if extent else 0.0,
                trouble=troubles.get(name, ""),
            )
        )
    return tuple(statuses)
