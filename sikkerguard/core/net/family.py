"""The two address families."""

from __future__ import annotations

import socket
from enum import Enum


class Family(Enum):
    """An address family: `bits` of an address, `size` of it in bytes, and `number`, the family's constant in the
    kernel."""

    V4 = ("v4", 32, socket.AF_INET)
    V6 = ("v6", 128, socket.AF_INET6)

    def __init__(self, label: str, bits: int, number: int) -> None:
        self.label = label
        self.bits = bits
        self.size = bits // 8
        self.number = int(number)


def family_of(address: bytes) -> Family:
    """The family of a packed address."""
    return Family.V4 if len(address) == Family.V4.size else Family.V6
