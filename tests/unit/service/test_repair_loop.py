"""How the keeper looks: not more often than is good for the host, soon enough, and in nobody's way."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.core.host.surroundings import Gateway, Surroundings
from sikkerguard.core.lists.allowlist import GATEWAY, AllowEntry, Allowlist
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.errors import BusyError, KernelError
from sikkerguard.service import repair_loop as module
from sikkerguard.service.kernel_thread import KernelThread
from sikkerguard.service.repair_loop import Keeper
from sikkerguard.service.supervision import Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

ALLOWED = AllowEntry(*parse_prefix("203.0.113.1"), GATEWAY)
STRAIGHT_OUT = Gateway(Family.V4, "", 7)


class Kernel:
    """Notes what it is told to allow."""

    def __init__(self) -> None:
        self.allowed: list[Allowlist] = []
        self.settled: list[Allowlist] = []
        self.refuses = 0
        # What `settle` and `adopt` raise.
        self.trouble: Exception | None = None
        self.adopted = 0

    def adopt(self, blocklist: Blocklist, allowlist: Allowlist) -> tuple[()]:
        """Nothing to do, unless something is in the way."""
        if self.trouble is not None:
            raise self.trouble
        self.adopted += 1
        return ()

    def allow(self, allowlist: Allowlist) -> None:
        """Another allowlist, unless it is refused."""
        if self.refuses:
            self.refuses -= 1
            raise KernelError("the kernel is busy")
        self.allowed.append(allowlist)

    def settle(self, allowlist: Allowlist) -> tuple[()]:
        """Nothing to repair."""
        self.settled.append(allowlist)
        if self.trouble is not None:
            raise self.trouble
        return ()


class Host:
    """What is found out about the host, and a keeper that looks at it."""

    def __init__(self, owner: KernelThread) -> None:
        self.found = Surroundings((), frozenset())
        self.looks: list[float] = []
        self.held: threading.Event | None = None
        self.threads: set[str] = set()
        self.routed = 0
        self.lives: list[float] = []
        self.changes: dict[str, Any] = {}
        self.kernel = Kernel()
        kernel: Any = self.kernel
        self.keeper = Keeper(
            kernel,
            owner,
            None,
            self.detect,
            lambda changed: None,
            self.note_route,
            self.note_change,
            self.note_life,
            Unknown(),
        )

    def detect(self, ways: Iterable[AllowEntry]) -> Surroundings:
        """Look, for as long as this is held."""
        self.looks.append(time.monotonic())
        self.threads.add(threading.current_thread().name)
        if self.held is not None:
            assert self.held.wait(10)
        return self.found

    def note_change(self, **changes: Any) -> None:
        """The service's state."""
        self.changes |= changes

    def note_life(self) -> None:
        """The watchdog is fed."""
        self.lives.append(time.monotonic())

    def note_route(self) -> None:
        """Another way out."""
        self.routed += 1


@pytest.fixture
def owner() -> Iterator[KernelThread]:
    """The one thread that touches netfilter."""
    with ThreadPoolExecutor(1, thread_name_prefix="netfilter") as executor:
        yield KernelThread(executor)


@pytest.fixture
def host(owner: KernelThread) -> Iterator[Host]:
    """Nothing is found at first."""
    made = Host(owner)
    yield made
    made.keeper.close()


def run(host: Host, work: Callable[[], Awaitable[None]]) -> None:
    """Do this while the keeper looks."""

    async def both() -> None:
        await host.keeper.begin(Allowlist())
        looking = asyncio.create_task(host.keeper.look_forever())
        try:
            await work()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    asyncio.run(both())


def test_however_much_changes_it_looks_once_a_second_at_most(host: Host) -> None:
    async def change_all_the_time() -> None:
        ends = time.monotonic() + 3.5
        while time.monotonic() < ends:
            host.keeper.notice()
            await asyncio.sleep(0.005)

    run(host, change_all_the_time)
    # The first is that of the start.
    pauses = [later - earlier for earlier, later in zip(host.looks[1:], host.looks[2:], strict=False)]
    assert len(pauses) >= 1
    assert min(pauses) > 0.95
    assert len(host.looks) <= 5


def test_what_changes_behind_a_look_is_allowed_within_two_seconds(host: Host) -> None:
    async def change_twice() -> None:
        host.keeper.notice()
        while len(host.looks) < 2:
            await asyncio.sleep(0.01)
        # Just missed.
        host.found = Surroundings((ALLOWED,), frozenset())
        host.keeper.notice()
        changed = time.monotonic()
        while not any(ALLOWED in allowlist.entries for allowlist in host.kernel.allowed):
            assert time.monotonic() - changed < 2.0
            await asyncio.sleep(0.01)

    run(host, change_twice)


def test_a_host_that_takes_long_to_look_at_keeps_nobody_from_the_kernel(host: Host, owner: KernelThread) -> None:
    async def use_the_kernel() -> None:
        host.held = threading.Event()
        host.keeper.notice()
        while len(host.looks) < 2:
            await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(1.0):
                assert await owner.run(lambda: "done") == "done"
        finally:
            host.held.set()

    run(host, use_the_kernel)
    assert all(name.startswith("surroundings") for name in host.threads)


def test_a_way_out_without_an_address_is_one(host: Host) -> None:
    kept = Allowlist((ALLOWED,))

    async def follow() -> None:
        # Before there is a way out, the one that was there before must not be cut off.
        await host.keeper.begin(kept)
        assert not host.keeper.gateways
        assert ALLOWED in host.keeper.allowlist.entries
        host.found = Surroundings((), frozenset({STRAIGHT_OUT}))
        await host.keeper.follow_host()
        assert host.keeper.gateways == {STRAIGHT_OUT}
        assert host.routed == 1
        assert ALLOWED not in host.keeper.allowlist.entries

    asyncio.run(follow())


def test_what_the_kernel_refused_is_right_again_though_the_host_is_as_it_was(host: Host) -> None:
    gateway = AllowEntry(*parse_prefix("192.0.2.1"), GATEWAY)
    here = Surroundings((gateway,), frozenset({Gateway(Family.V4, "192.0.2.1", 1)}))

    async def flap() -> None:
        # The gateway goes, the kernel refuses to hear of it, and the gateway is back.
        host.kernel.refuses = 1
        host.found = Surroundings((), frozenset())
        with pytest.raises(KernelError):
            await host.keeper.follow_host()
        host.found = here
        await host.keeper.follow_host()

    async def work() -> None:
        await host.keeper.begin(Allowlist())
        await flap()
        assert gateway in host.keeper.allowlist.entries
        assert gateway in host.kernel.allowed[-1].entries

    host.found = here
    asyncio.run(work())


def test_what_is_allowed_for_seconds_is_taken_out_though_the_kernel_refused_it(host: Host) -> None:
    stranger = AllowEntry(*parse_prefix("203.0.113.66"), "SikkerAPI")

    async def work() -> None:
        host.kernel.refuses = 1
        with pytest.raises(KernelError):
            async with host.keeper.tentatively([stranger]):
                pytest.fail("it was refused")
        settled = len(host.kernel.settled)
        host.keeper.notice()
        async with asyncio.timeout(8):
            while len(host.kernel.settled) == settled:
                await asyncio.sleep(0.01)

    run(host, work)
    assert all(stranger not in allowed.entries for allowed in (*host.kernel.allowed, *host.kernel.settled[-1:]))


def test_what_is_let_go_after_a_while_is_put_right_at_once_too(host: Host) -> None:
    async def work() -> None:
        host.kernel.trouble = BusyError("another program has held the lock since noon")
        host.keeper.notice()
        # Between two looks, when the tries that follow the first one have come to their end.
        await asyncio.sleep(module._LOOK_SECONDS + 0.7)
        host.kernel.trouble = None
        freed = time.monotonic()
        async with asyncio.timeout(module._LOOK_SECONDS):
            while host.changes.get("trouble", "x"):
                await asyncio.sleep(0.01)
        assert time.monotonic() - freed < 1.5

    run(host, work)


def test_a_lock_that_another_program_holds_feeds_the_watchdog_and_is_told(host: Host) -> None:
    async def work() -> None:
        host.kernel.trouble = BusyError("another program has held the lock since noon; rules are left as they are")
        host.keeper.notice()
        async with asyncio.timeout(8):
            while len(host.kernel.settled) < 4:
                await asyncio.sleep(0.01)
        assert len(host.lives) >= 1
        assert host.changes["trouble"] == (
            "Another program has held the lock since noon; rules are left as they are; it is put right as soon as that "
            "is possible."
        )
        assert "settled_at" not in host.changes
        # Let go, all is put right at once, and not at the next look.
        host.kernel.trouble = None
        freed = time.monotonic()
        async with asyncio.timeout(2):
            while host.changes["trouble"]:
                await asyncio.sleep(0.01)
        assert time.monotonic() - freed < 1
        assert "settled_at" in host.changes

    run(host, work)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KernelError("the kernel refused"), "The kernel refused"),
        (MemoryError(), "There is not enough memory to look after the rules, which stay as they are"),
        # What nobody thought of comes again at the pace of any other.
        (ValueError("of a library"), "An error that nobody expected (ValueError: of a library)"),
    ],
    ids=["refused", "memory", "unexpected"],
)
def test_what_nobody_else_is_to_blame_for_starves_the_watchdog(host: Host, error: Exception, said: str) -> None:
    async def work() -> None:
        host.kernel.trouble = error
        host.keeper.notice()
        async with asyncio.timeout(8):
            while len(host.kernel.settled) < 2:
                await asyncio.sleep(0.01)

    run(host, work)
    assert host.lives == []
    assert host.changes["trouble"] == f"{said}; tried again every 5 s."


def test_a_look_that_hangs_starves_the_watchdog(host: Host, owner: KernelThread) -> None:
    async def work() -> None:
        host.held = threading.Event()
        host.keeper.notice()
        try:
            while len(host.looks) < 2:
                await asyncio.sleep(0.01)
            lives = len(host.lives)
            await asyncio.sleep(1.5)
            assert len(host.lives) == lives
        finally:
            host.held.set()

    run(host, work)


def test_a_start_goes_on_when_another_program_lets_go(host: Host) -> None:
    waited: list[float] = []

    async def work() -> None:
        await host.keeper.begin(Allowlist())
        host.kernel.trouble = BusyError("another program has held the lock")
        stopped = asyncio.Event()
        adopting = asyncio.create_task(host.keeper.adopt(Blocklist(), waited.append, stopped))
        async with asyncio.timeout(5):
            while len(waited) < 3:
                await asyncio.sleep(0.01)
        assert host.kernel.adopted == 0
        assert waited == sorted(waited)
        assert len(host.lives) >= 2
        assert host.changes["trouble"].startswith("Another program has held the lock; ")
        host.kernel.trouble = None
        async with asyncio.timeout(2):
            assert await adopting == ()
        assert host.kernel.adopted == 1
        assert host.changes["trouble"] == ""

    asyncio.run(work())


def test_a_start_that_is_stopped_while_it_waits_ends_at_once(host: Host) -> None:
    async def work() -> None:
        await host.keeper.begin(Allowlist())
        host.kernel.trouble = BusyError("another program has held the lock")
        stopped = asyncio.Event()
        adopting = asyncio.create_task(host.keeper.adopt(Blocklist(), lambda seconds: None, stopped))
        await asyncio.sleep(0.3)
        assert not adopting.done()
        stopped.set()
        async with asyncio.timeout(0.5):
            assert await adopting is None

    asyncio.run(work())


def test_a_boot_waits_for_another_program_no_longer_than_it_may(host: Host) -> None:
    async def work() -> None:
        await host.keeper.begin(Allowlist())
        host.kernel.trouble = BusyError("another program has held the lock")
        async with asyncio.timeout(5):
            with pytest.raises(BusyError):
                await host.keeper.adopt(Blocklist(), lambda seconds: None, asyncio.Event(), 0.5)
        # What nobody else is to blame for is not waited for at all.
        host.kernel.trouble = KernelError("the kernel refused")
        with pytest.raises(KernelError, match="the kernel refused"):
            await host.keeper.adopt(Blocklist(), lambda seconds: None, asyncio.Event())

    asyncio.run(work())
