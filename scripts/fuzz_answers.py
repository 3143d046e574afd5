"""Lets the client of SikkerAPI meet answers that chance has drawn: `python -m scripts.fuzz_answers --cases 1000000`.

Pulls, reports and proofs of an address are made by the code that ships, over httpx, httpcore and h11 as they are
installed, straight and through proxies. Most answers are fed to httpcore as if from a socket; one in a hundred comes by
a real one. After each, nothing but an answer or an error of ours may have come out, in printable words that have an
end; no stream, descriptor or task may be left; and nothing may have taken long.

Each case is drawn from the seed and its own number: `--seed 7 --first 123 --cases 1` is case 123 again.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import random
import sys
import time
import traceback
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpcore

from scripts.drawn_answers import BROKEN, SENT, SILENT, draw
from sikkerguard.core.lists.parse import ApiParser
from sikkerguard.core.reports.rows import Row, first_request, judge
from sikkerguard.core.reports.sentences import rejected_line
from sikkerguard.edges.log_output.handlers import HarmlessFormatter
from sikkerguard.edges.sikkerapi.blacklist import Blacklist
from sikkerguard.edges.sikkerapi.client import ApiClient
from sikkerguard.edges.sikkerapi.connector import PinnedConnector
from sikkerguard.edges.sikkerapi.reports import BulkReportClient
from sikkerguard.errors import FetchError, ListError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

    from scripts.drawn_answers import Answer
    from sikkerguard.core.interfaces import Feed

HOST = "api.example.net"
ROWS = [Row(bytes(map(int, address.split("."))), "brute_force", "ssh", 1) for address in SENT]
REPORT = first_request(ROWS)[1]
# The longest error, and the longest line of a log: the one that names twenty rejected rows.
LONGEST_ERROR, LONGEST_LINE = 600, 5000
_REAL = 100  # one in so many comes by a real socket
_BATCH = 500
_LONGEST_SECONDS = 20.0
LONGEST_CLOSING_SECONDS = 10.0
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass
class Findings:
    """What was wrong, in words, and how many cases had which outcome."""

    faults: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def check(self, words: str, longest: int, of: str) -> None:
        """Complain of words that may not be shown."""
        if len(words) > longest:
            self.faults.append(f"{of}: {len(words)} characters: {words[:300]!r}")
        if not words.isascii() or not words.isprintable():
            self.faults.append(f"{of}: not printable: {words[:300]!r}")


class _Stream:
    """What httpcore takes for a connection: an answer, whatever is asked."""

    def __init__(self, answer: Answer) -> None:
        self._pieces = list(reversed(answer.pieces))
        self._end = answer.end
        self.closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.closed:
            raise httpcore.ReadError("read from a closed stream")
        if self._pieces:
            piece = self._pieces.pop()
            if len(piece) > max_bytes:
                self._pieces.append(piece[max_bytes:])
            return piece[:max_bytes]
        if self._end == SILENT:
            raise httpcore.ReadTimeout
        if self._end == BROKEN:
            raise httpcore.ReadError
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.closed:
            raise httpcore.WriteError("written to a closed stream")

    async def aclose(self) -> None:
        self.closed = True

    async def start_tls(self, *_: object, **__: object) -> _Stream:
        return self

    def get_extra_info(self, info: str) -> Any:
        return None


class FedConnector(PinnedConnector):
    """A connector whose connections are made by `feed`. `streams` are those that were made."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        super().__init__(url, environment)
        self.feed: Callable[[], Answer]
        self.streams: list[_Stream] = []

    async def connect_tcp(self, *_: object, **__: object) -> _Stream:
        """As httpcore asks a network backend for a connection."""
        stream = _Stream(self.feed())
        self.streams.append(stream)
        return stream

    def _connect(self, address: str) -> httpx.AsyncBaseTransport:
        transport: Any = super()._connect(address)
        # Where httpcore has it, in 0.16 and in 1.0; httpx has no parameter for it.
        assert transport._pool._network_backend is not None
        transport._pool._network_backend = self
        return transport  # type: ignore[no-any-return]


class _LogListener(logging.Handler):
    """Checks what is logged, as it would be written."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.INFO)
        self._findings = findings
        self._formatter = HarmlessFormatter("%(levelname)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "sikkerguard":
            self._findings.check(record.getMessage(), LONGEST_LINE, "a log record")
        for line in self._formatter.format(record).split("\n"):
            self._findings.check(line, LONGEST_LINE, "a line of the log")
        if record.exc_info:
            # The catch-all is for what nobody has thought of: what gets there has to have a handler of its own.
            self._findings.faults.append(f"unexpected: {self._formatter.format(record)}")


def _blacklist(client: ApiClient) -> Feed:
    return Blacklist(client, score_min=50, interval=3600.0)


class Fuzzer:
    """Draws cases from `seed` and has the client meet them; `feed_of` makes the feed that pulls by a client."""

    def __init__(self, seed: int, feed_of: Callable[[ApiClient], Feed] = _blacklist) -> None:
        self._seed = seed
        self.feed_of = feed_of
        self.findings = Findings()
        proxy = {"HTTP_PROXY": "http://someone:secret@192.0.2.9:3128", "HTTPS_PROXY": "http://192.0.2.9:3128"}
        self._connectors = [FedConnector(f"{scheme}://{HOST}", {}) for scheme in ("http", "http", "https")]
        self._connectors += [FedConnector(f"{scheme}://{HOST}", proxy) for scheme in ("http", "https")]
        for connector in self._connectors:
            connector.use(["192.0.2.9", "192.0.2.8"])
        self._answers: list[Answer] = []
        self._port = 0

    async def run(self, cases: Sequence[int], progress: Callable[[int], None] = lambda done: None) -> Findings:
        """Have the client meet these cases, by number."""
        listener = _LogListener(self.findings)
        root = logging.getLogger()
        root.addHandler(listener)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            async with server:
                await self._on_socket(random.Random(self._seed))  # what is read and opened once is not a leak
                before = _open()
                for start in range(0, len(cases), _BATCH):
                    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__ or sys.stderr)
                    for number in cases[start : start + _BATCH]:
                        await self._case(number)
                    await self._check_leaks(before)
                    progress(start + _BATCH)
        finally:
            faulthandler.cancel_dump_traceback_later()
            root.removeHandler(listener)
        return self.findings

    async def _case(self, number: int) -> None:
        chance = random.Random(self._seed << 32 | number)
        known = len(self.findings.faults)
        began = time.monotonic()
        try:
            outcome = await (self._on_socket(chance) if number % _REAL == 0 else self._fed(chance))
        except Exception:  # noqa: BLE001 - just what is looked for: it is reported as a fault, with its traceback
            outcome = "fault"
            self.findings.faults.append(f"came out: {traceback.format_exc()}")
        self.findings.outcomes[outcome] += 1
        if (seconds := time.monotonic() - began) > _LONGEST_SECONDS:
            self.findings.faults.append(f"took {seconds:.1f} s")
        for at in range(known, len(self.findings.faults)):
            self.findings.faults[at] = f"case {number}: {self.findings.faults[at]}"

    async def _fed(self, chance: random.Random) -> str:
        connector = chance.choice(self._connectors)
        tunnel = connector.way.reason == "proxy" and connector is self._connectors[-1]

        kind = chance.choice(("pull", "pull", "report", "report", *["prove"] * (connector in self._connectors[:2])))

        def feed() -> Answer:
            answer = draw(chance, kind, HOST.encode())
            if tunnel and chance.random() < 0.6:
                return type(answer)((_ESTABLISHED, *answer.pieces), answer.end)
            return answer

        connector.feed = feed
        scheme = "https" if connector in (self._connectors[2], self._connectors[-1]) else "http"
        outcome = await self._meet(kind, f"{scheme}://{HOST}", connector, "192.0.2.9")
        if left := sum(not stream.closed for stream in connector.streams):
            self.findings.faults.append(f"{left} of {len(connector.streams)} streams left open after {outcome}")
        connector.streams.clear()
        return outcome

    async def _on_socket(self, chance: random.Random) -> str:
        origin = f"127.0.0.1:{self._port}"
        scheme, kind = chance.choice((("http", "pull"), ("http", "report"), ("http", "prove"), ("https", "prove")))
        self._answers = [draw(chance, kind, origin.encode()) for _ in range(6)]
        connector = PinnedConnector(f"{scheme}://{origin}" if scheme == "http" else f"https://{HOST}:{self._port}", {})
        return f"{await self._meet(kind, f'http://{origin}', connector, '127.0.0.1')}, by a socket"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self._answers.pop() if self._answers else None
        with suppress(OSError):
            await reader.read(1 << 16)
            for piece in answer.pieces if answer is not None else ():
                writer.write(piece)
                await writer.drain()
        if answer is not None and answer.end == BROKEN:
            writer.transport.abort()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _meet(self, kind: str, url: str, connector: PinnedConnector, address: str) -> str:
        client = ApiClient(url, "sk_free_key", connector=connector)
        try:
            if kind == "prove":
                why = await connector.prove(address)
                self.findings.check(why, LONGEST_ERROR, "the reason of a proof")
                return f"{kind}: {'no' if why else 'yes'}"
            if kind == "report":
                answer = await BulkReportClient(client).report(REPORT, lambda: None)
                result = judge(ROWS, answer)
                named = [(row.ip(), result.rejected[row.address]) for row in ROWS if row.address in result.rejected]
                self.findings.check(rejected_line(named), LONGEST_LINE, "the rejected rows")
                return f"{kind}: answered"
            parser = ApiParser()
            async with aclosing(self.feed_of(client).stream()) as pieces:
                async for piece in pieces:
                    parser.feed(piece)
            parser.finish()
        except (FetchError, ListError) as error:
            self.findings.check(str(error), LONGEST_ERROR, type(error).__name__)
            pause = getattr(error, "retry_after", None)
            if pause is not None and not 0 <= pause < 1e12:
                self.findings.faults.append(f"a pause of {pause} s")
            return f"{kind}: {type(error).__name__}"
        return f"{kind}: a list"

    async def _check_leaks(self, before: tuple[int, int]) -> None:
        deadline = time.monotonic() + LONGEST_CLOSING_SECONDS
        # What ends a connection of ours runs a moment later.
        while any(now > then for now, then in zip(_open(), before, strict=True)):
            if time.monotonic() > deadline:
                self.findings.faults.append(f"left behind: {_open()} descriptors and tasks, where {before} were before")
                return
            await asyncio.sleep(0.01)


def _open() -> tuple[int, int]:
    """The numbers of descriptors and of tasks."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), len(asyncio.all_tasks())


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    versions = ", ".join(f"{name} {version(name)}" for name in ("httpx", "httpcore", "h11"))
    print(f"seed {options.seed}, {options.cases} cases from {options.first}, {versions}", flush=True)
    began = time.monotonic()

    fuzzer = Fuzzer(options.seed)

    def progress(done: int) -> None:
        if done % 50_000 == 0:
            faults = len(fuzzer.findings.faults)
            print(f"{done} cases in {time.monotonic() - began:.0f} s, {faults} faults", flush=True)

    asyncio.run(fuzzer.run(range(options.first, options.first + options.cases), progress))
    for outcome, count in sorted(fuzzer.findings.outcomes.items()):
        print(f"{count:9} {outcome}")
    for fault in fuzzer.findings.faults[:50]:
        print(fault)
    print(f"{len(fuzzer.findings.faults)} faults in {time.monotonic() - began:.0f} s")
    return 1 if fuzzer.findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
