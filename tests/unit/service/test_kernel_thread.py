"""The one thread that touches the packet filter: in the order of the calls, and each to its end."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.firewall.diff import EmptySets
from sikkerguard.core.interfaces import FirewallBackend
from sikkerguard.core.lists.allowlist import API, AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.sample import NOTHING, TrafficSample
from sikkerguard.errors import BusyError
from sikkerguard.service.kernel_thread import KernelThread
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.fakes import Backend
from tests.unit.service.virtual_time import run

if TYPE_CHECKING:
    from sikkerguard.core.net.networks import Blocklist

ALLOWED = Allowlist((AllowEntry(*parse_prefix("192.0.2.1"), API),))
ONE, OTHER = listing("198.51.100.7"), listing("198.51.100.8")
# Commands ask these of a backend of their own.
NOT_FOR_THE_SERVICE = {"inspect", "has_state"}


def test_each_method_is_the_backend_s_with_what_it_gives_and_raises() -> None:
    backend = Backend()
    kernel = KernelThread(backend)
    operation = EmptySets(Family.V4, ("sikkerguard-v4",))
    backend.changed, backend.samples = [(operation,), (operation, operation)], [TrafficSample()]

    async def work() -> None:
        assert await kernel.adopt(ONE, ALLOWED) == (operation,)
        assert await kernel.repair(ALLOWED) == (operation, operation)
        assert await kernel.read_committed() == ONE
        await kernel.allow(ALLOWED)
        await kernel.stage(OTHER)
        await kernel.begin_trial()
        await kernel.renew_trial()
        await kernel.commit()
        assert (backend.committed, backend.allowlist) == (OTHER, ALLOWED)
        await kernel.rollback()
        await kernel.hold_counters()
        await kernel.resume_counters({Family.V4: NOTHING})
        assert backend.counters == {Family.V4: NOTHING}
        assert await kernel.read_traffic() == (TrafficSample(),)
        await kernel.unhook()
        backend.fail("remove", BusyError("somebody uses it"))
        with pytest.raises(BusyError, match="somebody uses it"):
            await kernel.remove()
        await kernel.remove()
        await kernel.close()
        assert backend.closed

    run(work())
    public = {name for name, _ in inspect.getmembers(FirewallBackend, inspect.isfunction) if not name.startswith("_")}
    assert set(backend.steps) == public - NOT_FOR_THE_SERVICE


class Slow(Backend):
    """Stages a list once it `may_go` on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go, self.entered = threading.Event(), threading.Event()
        self.threads = set[int]()

    def step(self, method: str) -> None:
        self.threads.add(threading.get_ident())
        super().step(method)

    def stage(self, blocklist: Blocklist) -> None:
        self.entered.set()
        assert self.may_go.wait(20)
        super().stage(blocklist)


def test_calls_are_done_one_after_the_other_in_one_thread_and_to_their_end() -> None:
    backend = Slow()
    kernel = KernelThread(backend)

    async def work() -> None:
        staging = asyncio.create_task(kernel.stage(ONE))
        assert await asyncio.to_thread(backend.entered.wait, 20)
        # Cancelled while it is done: it is done all the same, and what comes next comes after it.
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        rolling = asyncio.create_task(kernel.rollback())
        reading = asyncio.create_task(kernel.read_committed())
        await asyncio.sleep(0)
        assert backend.steps == []
        backend.may_go.set()
        await asyncio.gather(rolling, reading)
        await kernel.close()

    asyncio.run(work())
    assert backend.steps == ["stage", "rollback", "read_committed", "close"]
    assert len(backend.threads) == 1
    assert threading.get_ident() not in backend.threads


def test_the_thread_ends_though_the_backend_can_not_be_closed() -> None:
    backend = Backend()
    backend.fail("close", OSError("it is closed already"))
    kernel = KernelThread(backend)

    async def work() -> None:
        await kernel.read_committed()
        with pytest.raises(OSError, match="closed already"):
            await kernel.close()

    asyncio.run(work())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("netfilter")]
