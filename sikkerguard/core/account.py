"""How many packets a DROP rule has dropped, also where others set its counter back.

Two witnesses: the rule's counter, which iptables can set to anything, and the sets, which name every packet that they
had room for. A packet is put into the sets before the rule counts it. So at the moment at which the sets are changed
for empty ones

    what they have named  <=  what was dropped by then  <=  what the counter says a moment later

and for as long as nobody touches the counter, the counter is right. Where it says less than was named, it was set back,
and what was named is believed. Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from sikkerguard.core.model import NOTHING, Count


@dataclass(slots=True)
class Account:
    """Of one family. `stood` is the counter's reading up to which packets are settled.

    `advanced` and `named` are what counter and sets have told since then. `lead` is what the sets had told, at the last
    settling, of packets that were not settled yet. It is exact where it is `sure`, and else the least that it can be.
    `peak` is where the counter would stand had nobody set it back, until it is there.
    """

    stood: Count = NOTHING
    advanced: Count = NOTHING
    named: Count = NOTHING
    lead: int = 0
    sure: bool = False
    peak: int | None = None

    def read(self, found: Count | None) -> None:
        """The counter reads so; None where there is no rule. What it may have counted before it went back, and since,
        is left to the sets."""
        if found is None:
            return
        if found.packets < self.stood.packets:
            self.peak = max(self.peak or 0, self.stood.packets)
        else:
            self.advanced = _sum(self.advanced, _less(found, self.stood))
        self.stood = found

    def name(self, counted: Count) -> None:
        """The sets told of so many more."""
        self.named = _sum(self.named, counted)

    def is_settled(self) -> bool:
        """Whether nothing is known that is not settled."""
        return not (self.lead or self.advanced.packets or self.named.packets)

    def rest(self) -> None:
        """Nothing moves, and the sets are empty: what they have named is what was dropped."""
        self.sure = self.peak is None

    def is_behind(self) -> bool:
        """Whether the sets have told of packets that the counter had not when it was read, or may have."""
        return not self.sure or self.advanced.packets < self.lead + self.named.packets

    def settle(self, later: Count | None, *, complete: bool) -> Count:
        """What has been dropped since the last time, up to the last reading. `later` is what the counter reads now,
        the sets having been read after that; None where there is no rule. `complete` says that the sets had room for
        every packet, and that nothing they had told was lost."""
        known = self.lead + self.named.packets
        # Packets that came after the reading can be named already.
        between = 0 if later is None else later.packets - self.stood.packets
        packets = self.advanced.packets
        if between >= 0 and known - between > packets:
            # It was set back, and has come to a number that does not show it.
            self.peak = max(self.peak or 0, self.stood.packets + known - between - packets)
            packets = known - between
        elif self.peak is not None and complete and self.sure:
            # Should it have been put where it was, what it counts twice is not in the sets.
            packets = min(packets, known)
        self.lead = max(0, known - packets)
        dropped = Count(packets, self._octets(packets))
        if later is None:
            # The rule that will be made goes on from here.
            self.stood, self.peak = _sum(self.stood, _less(dropped, self.advanced)), None
        if between == 0 and self.peak is None:
            self.lead, self.sure = 0, complete
        else:
            self.sure = self.sure and complete
        if self.peak is not None and self.stood.packets >= self.peak:
            self.peak = None
        self.advanced = self.named = NOTHING
        return dropped

    def _octets(self, packets: int) -> int:
        """Of packets that only the sets know of, or only the counter, the mean stands for their size."""
        known = self.advanced if packets <= self.advanced.packets else self.named
        further = packets - self.advanced.packets
        return self.advanced.octets + (further * known.octets // known.packets if known.packets else 0)


def _sum(one: Count, other: Count) -> Count:
    return Count(one.packets + other.packets, one.octets + other.octets)


def _less(one: Count, other: Count) -> Count:
    return Count(one.packets - other.packets, one.octets - other.octets)
