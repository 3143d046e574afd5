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

from sikkerguard.core.traffic.sample import NOTHING, PacketCount


@dataclass(slots=True)
class CounterResets:
    """Of one family. `stood` is the counter's reading up to which packets are settled, None before the first one.

    `advanced` and `named` are what counter and sets have told since then. `lead` is what the sets had told, at the last
    settling, of packets that were not settled yet: at least so many, and at most `most`, None where that is not known.
    `peak` is where the counter would stand had nobody set it back, until it is there. `first` is the first reading of
    a counter of which nobody had told where it stood.
    """

    stood: PacketCount | None = NOTHING
    advanced: PacketCount = NOTHING
    named: PacketCount = NOTHING
    lead: int = 0
    most: int | None = None
    peak: int | None = None
    first: PacketCount | None = None

    def resume(self, known: PacketCount | None) -> None:
        """The counter stood there when it was last taken into account, by a run before this one; None where nobody
        knows. It may have been read since, but not settled."""
        first, self.first = self.first, None
        if self.stood is None:
            self.stood = known
        elif first is None or known is None:
            return  # the rule was made since, and its counter began anew; or it is taken from the first reading on
        elif first.packets < known.packets or first.octets < known.octets:
            self.peak = max(self.peak or 0, known.packets)
        else:
            self.advanced = _sum(self.advanced, _less(first, known))

    def standing(self) -> PacketCount:
        """From where a rule goes on that is made anew."""
        return self.stood or NOTHING

    def went_back(self, found: PacketCount | None) -> bool:
        """Whether the counter reads less than it did: packets or, of a counter that was quick to pass its old place,
        their bytes."""
        stood = self.standing()
        return found is not None and (found.packets < stood.packets or found.octets < stood.octets)

    def read(self, found: PacketCount | None) -> None:
        """The counter reads so; None where there is no rule. What it may have counted before it went back, and since,
        is left to the sets."""
        if found is None:
            self.stood = self.standing()
            return
        if self.went_back(found):
            self.peak = max(self.peak or 0, self.standing().packets)
        elif self.stood is None:
            self.first = found
        else:
            self.advanced = _sum(self.advanced, _less(found, self.stood))
        self.stood = found

    def name(self, counted: PacketCount) -> None:
        """The sets told of so many more."""
        self.named = _sum(self.named, counted)

    def is_settled(self) -> bool:
        """Whether nothing is known that is not settled."""
        return not (self.lead or self.advanced.packets or self.named.packets)

    def rest(self) -> None:
        """Nothing moves, and the sets are empty: what they have named is what was dropped."""
        self.most = 0

    def is_behind(self) -> bool:
        """Whether the sets have told of packets that the counter had not when it was read, or may have."""
        return self.peak is not None or self.most != self.lead or self.advanced.packets < self.lead + self.named.packets

    def settle(self, later: PacketCount | None, *, complete: bool) -> PacketCount:
        """What has been dropped since the last time, up to the last reading. `later` is what the counter reads now,
        the sets having been read after that; None where there is no rule. `complete` says that the sets had room for
        every packet, and that nothing they had told was lost."""
        stood, packets = self.standing(), self.advanced.packets
        least = self.lead + self.named.packets
        most = self.most + self.named.packets if complete and self.most is not None else None
        # Packets that came after the reading can be named already.
        between = 0 if later is None else later.packets - stood.packets
        if 0 <= between < least - packets:
            # It was set back, and has come to a number that does not show it.
            self.peak = max(self.peak or 0, stood.packets + least - between - packets)
            packets = least - between
        elif self.peak is not None and most is not None and packets > most:
            # It was put where it had been: what it counts twice is not in the sets. Of these, what came since the
            # reading is yet to be counted.
            packets = max(0, most - max(0, between))
        dropped = PacketCount(packets, self._octets(packets))
        if later is None:
            # The rule that will be made goes on from here.
            self.stood, self.peak = _sum(stood, _less(dropped, self.advanced)), None
        self.lead = max(0, least - packets)
        bounds = [] if most is None else [most - packets]
        if complete and self.peak is None and between >= 0:
            bounds.append(between)
        self.most = max(self.lead, min(bounds)) if bounds else None
        if self.peak is not None and stood.packets >= self.peak:
            self.peak = None
        self.advanced = self.named = NOTHING
        return dropped

    def _octets(self, packets: int) -> int:
        """Of packets that only the sets know of, or only the counter, the mean stands for their size."""
        known = self.advanced if packets <= self.advanced.packets else self.named
        further = packets - self.advanced.packets
        return self.advanced.octets + (further * known.octets // known.packets if known.packets else 0)


def _sum(one: PacketCount, other: PacketCount) -> PacketCount:
    return PacketCount(one.packets + other.packets, one.octets + other.octets)


def _less(one: PacketCount, other: PacketCount) -> PacketCount:
    return PacketCount(one.packets - other.packets, one.octets - other.octets)
