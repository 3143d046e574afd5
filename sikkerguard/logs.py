"""How the service's log looks: for people on a terminal and in Docker, for journald with its priorities."""

from __future__ import annotations

import logging
import os
import sys
from typing import IO

# syslog(3) priorities, as journald reads them from the beginning of a line on standard error (sd-daemon(3)).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

_TALKATIVE = frozenset({"httpx", "httpcore", "asyncio", "pyroute2"})


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def begin(level: str, stream: IO[str] | None = None) -> None:
    """Have everything of this level and above written to `stream`, standard error by default.

    httpx tells of every request at level info, with the whole address, and pyroute2 of every message at level debug,
    and sets its own level as it is imported; that is no news to an operator.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    if _is_journal(target):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_news)
    logging.basicConfig(level=getattr(logging, level.upper()), handlers=[handler], force=True)


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
