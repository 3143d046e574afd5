"""Lengths of time in words."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """A length of time as people say it: `45s`, `12m`, `22h`, `3d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size or (seconds >= size and unit != "d"):
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def span_text(seconds: float) -> str:
    """A length of time by its two largest units: `45s`, `12m 5s`, `2h 15m`, `3d 4h`."""
    rest = int(max(seconds, 0))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if parts or rest >= size or unit == "s":
            parts.append(f"{rest // size}{unit}")
            rest %= size
    return " ".join(parts[:2])
