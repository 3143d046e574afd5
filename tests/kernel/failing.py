"""`sikkerguard run` of which some edges raise what nobody expects: `start` names those that a start asks, `stop` those
that a stop does."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sikkerguard.cli import run
from sikkerguard.config import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from sikkerguard.service.adapters import Adapters


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


def at_a_start(edges: Adapters) -> Adapters:
    """Nothing that is asked for on the way to the rules answers, but for the list."""
    store: Any = Failing(edges.store, "load_allowlist", "load_pulls", "load_ways")
    kernel: Any = Failing(edges.kernel, "hold_counters")
    return replace(edges, store=store, kernel=kernel, detect=fail, way=fail, make_watch=fail)


def at_a_stop(edges: Adapters) -> Adapters:
    """Nothing that comes before the removal of the rules works."""
    kernel: Any = Failing(edges.kernel, "unhook", "read_traffic")
    notifier: Any = Failing(edges.notifier, "stopping", "job")
    return replace(edges, kernel=kernel, notifier=notifier)


def main(when: str) -> int:
    """Run until a signal says stop."""

    def reread() -> settings.Config:
        return settings.load(os.environ)

    adjust: Callable[[Adapters], Adapters] = {"start": at_a_start, "stop": at_a_stop}[when]
    return run.run(reread(), reread, adjust)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
