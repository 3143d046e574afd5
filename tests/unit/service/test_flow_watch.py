"""The host's own connections: which a candidate would cut, and which are seen while it is on trial."""

from __future__ import annotations

import asyncio

import pytest

from sikkerguard.core.host.connections import CONNECTIONS
from sikkerguard.core.host.flows import NewlyCovered
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.errors import HeldBackError, KernelError
from sikkerguard.service.flow_watch import FlowWatch, check_connections
from tests.unit.core.host.test_connections import INCOMING, flow, own
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.fakes import HostConnections
from tests.unit.service.virtual_time import run

CANDIDATE = listing("198.51.100.0/28")


# Before a trial


def checked(
    connections: HostConnections,
    committed: Blocklist | None = None,
    held_back: frozenset[str] = frozenset(),
    *,
    accept: bool = False,
) -> None:
    run(check_connections(connections, CANDIDATE, committed, held_back, sessions=0, accept=accept))


@pytest.mark.parametrize(
    ("committed", "held_back", "accept", "refused"),
    [
        (Blocklist(), frozenset[str](), False, True),
        (None, frozenset[str](), False, False),
        (Blocklist(), frozenset({CONNECTIONS}), False, False),
        (Blocklist(), frozenset[str](), True, False),
        (listing("198.51.100.0/28"), frozenset[str](), False, False),
    ],
    ids=["later list", "first list", "said before", "accepted", "blocked before"],
)
def test_a_list_that_cuts_the_host_s_own_connections_is_held_back_once(
    committed: Blocklist | None,
    held_back: frozenset[str],
    accept: bool,
    refused: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connections = HostConnections(own(6))
    if refused:
        with pytest.raises(HeldBackError) as error:
            checked(connections, committed, held_back, accept=accept)
        assert error.value.suspicions == {CONNECTIONS}
    else:
        checked(connections, committed, held_back, accept=accept)
    # What is cut is said in any case.
    blocked_before = committed == CANDIDATE
    assert [message[:37] for message in caplog.messages] == (
        [] if blocked_before else ["The new list cuts connections to 6 ad"]
    )


def test_connections_that_can_not_be_read_hold_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    connections = HostConnections(own(6))
    connections.fail("flows", KernelError("connections can't be read"))
    checked(connections, Blocklist())
    assert caplog.messages == [
        "Connections can't be read; whether the new list cuts connections of this host is not known."
    ]


# During a trial


def watch(connections: HostConnections) -> FlowWatch:
    return FlowWatch(connections, NewlyCovered(CANDIDATE, Blocklist()))


def test_what_begins_while_it_looks_is_seen_however_short_it_is() -> None:
    old, new, unlisted = flow("198.51.100.1"), flow("198.51.100.2"), flow("203.0.113.1")
    connections = HostConnections([old, flow("198.51.100.3", INCOMING)])
    found = watch(connections)

    async def work() -> None:
        await found.begin()
        looking = asyncio.create_task(found.look_forever())
        await asyncio.sleep(1)
        connections.found = (old, new, unlisted)
        await asyncio.sleep(0.5)
        connections.found = ()
        await asyncio.sleep(1)
        looking.cancel()
        await found.end()

    run(work())
    assert found.outgoing() == (new,)
    assert not connections.watches[0].is_open


def test_nothing_is_opened_after_the_end() -> None:
    """A begin that was cancelled goes on in its thread."""
    connections = HostConnections()
    found = watch(connections)

    async def work() -> None:
        beginning = asyncio.create_task(found.begin())
        await asyncio.sleep(0)
        beginning.cancel()
        await found.end()
        found._open()

    run(work())
    assert connections.watches == []


def test_one_that_can_not_be_watched_ends_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    connections = HostConnections([flow("198.51.100.1")])
    connections.fail("watch", KernelError("packets can't be watched"))
    connections.fail("flows", None, None, KernelError("connections can't be read"))
    found = watch(connections)

    async def work() -> None:
        await found.begin()
        # The second look fails, which ends it.
        await found.look_forever()
        await found.end()

    run(work())
    assert found.outgoing() == ()
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "Packets can't be watched",
        "Connections can't be read",
    ]


def test_what_has_ended_is_looked_at_no_more() -> None:
    connections = HostConnections()
    found = watch(connections)

    async def work() -> None:
        await found.begin()
        looking = asyncio.create_task(found.look_forever())
        await asyncio.sleep(1)
        await found.end()
        before = list(connections.steps)
        connections.found = (flow("198.51.100.2"),)
        await asyncio.sleep(5)
        looking.cancel()
        assert connections.steps == before

    run(work())
    assert found.outgoing() == ()
