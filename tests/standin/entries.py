"""What a blacklist consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: an address or a range, served as written; its confidence from 1 to 100, and Unix seconds. The service
    gives the highest confidence first, and of equal ones the newest."""

    ip: str
    confidence: int = 75
    last_seen: int = 0
