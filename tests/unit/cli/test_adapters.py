"""Which edges a service gets, as far as that can be seen without one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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


def test_a_client_is_made_anew_for_another_key_or_another_api_only() -> None:
    known = Config(api_url="http://192.0.2.80", api_key="sk_free_known")
    another_key = replace(known, api_key="sk_free_other")
    found = [_client(each) for each in (known, replace(known, score_min=70), another_key, another_key)]
    found.append(_client(replace(another_key, api_url="http://192.0.2.81")))
    assert [found.index(each) for each in found] == [0, 0, 2, 2, 4]
