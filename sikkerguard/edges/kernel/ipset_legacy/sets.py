"""Sets: made and taken away through pyroute2, swapped, filled and read through our own netlink encoder.

For the thread that owns netfilter only: pyroute2's sockets refuse to work inside a running event loop. pyroute2
acts on every set of the host where it gets no name, so a name is mandatory here, and must be one of ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sikkerguard.core.firewall.names import OURS
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import BUSY, Entry, NetlinkSets, SetHeader, encode_batches
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.packed import Prefix
    from sikkerguard.core.traffic.sample import Hit, Source

__all__ = ["Entry", "SetHeader", "SetKind", "Sets"]

_SMALLEST_HASH, _SMALLEST_LIMIT = 64, 1024
_NAME_LIMIT = 31
# How long to wait for the end of a listing, in seconds: one of a million entries takes two. Between two tries lies less
# than between two listings by a program that makes one after the other.
SWAP_SECONDS, DESTROY_SECONDS = 2.0, 0.5
_PAUSE_SECONDS = 0.005
# A set that was not let go is not waited for again so soon: a pager may be left open for days.
_GIVEN_UP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SetKind:
    """What a set is: its type, whether it counts, its default time limit in seconds (None: entries stay), whether
    packets fill it: then its table has its final size at once, since no packet can wait for it to grow; and the
    `limit` of entries that it gets at least."""

    type_name: str
    counters: bool = False
    timeout: int | None = None
    filled_by_packets: bool = False
    limit: int = _SMALLEST_LIMIT

    def fits(self, header: SetHeader, family: Family) -> bool:
        """Whether a set is of this kind, whoever made it. A time limit may be another one, since each entry that
        needs one gets its own."""
        return (header.type_name, header.family, header.counters, header.timeout, header.whole) == (
            self.type_name,
            family.number,
            self.counters,
            self.timeout is not None,
            True,
        )


class Sets:
    """All that is done to sets. Every method raises `KernelError` when the kernel refuses.

    `while_waiting` is called again and again while something takes long, or is waited for.
    """

    def __init__(self, while_waiting: Callable[[], None] = lambda: None) -> None:
        self._netlink = NetlinkSets()
        self._pyroute2: Any = None
        self._while_waiting = while_waiting
        self._given_up: dict[str, float] = {}

    def close(self) -> None:
        """Close both sockets."""
        self._netlink.close()
        if self._pyroute2 is not None:
            self._pyroute2.close()

    def create(self, name: str, kind: SetKind, family: Family, entries: int) -> None:
        """Make a set with room for twice as many entries as it is to hold, so that it can't overflow.

        `hashsize` is half the entries, rounded up to a power of two: the kernel's default of 1,024 makes loading
        a million entries 2.5 times slower, for all the times that the table has to grow.
        """
        hash_size = max(_SMALLEST_HASH, 1 << max(entries // 2 - 1, 0).bit_length())
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
        """Take the set away.

        Raises:
            BusyError: for so many seconds another program was listing it, or has rules or sets that refer to it.
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
        """Take every entry out of the set."""
        self._call("flush", name, lambda sets: sets.flush(name))

    def swap(self, one: str, other: str, seconds: float = SWAP_SECONDS) -> None:
        """Exchange the contents of two sets in one step; rules keep looking where they looked.

        Raises:
            BusyError: for so many seconds another program was listing one of them.
        """
        self._patiently(lambda: self._netlink.swap(one, other), seconds, _checked(one), _checked(other))

    def add(
        self,
        name: str,
        family: Family,
        singles: bytes = b"",
        ranges: Iterable[Prefix] = (),
        timeout: int | None = None,
    ) -> None:
        """Add packed addresses in a row, and ranges; those that are there already have their time limit renewed."""
        _checked(name)
        self._netlink.add(name, family, self._with_pauses(encode_batches(family, singles, ranges, timeout)))

    def delete(self, name: str, family: Family, ranges: Iterable[Prefix] = (), singles: bytes = b"") -> None:
        """Take these out; those that are not there are passed over."""
        _checked(name)
        self._netlink.delete(name, family, self._with_pauses(encode_batches(family, singles, ranges)))

    def _with_pauses(self, batches: Iterable[bytes]) -> Iterator[bytes]:
        for number, batch in enumerate(batches):
            if number:
                self._while_waiting()
            yield batch

    def header(self, name: str) -> SetHeader | None:
        """The set's header, or None where there is no such set."""
        return self._netlink.header(name)

    def contains(self, name: str, family: Family, address: bytes) -> bool:
        """Whether the set matches this packed address."""
        return self._netlink.contains(name, family, address)

    def entries(self, name: str, family: Family) -> Iterator[Entry]:
        """Every entry of the set."""
        return self._netlink.entries(name, family)

    def prefixes(self, name: str, family: Family) -> Iterator[tuple[bytes, int, bool]]:
        """Packed address, prefix length, and whether it is `nomatch`, of every entry of a set of addresses or
        ranges."""
        return self._netlink.prefixes(name, family)

    def hits(self, name: str, family: Family) -> Collection[Hit]:
        """Every entry of a set by address and port: (address, port, protocol, octets, packets)."""
        return self._netlink.hits(name, family)

    def counts(self, name: str, family: Family) -> Collection[Source]:
        """Every entry of a set by address: (address, octets, packets)."""
        return self._netlink.counts(name, family)

    def packets(self, name: str, family: Family, prefix: Prefix) -> int:
        """How many packets matched this entry."""
        return self._netlink.packets(name, family, prefix)

    def lists_with(self, name: str) -> list[str]:
        """The sets of sets, whoever's, that have this one as a member."""
        return [other for other in self._netlink.names() if name in self._netlink.members(other)]

    def names(self) -> list[str]:
        """The names of all sets of ours, whichever version or crash left them."""
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
        # Imported at the first need: it costs a tenth of a second, and a start that finds all in place has none.
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
    if not name.startswith(f"{OURS}-") or len(name) > _NAME_LIMIT:
        raise ValueError(f"{name!r} is not the name of a set of ours")
    return name
