"""What lasts is one line of the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.service.said import Said

if TYPE_CHECKING:
    import pytest

log = logging.getLogger("sikkerguard.test")


@given(st.lists(st.sampled_from(["", "It is full.", "It hangs."])))
def test_what_lasts_is_said_once(sentences: list[str]) -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    own = logging.Logger("own")
    own.addHandler(Lines())
    said, before = Said(own), ""
    for sentence in sentences:
        assert said.say(sentence) is (sentence != before)
        assert said.sentence == sentence
        before = sentence
    changed = [each for each, earlier in zip(sentences, ["", *sentences], strict=False) if each != earlier]
    assert lines == [each for each in changed if each]


def test_it_is_said_at_its_level_and_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    said = Said(log)
    said.say("It is full.")
    said.say("It hangs.", logging.WARNING)
    said.say("100% of it %s", logging.ERROR, ValueError("x"))
    assert [(each.levelno, each.getMessage(), bool(each.exc_info)) for each in caplog.records] == [
        (logging.ERROR, "It is full.", False),
        (logging.WARNING, "It hangs.", False),
        (logging.ERROR, "100% of it %s", True),
    ]
