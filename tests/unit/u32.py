"""The kernel's u32 match in Python, after `u32_match_it` of net/netfilter/xt_u32.c."""

from __future__ import annotations

import re

_OPERATION = re.compile(r"(&|<<|>>|@)")


def matches(expression: str, packet: bytes) -> bool:
    """Whether all tests of the expression hold for a packet, which begins with its IP header."""
    return all(_holds(test, packet) for test in expression.split("&&"))


def _holds(test: str, packet: bytes) -> bool:
    location, _, values = test.partition("=")
    first, *rest = _OPERATION.split(location)
    start = 0
    word = _word(packet, int(first, 0))
    for operation, number in zip(rest[::2], (int(each, 0) for each in rest[1::2]), strict=True):
        if word is None:
            return False
        match operation:
            case "&":
                word &= number
            case "<<":
                word = word << number & 0xFFFFFFFF
            case ">>":
                word >>= number
            case _:
                start += word
                word = _word(packet, start + number)
    if word is None:
        return False
    ranges = [value.partition(":") for value in values.split(",")]
    return any(int(low, 0) <= word <= int(high or low, 0) for low, _, high in ranges)


def _word(packet: bytes, at: int) -> int | None:
    return int.from_bytes(packet[at : at + 4], "big") if at + 4 <= len(packet) else None
