"""Which edges a service gets, as far as that can be seen without one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from sikkerguard.cli.adapters import _client
from sikkerguard.config.settings import Config


def test_whoever_asks_at_the_same_moment_gets_the_same_client() -> None:
    together = threading.Barrier(8)

    def ask() -> object:
        together.wait(5)
        return _client(Config(api_url="http://192.0.2.80", api_key="sk_free_same_moment"))

    with ThreadPoolExecutor(8) as pool:
        found = [job.result() for job in [pool.submit(ask) for _ in range(8)]]
    assert len({id(each) for each in found}) == 1
