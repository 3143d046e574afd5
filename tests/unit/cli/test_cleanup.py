"""`sikkerguard cleanup --after-stop`: what is in another program's way is no failure of the unit."""

from __future__ import annotations

import pytest

from sikkerguard.cli.cleanup import remove_after_stop
from sikkerguard.core.net.networks import Blocklist
from sikkerguard.errors import BusyError, KernelError
from tests.unit.service.fakes import Backend


def left(*, state: bool, error: KernelError | None = None) -> Backend:
    """A kernel in which a service left something, or nothing."""
    backend = Backend(Blocklist() if state else None)
    backend.fail("remove", error)
    return backend


def test_what_is_there_is_removed_and_where_nothing_is_nothing_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    for state in (True, False):
        backend = left(state=state)
        remove_after_stop(backend)
        assert ("remove" in backend.steps) == state
    assert capsys.readouterr() == ("", "")


def test_a_set_that_is_in_use_is_said_and_any_other_error_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    remove_after_stop(left(state=True, error=BusyError("another program uses a set")))
    assert capsys.readouterr() == ("", "sikkerguard: another program uses a set.\n")
    with pytest.raises(KernelError, match="refused"):
        remove_after_stop(left(state=True, error=KernelError("the kernel refused")))
