"""The right to load modules, which a container has at its start: used once, and then given up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SYS_MODULE = 1 << 16  # linux/capability.h
PROGRAM = """
from pathlib import Path
from sikkerguard.edges.kernel.modules import load_modules_and_drop_capability
def rights():
    lines = Path("/proc/self/status").read_text().splitlines()
    print(*(line.split()[1] for line in lines if line.startswith(("CapInh", "CapPrm", "CapEff"))))
rights()
load_modules_and_drop_capability()
rights()
"""


def rights(*words: str) -> tuple[list[int], list[int]]:
    """The inheritable, permitted and effective rights before and after, of a process that these words start."""
    done = subprocess.run(
        (*words, sys.executable, "-c", PROGRAM), cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    before, after = done.stdout.splitlines()
    return [int(digits, 16) for digits in before.split()], [int(digits, 16) for digits in after.split()]


def test_the_right_to_load_modules_is_given_up_and_no_other() -> None:
    before, after = rights()
    assert before[1] & before[2] & SYS_MODULE
    assert after == [mask & ~SYS_MODULE for mask in before]


def test_whoever_does_not_have_it_keeps_what_he_has() -> None:
    before, after = rights("setpriv", "--bounding-set=-sys_module")
    assert not before[2] & SYS_MODULE
    assert after == before
