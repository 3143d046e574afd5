"""Values with one writer, and those who are woken when they change."""

from __future__ import annotations

from sikkerguard.service.watched import Watched
from tests.unit.service.fakes import Changes


def test_a_value_that_is_replaced_wakes_all_who_watch_it() -> None:
    watched, one, other = Watched(1), Changes(), Changes()
    watched.wake(one)
    watched.set(2)
    watched.wake(other)
    assert (watched.value, one.times, other.times) == (2, 1, 0)
    watched.set(2)
    assert (watched.value, one.times, other.times) == (2, 2, 1)


def test_whoever_is_woken_finds_the_new_value() -> None:
    class Reader:
        seen = 0

        def set(self) -> None:
            self.seen = watched.value

    watched, reader = Watched(1), Reader()
    watched.wake(reader)
    watched.set(2)
    assert reader.seen == 2
