"""What comes from elsewhere can't act on a terminal, and has an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.text import LONGEST, printable


@given(st.text())
def test_whatever_comes_is_short_and_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) == min(len(text), LONGEST)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Service Unavailable", "Service Unavailable"),
        ("\x1b[2K\x1b[1A", "?[2K?[1A"),
        ("two\nlines\r\u2028\u202e\x9b", "two?lines????"),
        ("ex\u0430mple", "ex?mple"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert printable(text) == shown
