"""Two services of one network learn of each other."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket

import pytest

from sikkerguard.edges import claim
from sikkerguard.edges.claim import Claim
from sikkerguard.edges.control_socket import Peer
from sikkerguard.errors import ListenError


@pytest.fixture
def address() -> str:
    """A name of nobody's."""
    return f"\0sikkerguard-test-{secrets.token_hex(8)}"


def test_the_second_one_learns_of_the_first_and_takes_its_place(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_LAST_SYSTEM_USER", os.geteuid())

    async def run() -> None:
        first, second = Claim(address), Claim(address)
        await first.open()
        await first.open()
        for _ in range(5):
            with pytest.raises(ListenError) as caught:
                await second.open()
        said = f"Another sikkerguard runs on this host (user {os.geteuid()}, process {os.getpid()})"
        assert str(caught.value).startswith(said)
        await first.close()
        await second.open()
        with pytest.raises(ListenError):
            await first.open()
        await second.close()

    asyncio.run(run())


def test_a_person_who_takes_the_name_is_not_taken_for_a_service(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "peer_of", lambda connection: Peer(1, 1000, frozenset()))

    async def run() -> None:
        ours = Claim(address)
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(address)
            await ours.open()  # nobody listens
            taken.listen(0)
            for _ in range(5):
                await ours.open()  # a person, and then a queue that is full
        await ours.open()
        with pytest.raises(OSError, match="in use"), socket.socket(socket.AF_UNIX) as late:
            late.bind(address)
        await ours.close()

    asyncio.run(run())


def test_close_without_anything_is_nothing(address: str) -> None:
    asyncio.run(Claim(address).close())
