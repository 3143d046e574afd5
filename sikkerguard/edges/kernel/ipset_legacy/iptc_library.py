"""Imports python-iptables when it is first needed, also in the middle of an installation.

It looks for iptables' libraries in the cache of ldconfig(8), which a package manager updates only after it has
configured, and started, what it installs.
"""

from __future__ import annotations

import ctypes.util
import sys
import sysconfig
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sikkerguard.core.text import printable
from sikkerguard.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = "iptc"
# Searching in vain starts some processes each time.
_AGAIN_SECONDS = 5.0
_importing = threading.Lock()
_failure: tuple[float, str] | None = None


def library() -> Any:
    """The module `iptc`.

    Raises:
        BusyError: it can't be imported now.
    """
    global _failure
    with _importing:
        if _failure is not None and time.monotonic() < _failure[0] + _AGAIN_SECONDS:
            raise BusyError(_failure[1])
        try:
            with _found_without_cache():
                import iptc
        except Exception as error:
            # The parts of it that were imported remember for good that there is no library.
            for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
                del sys.modules[name]
            _failure = time.monotonic(), _sentence(error)
            raise BusyError(_failure[1]) from error
        _failure = None
        return iptc


def _sentence(error: Exception) -> str:
    return (
        f"python-iptables can't be used ({printable(f'{type(error).__name__}: {error}')}), as while iptables is being "
        "installed or upgraded: rules are left as they are. If that lasts, see that iptables and python-iptables are "
        "installed"
    )


@contextmanager
def _found_without_cache() -> Iterator[None]:
    """Let libraries be found in their usual directory where the cache does not know them."""
    find = ctypes.util.find_library
    ctypes.util.find_library = lambda name: find(name) or _in_place(name)
    try:
        yield
    finally:
        ctypes.util.find_library = find


def _in_place(name: str) -> str | None:
    """The path of a library in this architecture's directory (Debian Policy, 9.1.1), or None."""
    architecture = sysconfig.get_config_var("MULTIARCH")
    if not architecture or "/" in name:
        return None
    found = sorted(Path("/usr/lib", str(architecture)).glob(f"lib{name}.so.*"), key=lambda path: len(path.name))
    return str(found[0]) if found else None
