"""What comes from elsewhere can't act on a terminal, and has an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.text import LONGEST, harmless, printable


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


@given(st.text())
def test_what_we_say_ourselves_keeps_its_letters_and_acts_on_no_terminal(text: str) -> None:
    shown = harmless(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert all(new in (old, "?") or (old, new) == ("\n", " ") for old, new in zip(text, shown, strict=True))
    assert "".join(harmless(text, lines=True).split("\n")).isprintable()
    assert harmless(text, lines=True).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/\u00fcber/\u0440\u0430", "/srv/\u00fcber/\u0440\u0430"),
        ("a\x1b[2K\r\x9b\u2028\u202e\ud800\x00z", "a?[2K??????z"),
        ("one\ntwo", "one two"),
    ],
)
def test_what_stays_harmless(text: str, shown: str) -> None:
    assert harmless(text) == shown
