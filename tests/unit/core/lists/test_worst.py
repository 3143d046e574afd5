"""The worst lists, each in a process of its own: what it takes to refuse one, or to read it as far as the kernel.

`bench/worst.py` measures more kinds of them, over the network and with the kernel.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# MiB more than what Python and our modules take. The service may take 256 with them, some 60, and with the list that
# is in force meanwhile.
MOST_MEMORY = 110
# Seconds of processor time; some 4 are usual, and 20 may be taken.
MOST_TIME = 20

PROGRAM = """
import asyncio, json, resource, sys, tempfile
from pathlib import Path
from bench.worst import LISTS, joined
from sikkerguard.core.lists.generations import split_generations
from sikkerguard.core.lists.allowlist import Allowlist, ALWAYS_ALLOWED
from sikkerguard.core.lists.sources import ListedSource, VerifiedList
from sikkerguard.core.lists.parse import ApiParser, merge_content
from sikkerguard.core.lists.coverage import extent_of
from sikkerguard.core.lists.admission import admit, without_special
from sikkerguard.edges.list_file import LocalListFile
from sikkerguard.edges.storage.store import Store
from sikkerguard.errors import ListError
from sikkerguard.service.disk_thread import DiskThread
from sikkerguard.service.feed_reader import read_forgivingly

def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which begins with what the parent had when it made this process.
    status = Path("/proc/self/status").read_text("ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return found.ru_utime + found.ru_stime, peak >> 10

def generated():
    # To make the lines costs more than to read them.
    started = used()[0]
    for piece in joined(LISTS[sys.argv[1]](0)):
        wasted[0] += used()[0] - started
        yield piece
        started = used()[0]

async def read(path):
    # Not returned: `asyncio.run` makes a text of the task, with its result, when it ends.
    change = await read_forgivingly(LocalListFile(path, DiskThread("list file")), "custom")
    read_contents.append(change.content)

def processed():
    if sys.argv[2] == "file":
        path = Path(directory) / "custom"
        with path.open("wb") as file:
            file.writelines(generated())
        asyncio.run(read(path))
        content = read_contents.pop()
    else:
        parser = ApiParser()
        for piece in generated():
            parser.feed(piece)
        content = parser.finish().content
    source = ListedSource("list", content, 1.0)
    extent_of(without_special(content))
    half = ListedSource("list", admit(content, Allowlist(ALWAYS_ALLOWED)).blocklist, 0.0)
    sources = split_generations((half,), source)
    merge_content([each.content for each in sources])
    Store(Path(directory)).save(VerifiedList(sources, 1.0))
    return f"{len(source.content)} entries"

wasted = [0.0]
read_contents = []
time, memory = used()
with tempfile.TemporaryDirectory() as directory:
    try:
        outcome = processed()
    except ListError as error:
        outcome = str(error)
found = used()
print(json.dumps([outcome, found[0] - time - wasted[0], found[1] - memory]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("at all ceilings", "API", "1843750 entries"),
        ("at all ceilings", "file", "1843750 entries"),
        ("ranges, without end", "API", "more than 250,000 ranges"),
        ("ranges, without end", "file", "more than 250,000 ranges"),
        ("IPv6, without end", "API", "more than 500,000 single addresses of IPv6"),
        ("blank lines", "API", "lines that are no entries"),
        ("blank lines", "file", "is empty"),
        ("unreadable lines", "file", "is not a list of addresses"),
    ],
)
def test_the_worst_list_is_read_or_refused_in_little_memory_and_time(kind: str, source: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, kind, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome, seconds, memory = json.loads(done.stdout)
    assert expected in outcome
    assert memory < MOST_MEMORY
    assert seconds < MOST_TIME
