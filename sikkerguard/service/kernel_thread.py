"""The one thread that touches netfilter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor


_Result = TypeVar("_Result")


class KernelThread:
    """The one thread that touches netfilter, seen from the event loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def run(self, action: Callable[..., _Result], *arguments: object) -> _Result:
        """Run this in the owner's thread, behind whatever it is at."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, action, *arguments)
