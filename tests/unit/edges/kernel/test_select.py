"""Which backend is opened, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.select import open_backend, usable_families

PROGRAM = """
import sys
from sikkerguard.edges.kernel.select import open_backend
with_kernel, dry = open_backend(dry_run=False), open_backend(dry_run=True)
print(with_kernel.name, dry.name, *sorted({"iptc", "pyroute2", "httpx"} & set(sys.modules)))
with_kernel.close()
dry.close()
"""


def test_the_kernel_is_driven_but_for_a_dry_run_and_no_library_is_read_before_its_need() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["ipset-legacy", "dry-run"]


def test_a_dry_run_finds_nothing_of_ours() -> None:
    backend = open_backend(dry_run=True)
    assert not backend.has_state()
    assert not backend.inspect(Family.V4, 0xCB007107).active


def test_a_kernel_without_ipv6_has_one_family(tmp_path: Path) -> None:
    assert usable_families(tmp_path) == (Family.V4,)
    (tmp_path / "if_inet6").touch()
    assert usable_families(tmp_path) == (Family.V4, Family.V6)
