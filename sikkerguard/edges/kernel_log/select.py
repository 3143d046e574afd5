"""The kernel's own log lines, from journald or /dev/kmsg. A line is a hint, never a proof, and yet only the
kernel's own records are given.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sikkerguard.edges.kernel_log.journal import open_journal
from sikkerguard.edges.kernel_log.kmsg import KMSG, open_kmsg

if TYPE_CHECKING:
    from collections.abc import Callable

    from sikkerguard.core.interfaces import KernelLog

log = logging.getLogger(__name__)

_STAYS = "blocked connections are still counted exactly, and shown within a second, from the kernel's counters"
_GROUP = "add this user to the group systemd-journal"
_DEVICE = f"make {KMSG} readable (CAP_SYSLOG)"


def open_source(
    choice: str,
    said: set[str] | None = None,
    open_journal: Callable[[], KernelLog] = open_journal,
    open_kmsg: Callable[[], KernelLog] = open_kmsg,
) -> KernelLog | None:
    """The source for `SIKKER_LOG_SOURCE` (auto, journald or kmsg), or None after a sentence that says why, what stays
    and what to do. `said` keeps the sentences, so that who asks again and again has each one said once."""
    reasons = []
    for name, place, opened in (("journald", "journald", open_journal), ("kmsg", KMSG, open_kmsg)):
        if choice not in ("auto", name):
            continue
        try:
            source = opened()
        except OSError as error:
            reasons.append(f"{place} ({error.strerror or error})")
        else:
            if said is not None:
                said.clear()
            return source
    if choice == "auto":
        level, advice = logging.INFO, f"to have single events too, {_GROUP} or {_DEVICE}"
        sentence = f"The kernel's log can be read neither from {' nor from '.join(reasons)}; {_STAYS}; {advice}."
    else:
        level, advice = logging.WARNING, _GROUP if choice == "journald" else _DEVICE
        sentence = f"SIKKER_LOG_SOURCE={choice} can't be had: {reasons[0]}; {_STAYS}; {advice}, or set it to auto."
    if said is None or sentence not in said:
        log.log(level, "%s", sentence)
    if said is not None:
        said.add(sentence)
    return None
