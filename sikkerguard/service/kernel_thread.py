"""The one thread that touches the packet filter: nothing but the backend lives in it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.interfaces import FirewallBackend
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class KernelThread:
    """The backend's methods as coroutines, carried out one after the other in the order in which they are called. What
    each does, and which errors it raises, is said in `core.interfaces.FirewallBackend`. A call whose task is cancelled
    is carried out all the same."""

    def __init__(self, backend: FirewallBackend) -> None:
        self._backend = backend
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="netfilter")

    async def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Begin with a list that passed its trial earlier."""
        return await self._run(self._backend.adopt, verified, allowlist)

    async def repair(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Make the kernel hold the committed list and this allowlist."""
        return await self._run(self._backend.repair, allowlist)

    async def read_committed(self) -> Blocklist:
        """The list that the kernel blocks by now."""
        return await self._run(self._backend.read_committed)

    async def allow(self, allowlist: Allowlist) -> None:
        """Make the allow sets hold this allowlist."""
        await self._run(self._backend.allow, allowlist)

    async def stage(self, blocklist: Blocklist) -> None:
        """Load a candidate."""
        await self._run(self._backend.stage, blocklist)

    async def begin_trial(self) -> None:
        """Let the candidate block too."""
        await self._run(self._backend.begin_trial)

    async def renew_trial(self) -> None:
        """Prolong the trial."""
        await self._run(self._backend.renew_trial)

    async def commit(self) -> None:
        """Put the candidate in the committed list's place."""
        await self._run(self._backend.commit)

    async def rollback(self) -> None:
        """End the trial and discard the candidate."""
        await self._run(self._backend.rollback)

    async def unhook(self) -> None:
        """Take our rules out of the packets' way."""
        await self._run(self._backend.unhook)

    async def remove(self) -> None:
        """Remove every object of ours."""
        await self._run(self._backend.remove)

    async def hold_counters(self) -> None:
        """Give nothing to `read_traffic` until `resume_counters`."""
        await self._run(self._backend.hold_counters)

    async def resume_counters(self, counters: Mapping[Family, PacketCount]) -> None:
        """Count on from these readings."""
        await self._run(self._backend.resume_counters, counters)

    async def read_traffic(self) -> tuple[TrafficSample, ...]:
        """What was dropped since the last call."""
        return await self._run(self._backend.read_traffic)

    async def close(self) -> None:
        """Close the backend's sockets, and end the thread."""
        try:
            await self._run(self._backend.close)
        finally:
            self._executor.shutdown(wait=True)

    async def _run(self, method: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        job = asyncio.get_running_loop().run_in_executor(self._executor, method, *arguments)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            # What it raises then is nobody's: the next look sees what the kernel holds.
            job.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
