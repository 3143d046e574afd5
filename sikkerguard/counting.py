"""Showing what was blocked, from the kernel's counters."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sikkerguard.core.faces import KernelFace
    from sikkerguard.core.tally import Tally
    from sikkerguard.cycle import Owner

log = logging.getLogger(__name__)

# How often counters are read: the first hit of a source shows within this time.
_COUNT_SECONDS = 1.0
# Of so many parts of our time one may go into reading counters.
_SHARE = 20


async def count_forever(kernel: KernelFace, owner: Owner, tally: Tally, tell: Callable[[int, int], None]) -> None:
    """Log the tally's lines as they fall due, and tell the packets and bytes dropped so far."""
    counted, pause = -1, _COUNT_SECONDS
    while True:
        await asyncio.sleep(pause)
        started = time.monotonic()
        try:
            packets, octets = await owner.run(kernel.dropped)
            tell(packets, octets)
            if packets == counted:
                lines = tally.due(time.monotonic())
            else:
                counted = packets
                lines = tally.take(await owner.run(kernel.hits), time.monotonic())
        except KernelError as error:
            log.debug("counters can't be read now: %s", error)  # the look that repairs says it aloud
            continue
        for line in lines:
            log.info("%s", line)
        # A source that fills the set with its ports must not have us do nothing but read it.
        pause = max(_COUNT_SECONDS, _SHARE * (time.monotonic() - started))
