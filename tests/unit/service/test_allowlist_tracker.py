"""What is never blocked: in step with the host, the settings and SikkerAPI's addresses, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sikkerguard.core.lists.allowlist import API, GATEWAY, RESOLVER, Allowlist
from sikkerguard.errors import BusyError, KernelError
from tests.unit.service.assembly import AT_HOME, NOWHERE, Assembly, FakeAdapters, assembled, entries
from tests.unit.service.fakes import Changes
from tests.unit.service.virtual_time import run, run_cancelled_at

if TYPE_CHECKING:
    from sikkerguard.core.lists.allowlist import AllowEntry

HERE = entries("192.0.2.7")
NEW = entries("192.0.2.8")


def allowed(made: Assembly) -> set[AllowEntry]:
    """What is in force beyond what is allowed everywhere, and what the fake host and API always have."""
    standard = {*AT_HOME.allowed, *entries("203.0.113.80", reason=API)}
    return (
        {entry for entry in made.parts.tracker.allowlist.entries if "network" not in entry.reason}
        - standard
        - {entry for entry in made.parts.tracker.allowlist.entries if entry.reason in ("loopback", "link-local")}
    )


def in_kernel(made: Assembly) -> bool:
    """Whether the kernel allows just that."""
    return made.adapters.backend.allowlist == made.parts.tracker.allowlist


def host_has(made: Assembly, *found: AllowEntry) -> None:
    made.adapters.observer.found = replace(AT_HOME, allowed=(*AT_HOME.allowed, *found))


def test_what_comes_is_allowed_and_what_goes_is_blocked_again() -> None:
    async def main() -> None:
        made = assembled()
        watcher = Changes()
        await made.begin()
        made.parts.tracker.allowed.wake(watcher)
        for found in (HERE, (*HERE, *NEW), NEW, ()):
            host_has(made, *found)
            await made.parts.tracker.follow()
            assert allowed(made) == set(found)
            assert in_kernel(made)
            await made.parts.disk.settled(5)
            assert made.adapters.store.allowlist == made.parts.tracker.allowlist
        assert watcher.times == 4
        # Nothing changed: nobody is woken, and neither kernel nor disk is touched.
        steps = [*made.adapters.backend.steps]
        await made.parts.tracker.follow()
        assert watcher.times == 4
        assert made.adapters.backend.steps == steps

    run(main())


def test_the_settings_and_the_api_are_followed_too() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        made.change(whitelist=NEW)
        made.parts.settings.reload()
        await made.parts.tracker.follow()
        assert allowed(made) == set(NEW)
        made.parts.tracker.set_endpoint(entries("203.0.113.81", reason=API))
        await made.parts.tracker.follow()
        assert made.parts.tracker.api_addresses == ("203.0.113.81",)
        assert allowed(made) == {*NEW, *entries("203.0.113.81", reason=API)}
        assert entries("203.0.113.80", reason=API)[0] not in made.parts.tracker.allowlist.entries

    run(main())


@pytest.mark.parametrize(
    "error", [KernelError("refused"), BusyError("a lock"), ValueError("of a library"), MemoryError()]
)
@pytest.mark.parametrize("where", ["observe", "allow"])
def test_what_could_not_be_followed_is_tried_again(where: str, error: Exception) -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        host_has(made, *NEW)
        before = made.parts.tracker.allowlist
        failing = made.adapters.observer if where == "observe" else made.adapters.backend
        failing.fail(where, error)
        with pytest.raises(type(error)):
            await made.parts.tracker.follow()
        # What could not be done is not believed to be done.
        assert made.parts.tracker.allowlist == before
        await made.parts.tracker.follow()
        assert allowed(made) == set(NEW)
        assert in_kernel(made)

    run(main())


@pytest.mark.parametrize("error", [KernelError("routes can't be read"), ValueError("of a library"), MemoryError()])
def test_a_start_that_can_not_look_at_the_host_allows_all_that_was_allowed_before(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        adapters = FakeAdapters()
        adapters.store.allowlist = Allowlist((*HERE, *entries("192.0.2.1", reason=GATEWAY)))
        adapters.observer.fail("observe", error)
        made = assembled(adapters)
        await made.begin()
        assert set(HERE) <= set(made.parts.tracker.allowlist.entries)
        assert "what was allowed before stays so, and it is looked again" in made.parts.tracker.state.trouble
        assert made.parts.failures()
        # The next look finds out what is now.
        await made.parts.tracker.follow()
        assert allowed(made) == set()
        assert made.parts.tracker.state.trouble == ""

    run(main())
    assert caplog.text.count("what was allowed before stays so") == 1


def test_before_the_network_is_up_the_way_that_led_there_stays_allowed() -> None:
    async def main() -> None:
        adapters = FakeAdapters()
        ways = (*entries("192.0.2.1", reason=GATEWAY), *entries("192.0.2.53", reason=RESOLVER))
        adapters.store.allowlist = Allowlist((*ways, *HERE))
        adapters.observer.found = NOWHERE
        made = assembled(adapters)
        await made.begin()
        assert set(ways) <= set(made.parts.tracker.allowlist.entries)
        assert HERE[0] not in made.parts.tracker.allowlist.entries
        # There is a way out: what led there before is nobody's any more.
        adapters.observer.found = AT_HOME
        await made.parts.tracker.follow()
        assert ways[1] not in made.parts.tracker.allowlist.entries
        adapters.observer.found = NOWHERE
        await made.parts.tracker.follow()
        assert ways[0] not in made.parts.tracker.allowlist.entries

    run(main())


def test_the_host_is_looked_at_with_the_list_in_force_and_the_ports_of_the_settings() -> None:
    async def main() -> None:
        made = assembled(ssh_ports=(2222,))
        await made.begin()
        assert made.adapters.observer.looks[-1] == ((2222,), made.parts.lists.listed)

    run(main())


def test_what_is_allowed_for_seconds_is_on_no_allowlist_and_survives_a_look() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        kept = made.adapters.store.allowlist
        async with made.parts.tracker.tentatively(NEW):
            assert set(NEW) <= set(made.adapters.backend.allowlist.entries)
            await made.parts.tracker.follow()
            host_has(made, *HERE)
            await made.parts.tracker.follow()
            assert set(NEW) | set(HERE) <= set(made.adapters.backend.allowlist.entries)
            assert allowed(made) == set(HERE)
        assert in_kernel(made)
        await made.parts.disk.settled(5)
        assert NEW[0] not in made.adapters.store.allowlist.entries
        assert kept != made.adapters.store.allowlist

    run(main())


def test_what_is_allowed_for_seconds_goes_also_where_the_kernel_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        async with made.parts.tracker.tentatively(NEW):
            made.adapters.backend.fail("allow", BusyError("a lock"))
        assert not in_kernel(made)
        assert made.parts.tracker.in_kernel == made.parts.tracker.allowlist
        # What is noted is done by the next repair.
        await made.parts.kernel.repair(made.parts.tracker.in_kernel)
        assert in_kernel(made)

    run(main())
    assert "what was allowed for seconds is taken out by the next look" in caplog.text


def test_a_cancellation_at_any_point_leaves_nothing_that_the_next_look_does_not_put_right() -> None:
    async def follow(made: Assembly) -> None:
        await made.begin()
        host_has(made, *HERE)
        async with made.parts.tracker.tentatively(NEW):
            await made.parts.tracker.follow()
        host_has(made)
        await made.parts.tracker.follow()

    async def again(made: Assembly) -> None:
        await made.parts.tracker.follow()
        await made.parts.kernel.repair(made.parts.tracker.in_kernel)
        assert NEW[0] not in made.parts.tracker.in_kernel.entries
        assert in_kernel(made)

    turn, cancelled = 0, True
    while cancelled:
        turn += 1
        box: list[Assembly] = []

        async def play(box: list[Assembly] = box) -> None:
            box.append(assembled())
            try:
                await follow(box[0])
            except asyncio.CancelledError:
                # In the same loop: the next look of a service that goes on.
                await again(box[0])
                raise

        cancelled = run_cancelled_at(turn, play())
    assert turn > 10


def test_two_who_look_at_the_same_time_do_not_have_the_older_look_win() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        host_has(made, *HERE)
        first = asyncio.create_task(made.parts.tracker.follow())
        await asyncio.sleep(0)
        host_has(made, *NEW)
        await asyncio.gather(first, made.parts.tracker.follow())
        assert allowed(made) == set(NEW)
        assert in_kernel(made)

    run(main())
