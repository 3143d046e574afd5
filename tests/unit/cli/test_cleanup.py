"""`sikkerguard cleanup --after-stop`: what is in another program's way is no failure of the unit."""

from __future__ import annotations

import pytest

from sikkerguard.cli.cleanup import remove_after_stop
from sikkerguard.errors import BusyError, KernelError


class Backend:
    """As much of a firewall backend as is asked; `removed` counts the calls."""

    def __init__(self, *, state: bool, error: KernelError | None = None) -> None:
        self._state = state
        self._error = error
        self.removed = 0

    def has_state(self) -> bool:
        return self._state

    def remove(self) -> None:
        self.removed += 1
        if self._error is not None:
            raise self._error


def test_what_is_there_is_removed_and_where_nothing_is_nothing_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    for state in (True, False):
        backend = Backend(state=state)
        remove_after_stop(backend)
        assert backend.removed == state
    assert capsys.readouterr() == ("", "")


def test_a_set_that_is_in_use_is_said_and_any_other_error_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    remove_after_stop(Backend(state=True, error=BusyError("another program uses a set")))
    assert capsys.readouterr() == ("", "sikkerguard: another program uses a set.\n")
    with pytest.raises(KernelError, match="refused"):
        remove_after_stop(Backend(state=True, error=KernelError("the kernel refused")))
