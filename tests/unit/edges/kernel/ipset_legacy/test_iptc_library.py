"""python-iptables is read where ldconfig's cache is old, and asked for again where it can't be read at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import ctypes.util, logging
# As a cache is that was made before iptables was installed.
ctypes.util.find_library = lambda name: None
from sikkerguard.edges.kernel.ipset_legacy import iptc_library as module
from sikkerguard.errors import BusyError
module._AGAIN_SECONDS = SECONDS_HERE
"""
IN_PLACE = """
assert module.library().Table("raw", autocommit=False) is not None
assert ctypes.util.find_library("c") is None
"""
NOWHERE = """
look = module._in_place
module._in_place = lambda name: None
said = set()
for _ in range(3):
    try:
        module.library()
    except BusyError as error:
        said.add(str(error))
print(*said)
module._in_place = look
assert module.library().Rule is not None
assert module.library() is module.library()
"""
SOON = """
module._in_place = lambda name: calls.append(name)
calls = []
for _ in range(3):
    try:
        module.library()
    except BusyError as error:
        pass
    else:
        raise AssertionError
    number = len(calls) if _ == 0 else number
assert len(calls) == number > 0, calls
"""


def run(program: str, again: float) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.replace("SECONDS_HERE", str(again)) + program],
        cwd=Path(__file__).parents[5],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_libraries_are_found_where_the_cache_does_not_know_them() -> None:
    run(IN_PLACE, 0)


def test_where_there_are_none_it_is_said_and_they_are_found_once_they_are_there() -> None:
    said = run(NOWHERE, 0)
    assert said.startswith("python-iptables can't be used (")
    assert "rules are left as they are" in said
    assert said.count("python-iptables can't be used") == 1


def test_nobody_looks_for_them_all_the_time() -> None:
    run(SOON, 60)


@pytest.mark.parametrize("name", ["no-such-library", "../libc"])
def test_only_what_is_there_is_found(name: str) -> None:
    from sikkerguard.edges.kernel.ipset_legacy.iptc_library import _in_place

    assert _in_place(name) is None
