"""How many packets a DROP rule has dropped, also where other programs set its counter back.

There are two measurements: the rule's counter, which iptables can set to anything, and the sets, which attribute every
packet that they had room for. A packet is put into the sets before the rule counts it. So at the moment at which the
sets are swapped for empty ones

    what the sets attributed  <=  what was dropped by then  <=  what the counter reads a moment later

and for as long as nobody touches the counter, the counter is right. Where it reads less than was attributed, it was set
back, and what was attributed is believed. Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from sikkerguard.core.traffic.sample import NOTHING, PacketCount


@dataclass(slots=True)
class CounterResets:
    """Follows the DROP rule's counter of one family across resets.

    `last_reading`: the reading up to which packets are settled, that is, reported; None before the first reading of a
    run that has not been told yet where the one before it ended.
    `advanced`, `attributed`: what counter and sets have counted since then.
    `unsettled_min`, `unsettled_max`: how many packets the sets had counted at the last settling that were not settled
    yet, at least and at most; the latter is None where that is not known.
    `expected`: what the counter would read had nobody set it back; None once it reads that much.
    `first_reading`: the first reading made while `last_reading` was None.
    """

    last_reading: PacketCount | None = NOTHING
    advanced: PacketCount = NOTHING
    attributed: PacketCount = NOTHING
    unsettled_min: int = 0
    unsettled_max: int | None = None
    expected: int | None = None
    first_reading: PacketCount | None = None

    def hold(self) -> None:
        """Wait for `resume`: until then nobody knows how much of what the counter reads is reported already."""
        self.last_reading = None

    def resume(self, known: PacketCount | None) -> None:
        """The run before this one reported everything up to this reading; None where nobody knows. The counter may have
        been read since, but not settled."""
        first, self.first_reading = self.first_reading, None
        if self.last_reading is None:
            self.last_reading = known
        elif first is None or known is None:
            return  # the rule was made since, and its counter began anew; or it counts from the first reading on
        elif first.is_below(known):
            self.expected = max(self.expected or 0, known.packets)
        else:
            self.advanced = self.advanced.plus(first.minus(known))

    def reading(self) -> PacketCount:
        """The reading from which a rule goes on that is made anew."""
        return self.last_reading or NOTHING

    def went_back(self, found: PacketCount | None) -> bool:
        """Whether the counter reads less than it did: packets or, of a counter that was quick to pass its old reading,
        their bytes."""
        return found is not None and found.is_below(self.reading())

    def read(self, found: PacketCount | None) -> None:
        """Take a reading of the counter; None where there is no rule. What it may have counted before it went back, and
        since, is left to the sets."""
        if found is None:
            self.last_reading = self.reading()
            return
        if self.went_back(found):
            self.expected = max(self.expected or 0, self.reading().packets)
        elif self.last_reading is None:
            self.first_reading = found
        else:
            self.advanced = self.advanced.plus(found.minus(self.last_reading))
        self.last_reading = found

    def add_attributed(self, counted: PacketCount) -> None:
        """The sets counted so many more."""
        self.attributed = self.attributed.plus(counted)

    def is_settled(self) -> bool:
        """Whether nothing is known that is not settled."""
        return not (self.unsettled_min or self.advanced.packets or self.attributed.packets)

    def confirm_idle(self) -> None:
        """Nothing was dropped since the last reading, and the sets are empty: all that they counted is settled."""
        self.unsettled_max = 0

    def is_behind(self) -> bool:
        """Whether the sets have counted packets that the counter had not when it was read, or may have."""
        return (
            self.expected is not None
            or self.unsettled_max != self.unsettled_min
            or self.advanced.packets < self.unsettled_min + self.attributed.packets
        )

    def settle(self, later: PacketCount | None, *, complete: bool) -> PacketCount:
        """How much was dropped since the last settling, up to the last reading. `later` is what the counter reads now,
        the sets having been read after that reading; None where there is no rule. `complete` says that the sets had
        room for every packet, and that nothing they had counted was lost."""
        reading, packets = self.reading(), self.advanced.packets
        least = self.unsettled_min + self.attributed.packets
        most = self.unsettled_max + self.attributed.packets if complete and self.unsettled_max is not None else None
        # Packets that came after the reading can be attributed already.
        between = 0 if later is None else later.packets - reading.packets
        if 0 <= between < least - packets:
            # It was set back, and has come to a number that does not show it.
            self.expected = max(self.expected or 0, reading.packets + least - between - packets)
            packets = least - between
        elif self.expected is not None and most is not None and packets > most:
            # It was put where it had been: what it counts twice is not in the sets. Of these, what came since the
            # reading is yet to be counted.
            packets = max(0, most - max(0, between))
        dropped = PacketCount(packets, self._bytes_of(packets))
        if later is None:
            # The rule that will be made goes on from here.
            self.last_reading, self.expected = reading.plus(dropped.minus(self.advanced)), None
        self.unsettled_min = max(0, least - packets)
        bounds = [] if most is None else [most - packets]
        if complete and self.expected is None and between >= 0:
            bounds.append(between)
        self.unsettled_max = max(self.unsettled_min, min(bounds)) if bounds else None
        if self.expected is not None and reading.packets >= self.expected:
            self.expected = None
        self.advanced = self.attributed = NOTHING
        return dropped

    def _bytes_of(self, packets: int) -> int:
        """The bytes in so many packets. For packets that only the sets counted, or only the counter, the mean size of
        those that it counted stands."""
        known = self.advanced if packets <= self.advanced.packets else self.attributed
        further = packets - self.advanced.packets
        return self.advanced.bytes + (further * known.bytes // known.packets if known.packets else 0)
