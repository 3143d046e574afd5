"""The first thing that README offers: `scripts/demo`, from its first step to the last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_demonstration_shows_what_it_promises() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demonstration"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), (done.stdout[-3000:], done.stderr)
    assert re.findall(r"^(\d)\. ", done.stdout, re.MULTILINE) == [*"1234567"]
    assert "INFO Blocking 1117 IPs" in done.stdout
    # The trial found out, and both ends of the story were looked at.
    assert "ERROR The self-test failed: API does not take connections" in done.stdout
    assert re.search(r"^Done in \d+ s\.", done.stdout, re.MULTILINE)
