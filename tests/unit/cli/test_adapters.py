"""Which edges a service gets, as far as that can be seen without one."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sikkerguard.cli.adapters import _client
from sikkerguard.config.settings import Config

# Prints how many threads read a library at the same moment, at most, when three edges are asked for at once.
_READERS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from sikkerguard.cli.adapters import SystemAdapters
from sikkerguard.config.settings import Config
from sikkerguard.edges.storage.store import Store

READ = {"sikkerguard.edges." + each for each in ("sikkerapi.reports", "host.probes", "kernel_log.select")}
reading, most, seen = set(), 0, set()

class Slow(SourceFileLoader):
    def exec_module(self, module):
        global most
        seen.add(self.name)
        reading.add(self.name)
        most = max(most, len(reading))
        time.sleep(0.2)
        super().exec_module(module)
        reading.discard(self.name)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in READ:
            spec = PathFinder.find_spec(name, path)
            spec.loader = Slow(name, spec.origin)
            return spec

sys.meta_path.insert(0, Finder())
config = Config(api_url="http://192.0.2.80", api_key="sk_free_readers", dry_run=True)
adapters = SystemAdapters(config, Store(Path("/nowhere")))
with ThreadPoolExecutor(3) as pool:
    jobs = [pool.submit(each, config) for each in (adapters.reports, adapters.probes, adapters.kernel_log)]
[job.result() for job in jobs]
assert seen == READ, seen
print(most)
"""


def test_threads_read_one_library_at_a_time() -> None:
    found = subprocess.run([sys.executable, "-c", _READERS], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "1"


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
