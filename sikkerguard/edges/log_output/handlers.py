"""How the service's log looks: for people on a terminal and in Docker, for the journal with priorities and fields."""

from __future__ import annotations

import logging
import os
import select
import sys
from typing import IO, TYPE_CHECKING

from sikkerguard.core.text import harmless
from sikkerguard.edges.log_output.queue import DescriptorHandler, LogQueue

if TYPE_CHECKING:
    from collections.abc import Callable

# syslog(3) priorities.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

# A command that fails waits so long for whoever reads its errors.
_COMPLAIN_SECONDS = 1.0
_TALKATIVE = frozenset({"httpx", "httpcore", "asyncio", "pyroute2"})


class HarmlessFormatter(logging.Formatter):
    """Lets no control character into a log, whoever wrote it: a message is one line, and a traceback lines. Where the
    message was `formatted` before, its traceback is in it, and its lines stay."""

    def __init__(self, form: str, date_form: str | None = None, *, formatted: bool = False) -> None:
        super().__init__(form, date_form)
        self._formatted = formatted

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As logging has it."""
        return harmless(super().formatMessage(record), lines=self._formatted)

    def format(self, record: logging.LogRecord) -> str:
        """As logging has it. Also what another handler has made of the traceback and left with the record goes through
        here."""
        return harmless(super().format(record), lines=True)


class _PrefixFormatter(HarmlessFormatter):
    """As journald reads priorities from the beginning of each line on standard error (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class JournalHandler(logging.Handler):
    """Sends each record, whole, also where it has several lines. What was logged with `extra={"fields": ...}` has
    these fields too; `send` is `systemd.journal.send`."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; what goes wrong is shown as with every handler of logging."""
        try:
            self._send(
                self.format(record),
                PRIORITY=str(_PRIORITIES.get(record.levelno, 6)),
                SYSLOG_IDENTIFIER="sikkerguard",
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                **getattr(record, "fields", {}),
            )
        except Exception:  # noqa: BLE001 - as logging's own handlers do it: logging must not end what is logged
            self.handleError(record)


def open_handler() -> logging.Handler | None:
    """The journal by its own protocol, or None where the Python package systemd is not installed, or another one of
    that name is."""
    try:
        from systemd import journal

        return JournalHandler(journal.send)
    except (ImportError, AttributeError):
        return None


def begin(
    level: str,
    stream: IO[str] | None = None,
    open_journal: Callable[[], logging.Handler | None] = open_handler,
) -> None:
    """Have everything of this level and above written to `stream`, standard error by default; where that leads to the
    journal, with fields, by what `open_journal` gives.

    httpx tells of every request at level info, with the whole address, and pyroute2 of every message at level debug,
    and sets its own level as it is imported; that is no news to an operator.
    """
    target = stream or sys.stderr
    handler: logging.Handler | None = None
    queued = stream is None
    formatter = HarmlessFormatter("%(message)s", formatted=queued)
    if not _is_journal(target):
        formatter = HarmlessFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S", formatted=queued)
    elif (handler := open_journal()) is None:
        formatter = _PrefixFormatter("%(message)s", formatted=queued)
    if handler is None:
        handler = DescriptorHandler(target.fileno()) if queued else logging.StreamHandler(target)
    handler.setFormatter(formatter)
    front: logging.Handler = handler
    if queued:
        front = LogQueue(handler.emit)
        front.setFormatter(HarmlessFormatter("%(message)s"))  # the rest is added by the one behind it
    front.addFilter(_is_news)
    logging.basicConfig(level=getattr(logging, level.upper()), handlers=[front], force=True)


def lost() -> int:
    """How many lines wait to be told of as lost, since nobody reads the log."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, LogQueue))


def end(seconds: float = _COMPLAIN_SECONDS) -> None:
    """Have what was logged written before the process ends, if somebody reads it in that time."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogQueue):
            handler.drain(seconds)


def complain(sentence: str) -> None:
    """Say on standard error why a command failed; the journal would take it for information if it were not told."""
    end()
    if not _is_read(sys.stderr):
        return
    prefix = f"<{_PRIORITIES[logging.ERROR]}>" if _is_journal(sys.stderr) else "sikkerguard: "
    print(f"{prefix}{harmless(sentence, lines=True)}", file=sys.stderr)


def _is_read(stream: IO[str]) -> bool:
    """Whether somebody reads the stream: a process that is to end does not wait for him for ever."""
    try:
        return bool(select.select([], [stream.fileno()], [], _COMPLAIN_SECONDS)[1])
    except (OSError, ValueError):
        return True  # no file: it is read by this very process


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _TALKATIVE


def _is_journal(stream: IO[str]) -> bool:
    """Whether the stream leads to journald, by the device and inode that systemd names (systemd.exec(5))."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{found.st_dev}:{found.st_ino}"
