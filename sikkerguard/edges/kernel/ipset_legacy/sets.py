"""Sets: created and destroyed through pyroute2; swapped, filled and read through our own netlink socket.

pyroute2's sockets, from 0.9 on, refuse to work inside a running event loop. Its calls act on every set of the host
where they get no name, so a name is mandatory here, and must be one of ours."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sikkerguard.core.firewall.names import OURS
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import BUSY, encode_batches
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.packed import Prefix
    from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets, SetHeader

_MIN_HASH_SIZE, _MIN_LIMIT = 64, 1024
_MAX_NAME = 31
# How long to wait for another program to finish a listing, in seconds: one of a million entries takes two. The pause
# between two attempts is shorter than that between two listings by a program that makes one after the other.
SWAP_SECONDS, DESTROY_SECONDS = 2.0, 0.5
_PAUSE_SECONDS = 0.005
# After waiting for a set in vain there is no waiting for it again so soon: a pager may be left open for days.
_GIVEN_UP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SetKind:
    """What a set is: its type; whether its entries have counters; their default timeout in seconds (None: entries
    stay); whether packets fill it, so that its table has its final size at once, since no packet can wait for it to
    grow; and the number of entries that it has room for at least."""

    type_name: str
    counters: bool = False
    timeout: int | None = None
    filled_by_packets: bool = False
    limit: int = _MIN_LIMIT

    def fits(self, header: SetHeader, family: Family) -> bool:
        """Whether a set is of this kind, whoever created it. Its default timeout may be another one, since each entry
        that needs one gets its own."""
        return (header.type_name, header.family, header.counters, header.timeout, header.whole) == (
            self.type_name,
            family.number,
            self.counters,
            self.timeout is not None,
            True,
        )


class Sets:
    """Everything that is done to sets. Every method raises `KernelError` when the kernel refuses. What only reads
    a set is done by `netlink` as it is.

    `while_waiting` is called again and again while something takes long, or another program is waited for.
    """

    def __init__(self, netlink: NetlinkSets, while_waiting: Callable[[], None]) -> None:
        self._netlink = netlink
        self.header, self.contains, self.packets = netlink.header, netlink.contains, netlink.packets
        self.prefixes, self.hits, self.counts = netlink.prefixes, netlink.hits, netlink.counts
        self._pyroute2: Any = None
        self._while_waiting = while_waiting
        self._given_up: dict[str, float] = {}

    def close(self) -> None:
        """Close both sockets."""
        self._netlink.close()
        if self._pyroute2 is not None:
            self._pyroute2.close()

    def create(self, name: str, kind: SetKind, family: Family, entries: int) -> None:
        """Create a set with room for twice as many entries as it is to hold, so that it can't overflow.

        `hashsize` is half the entries, rounded up to a power of two: with the kernel's default of 1,024 the table has
        to grow so often that loading a million entries takes 2.5 times as long.
        """
        hash_size = max(_MIN_HASH_SIZE, 1 << max(entries // 2 - 1, 0).bit_length())
        if kind.filled_by_packets:
            hash_size *= 4
        self._call(
            "create",
            name,
            lambda sets: sets.create(
                name,
                stype=kind.type_name,
                family=family.number,
                hashsize=hash_size,
                maxelem=max(2 * entries, kind.limit),
                counters=kind.counters,
                timeout=kind.timeout,
            ),
        )

    def destroy(self, name: str, seconds: float = DESTROY_SECONDS) -> None:
        """Destroy the set.

        Raises:
            BusyError: for so many seconds another program was listing it, or a rule or set referred to it.
        """
        try:
            self._patiently(
                lambda: self._call("destroy", name, lambda sets: sets.destroy(name)), seconds, _checked(name)
            )
        except BusyError as error:
            header = self.header(name)
            if header is not None and header.references:
                raise BusyError(f"something of another program refers to the set {name}") from error
            raise

    def flush(self, name: str) -> None:
        """Remove every entry of the set."""
        self._netlink.flush(_checked(name))

    def swap(self, one: str, other: str, seconds: float = SWAP_SECONDS) -> None:
        """Exchange the contents of two sets in one step; rules go on to refer to the same names.

        Raises:
            BusyError: for so many seconds another program was listing one of them.
        """
        self._patiently(lambda: self._netlink.swap(one, other), seconds, _checked(one), _checked(other))

    def add(self, name: str, family: Family, singles: bytes = b"", ranges: Iterable[Prefix] = ()) -> None:
        """Add single addresses, packed in a row, and ranges. `FullError` where there is no room."""
        self._netlink.add(_checked(name), family, self._with_pauses(encode_batches(family, singles, ranges)))

    def delete(self, name: str, family: Family, ranges: Iterable[Prefix] = (), singles: bytes = b"") -> None:
        """Remove these; those that are not there are ignored."""
        self._netlink.delete(_checked(name), family, self._with_pauses(encode_batches(family, singles, ranges)))

    def _with_pauses(self, batches: Iterable[bytes]) -> Iterator[bytes]:
        for number, batch in enumerate(batches):
            if number:
                self._while_waiting()
            yield batch

    def lists_with(self, name: str) -> list[str]:
        """The sets of sets, whoever's, that this set is a member of."""
        return [other for other in self._netlink.names() if name in self._netlink.members(other)]

    def names(self) -> list[str]:
        """The names of all sets of ours, also of those that another version or a crash left behind."""
        return [name for name in self._netlink.names() if name.startswith(f"{OURS}-")]

    def _patiently(self, action: Callable[[], None], seconds: float, *names: str) -> None:
        now = time.monotonic()
        if any(now - self._given_up.get(each, -_GIVEN_UP_SECONDS) < _GIVEN_UP_SECONDS for each in names):
            seconds = 0.0
        while True:
            try:
                action()
            except BusyError as error:
                if time.monotonic() >= now + seconds:
                    if seconds:
                        self._given_up.update(dict.fromkeys(names, time.monotonic()))
                    raise BusyError(f"another program is listing the set {' or '.join(names)}") from error
                self._while_waiting()
                time.sleep(_PAUSE_SECONDS)
                continue
            for each in names:
                self._given_up.pop(each, None)
            return

    def _call(self, what: str, name: str, action: Callable[[Any], object]) -> None:
        _checked(name)
        # Imported when first needed: it takes a tenth of a second, and a start that finds all in place does without.
        from pyroute2.ipset import IPSet, IPSetError
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            if self._pyroute2 is None:
                self._pyroute2 = IPSet()
            action(self._pyroute2)
        except (IPSetError, NetlinkError, OSError) as error:
            kind = BusyError if getattr(error, "code", None) in BUSY else KernelError
            raise kind(f"the kernel refused to {what} the set {name}: {error}") from error


def _checked(name: str) -> str:
    if not name.startswith(f"{OURS}-") or len(name) > _MAX_NAME:
        raise ValueError(f"{name!r} is not the name of a set of ours")
    return name
