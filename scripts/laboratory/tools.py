"""Running a program, and waiting for what it does."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Result = TypeVar("_Result")


def command(
    *words: str,
    check: bool = True,
    text: str | None = None,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program and give its standard output; `text` is its standard input, `env` its environment if not ours."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], _Result | None], seconds: float = 10.0) -> _Result:
    """Poll until the condition is true, and give its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)
