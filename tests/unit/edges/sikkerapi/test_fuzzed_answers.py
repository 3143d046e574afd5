"""Ten thousand answers that chance has drawn end nothing; `SIKKER_FUZZ_SEED` draws the same ones again."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from scripts import fuzz_answers
from scripts.drawn_answers import CLOSED, Answer, draw
from scripts.fuzz_answers import Fuzzer, main
from sikkerguard.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sikkerguard.edges.sikkerapi.client import ApiClient

CASES = 10_000


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies are not part of any test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.slow
def test_no_answer_ends_anything(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("SIKKER_FUZZ_SEED") or time.time())
    with capsys.disabled():
        print(f" seed {seed} ", end="", flush=True)
    fuzzer = Fuzzer(seed)
    findings = asyncio.run(fuzzer.run(range(CASES)))
    assert findings.faults[:5] == [], f"SIKKER_FUZZ_SEED={seed} draws it again"
    assert findings.outcomes.total() == CASES
    # It gets everywhere: to what is right as well as to what is wrong.
    for outcome in ("pull: a list", "report: answered", "prove: yes", "pull: Unreachable", "pull: ListError"):
        assert findings.outcomes[outcome] > 5, findings.outcomes
    assert any(outcome.endswith("by a socket") for outcome in findings.outcomes)


def test_a_seed_draws_the_same_answers_each_time() -> None:
    drawn = [[draw(random.Random(f"{number}"), "pull", b"x") for number in range(100)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 100


# What would be found


class FaultyFeed:
    """Does something else in place of a pull."""

    name, interval, remaining = "faulty", 3600.0, None

    def __init__(self, client: ApiClient, pull: Callable[[ApiClient], Awaitable[None]]) -> None:
        self._client = client
        self._pull = pull

    async def version(self) -> None:
        """None."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        await self._pull(self._client)
        yield b""


def found(monkeypatch: pytest.MonkeyPatch, pull: Callable[[ApiClient], Awaitable[None]], answer: bytes = b"") -> str:
    """What the fuzzer says of a feed that does this in place of a pull."""
    monkeypatch.setattr(fuzz_answers, "draw", lambda *_: Answer((answer,), CLOSED))
    fuzzer = Fuzzer(1, lambda client: FaultyFeed(client, pull))
    return "\n".join(asyncio.run(fuzzer.run(range(1, 20))).faults)


def test_an_error_that_is_not_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pull(client: ApiClient) -> None:
        raise ValueError("Invalid IPv6 URL")

    assert "ValueError: Invalid IPv6 URL" in found(monkeypatch, pull)


@pytest.mark.parametrize("words", ["a\x1b[2K", "a\nb", "r\u0430ypal", "x" * 700])
def test_words_that_may_not_be_shown_are_found(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    async def pull(client: ApiClient) -> None:
        raise Unreachable(words)

    assert "Unreachable: " in found(monkeypatch, pull)


def test_a_connection_that_is_left_open_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pull(client: ApiClient) -> None:
        http = client.http("text/plain")
        await http.send(http.build_request("GET", client.url), stream=True)
        raise Unreachable("that")

    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert "1 of 1 streams left open" in found(monkeypatch, pull, answer)


def test_a_task_that_is_left_running_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    async def pull(client: ApiClient) -> None:
        left.append(asyncio.create_task(asyncio.sleep(60)))
        raise Unreachable("that")

    monkeypatch.setattr(fuzz_answers, "LONGEST_CLOSING_SECONDS", 0.2)
    assert "left behind" in found(monkeypatch, pull)


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "50", "--seed", "7"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("seed 7, 50 cases from 0, httpx ")
    assert "\n0 faults in " in said
