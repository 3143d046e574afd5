"""What is to be written to the state directory, as values: the newest of each kind counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sikkerguard.core.interfaces import StateStore
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.lists.pull_memory import PullMemory
    from sikkerguard.core.lists.sources import VerifiedList
    from sikkerguard.core.sikkerapi.endpoint import EndpointMemory


@dataclass(frozen=True, slots=True)
class Claim:
    """Own the directory."""

    kind: ClassVar[str] = "claim"

    def write(self, store: StateStore) -> bool:
        """Do it; whether the directory had to be made again. Raises `OSError`."""
        return store.claim()


@dataclass(frozen=True, slots=True)
class SaveList:
    """Keep a list that passed its trial."""

    verified: VerifiedList
    kind: ClassVar[str] = "list"

    def write(self, store: StateStore) -> bool:
        """Do it. Raises `OSError`."""
        store.save_list(self.verified)
        return False


@dataclass(frozen=True, slots=True)
class SaveAllowlist:
    """Keep what is allowed, and why."""

    allowlist: Allowlist
    kind: ClassVar[str] = "allowlist"

    def write(self, store: StateStore) -> bool:
        """Do it. Raises `OSError`."""
        store.save_allowlist(self.allowlist)
        return False


@dataclass(frozen=True, slots=True)
class SavePullMemory:
    """Keep what the next pull has to know of earlier ones."""

    memory: PullMemory
    kind: ClassVar[str] = "pulls"

    def write(self, store: StateStore) -> bool:
        """Do it. Raises `OSError`."""
        store.save_pull_memory(self.memory)
        return False


@dataclass(frozen=True, slots=True)
class SaveEndpoint:
    """Keep at which addresses SikkerAPI, or a proxy, was proven to be."""

    memory: EndpointMemory
    kind: ClassVar[str] = "addresses of SikkerAPI"

    def write(self, store: StateStore) -> bool:
        """Do it. Raises `OSError`."""
        store.save_endpoint(self.memory)
        return False


@dataclass(frozen=True, slots=True)
class SaveSettings:
    """Keep good settings, by variable, for a start that meets wrong ones."""

    texts: Mapping[str, str]
    kind: ClassVar[str] = "settings"

    def write(self, store: StateStore) -> bool:
        """Do it. Raises `OSError`."""
        store.save_settings(self.texts)
        return False


PendingWrite = Claim | SaveList | SaveAllowlist | SavePullMemory | SaveEndpoint | SaveSettings
