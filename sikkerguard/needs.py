"""What the service needs from outside: one value that wiring makes and tests change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sikkerguard.config import Config
    from sikkerguard.core.faces import (
        ApiFace,
        ConnectionsFace,
        CountsFace,
        DoorFace,
        KernelFace,
        ListFileFace,
        LogFace,
        NotifierFace,
        ProbesFace,
        StoreFace,
        WatchFace,
    )
    from sikkerguard.core.model import AllowEntry, Family, Surroundings
    from sikkerguard.core.ways import Way
    from sikkerguard.sending import OutboxFace, ReportFace


@dataclass(frozen=True, slots=True)
class Edges:
    """All that the service needs from outside. `detect` gets the whitelist, the addresses to which requests go, further
    ports of sshd and a look-up in the list in force, and gives what is allowed and the ways out; `way` says what
    requests connect to, and reads nothing for it; `make_door`, `make_api`, `make_reports` and `make_probes` are asked
    again when the configuration changes, and those of one configuration share one door; `make_watch` gets what to call
    when the surroundings changed; `open_log` gets the setting of the log source; `lines_lost` says how many lines of
    our own log were lost because nobody reads it. `counts` and `outbox` are None where nothing is to be kept or
    reported."""

    kernel: KernelFace
    store: StoreFace
    list_file: ListFileFace
    connections: ConnectionsFace
    counts: CountsFace | None
    outbox: OutboxFace | None
    notifier: NotifierFace
    detect: Callable[
        [Iterable[AllowEntry], Iterable[AllowEntry], Iterable[int], Callable[[Family, int], bool]], Surroundings
    ]
    way: Callable[[Config], Way]
    make_door: Callable[[Config], DoorFace]
    make_api: Callable[[Config], ApiFace]
    make_reports: Callable[[Config], ReportFace]
    make_probes: Callable[[Config], ProbesFace]
    make_watch: Callable[[Callable[[], None]], WatchFace]
    open_log: Callable[[str], LogFace | None]
    lines_lost: Callable[[], int] = lambda: 0
