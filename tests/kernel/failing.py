"""`sikkerguard run` of which some edges raise what nobody expects: `start` names those that a start asks, `stop` those
that a stop does."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from sikkerguard.cli import wiring
from sikkerguard.cli.adapters import SystemAdapters
from sikkerguard.config.settings import SettingsReader

if TYPE_CHECKING:
    from sikkerguard.config.settings import Config
    from sikkerguard.edges.storage.store import Store


class Failing:
    """Another object, but for these methods, which raise."""

    def __init__(self, other: Any, *names: str) -> None:
        self._other = other
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return fail if name in self._names else getattr(self._other, name)


def fail(*_: object, **__: object) -> Any:
    """What a library, or we, did not foresee."""
    raise RuntimeError("of a library")


class AtAStart(SystemAdapters):
    """Nothing that is asked for on the way to the rules answers, but for the list."""

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store)
        failing_store: Any = Failing(store, "load_allowlist", "load_pull_memory", "load_endpoint")
        self.store = failing_store
        backend: Any = Failing(self.backend, "hold_counters")
        self.backend = backend
        observer: Any = Failing(self.observer, "observe", "monitor")
        self.observer = observer

    endpoint = fail


class AtAStop(SystemAdapters):
    """Nothing that comes before the removal of the rules works."""

    def __init__(self, config: Config, store: Store) -> None:
        super().__init__(config, store)
        backend: Any = Failing(self.backend, "unhook", "read_traffic")
        self.backend = backend
        manager: Any = Failing(self.manager, "stopping", "pending_job")
        self.manager = manager


def main(when: str) -> int:
    """Run until a signal says stop."""
    reader = SettingsReader(os.environ)
    wiring.run(reader.load(), reader, {"start": AtAStart, "stop": AtAStop}[when])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
