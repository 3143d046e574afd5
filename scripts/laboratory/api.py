"""SikkerAPI on the laboratory's internet: the server of `sikkerguard demo`, which can be given other answers."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scripts.laboratory.network import API
from sikkerguard.cli.demo import DEMO_KEY
from sikkerguard.cli.demo_server import Answer, DemoServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scripts.laboratory.network import Laboratory
    from sikkerguard.cli.demo_server import Entry

KEY = DEMO_KEY


class LaboratoryApi(DemoServer):
    """`body` is the answer to each pull, in place of the list, unless it is None; `next_bodies` come before it, one a
    pull."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        super().__init__(API, 80, entries, key=KEY, say=_ignore)
        self.body: bytes | None = None
        self.next_bodies: deque[bytes] = deque()

    def answer_blacklist(self, parameters: dict[str, str]) -> Answer:
        """Give the bytes that were asked for, or the list."""
        body = self.next_bodies.popleft() if self.next_bodies else self.body
        return super().answer_blacklist(parameters) if body is None else Answer(200, body, "text/plain")


@contextmanager
def serving(lab: Laboratory, entries: Iterable[Entry] = ()) -> Iterator[LaboratoryApi]:
    """Serve on the laboratory's internet until the context is left."""
    with lab.internet.inside(lambda: LaboratoryApi(entries)) as api:
        # How often it looks whether it is to end, in seconds.
        thread = threading.Thread(target=api.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()


def _ignore(line: str) -> None:
    """Say nothing of a request."""
