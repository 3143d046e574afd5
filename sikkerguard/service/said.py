"""Saying a thing once, until it changes."""

from __future__ import annotations

import logging


class Said:
    """Remembers the last sentence on one subject, so that a trouble that lasts is one line of the log."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self.sentence = ""

    def say(self, sentence: str, level: int = logging.ERROR, error: BaseException | None = None) -> bool:
        """Log the sentence, with the trace of an `error`, if it differs from the last one; an empty one says that all
        is well, and logs nothing. Returns whether it differed."""
        changed = sentence != self.sentence
        self.sentence = sentence
        if changed and sentence:
            self._log.log(level, "%s", sentence, exc_info=error)
        return changed
