"""A model of netfilter: our chains and sets of one family in dictionaries, and the way of a packet through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.names import CHAIN, set_names
from sikkerguard.core.firewall.rules import Extension, Rule, chain_rules
from sikkerguard.core.net.family import Family
from tests.unit.core.firewall import test_headers as headers
from tests.unit.u32 import matches

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable

# What a source has room for until the counts are read: ports that are told apart, and lines of the kernel's log.
PORTS, LOG_LINES = 64, 5
OCTETS = 60


@dataclass(frozen=True)
class Packet:
    """A packet from one source that begins something at one port, None being that of one cut off, which names none; or
    a reply from one port."""

    source: int
    port: int | None
    reply: bool = False
    raw: bytes = b""

    def on_wire(self, family: Family) -> bytes:
        """Its bytes."""
        if self.raw:
            return self.raw
        whole = headers.v4 if family is Family.V4 else headers.v6
        if self.reply:
            carried = headers.tcp(headers.ACK | headers.SYN, source=self.port or 0)
            return whole(6, carried if self.port is not None else carried[:4])
        return whole(17, b"") if self.port is None else whole(6, headers.tcp(headers.SYN, target=self.port))


@dataclass
class Netfilter:
    """Our chains and sets of one family, and what becomes of the packets that meet them.

    `member` are the sets of lists that every packet's source is in; `room` is what the sets that packets fill have
    room for; `dropped` is the DROP rule's counter, and `logged` the sources of log lines.
    """

    family: Family
    member: frozenset[str] = frozenset()
    room: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    logged: list[int] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    sets: dict[str, dict[Hashable, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = set_names(self.family)
        self.chains: dict[str, list[Rule]] = {}
        for rule in chain_rules(self.family):
            self.chains.setdefault(rule.chain, []).append(rule)
        for counting in (names.counting_begun(), names.counting_replies()):
            self.sets |= {name: {} for name in counting.all()}

    def run(self, packet: Packet, *, within_limit: bool = True) -> str:
        """The verdict."""
        steps = self.steps(packet, within_limit=within_limit)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return str(end.value)

    def steps(self, packet: Packet, *, within_limit: bool = True, chain: str = CHAIN) -> Generator[None, None, str]:
        """The way of a packet through a chain, in steps between which other things may happen; and the verdict."""
        for rule in self.chains[chain]:
            for match in rule.matches:
                yield
                if not self._matches(match, packet, within_limit):
                    break
            else:
                yield
                verdict = self._target(rule.target, packet)
                if rule.target.name in self.chains:
                    verdict = yield from self.steps(packet, within_limit=within_limit, chain=rule.target.name)
                if (verdict == "RETURN" and chain != CHAIN) or (rule.goto and not verdict):
                    break
                if verdict:
                    return verdict
        return ""

    def _matches(self, match: Extension, packet: Packet, within_limit: bool) -> bool:
        options = dict(match.options)
        if match.name == "limit":
            return within_limit
        if match.name == "u32":
            *inverted, expression = options["u32"]
            return matches(expression, packet.on_wire(self.family)) != (inverted == ["!"])
        assert match.name == "set"
        *inverted, name, direction = options["match-set"]
        count = options.get("update-counters") != ("!",)
        found = name in self.member
        if name in self.sets:
            # As the kernel's ip_set_match_extensions: first the packet is counted, then the counter is compared.
            entries, key = self.sets[name], _key(packet, direction)
            found = key in entries
            if found:
                entries[key] += count
                found = "packets-lt" not in options or entries[key] < int(options["packets-lt"][0])
        if found and count:
            self.counted.append(name)
        return found != (inverted == ["!"])

    def _target(self, target: Extension, packet: Packet) -> str:
        if target.name == "SET":
            ((_, (name, direction)),) = target.options
            entries, key = self.sets[name], _key(packet, direction)
            # To add what is there already would set its counters back, if the kernel did it.
            assert key not in entries
            if key is not None and len(entries) < self.room.get(name, 1 << 16):
                entries[key] = 1
        elif target.name == "LOG":
            self.logged.append(packet.source)
        elif target.name == "DROP":
            self.dropped += 1
            return "DROP"
        elif target.name == "RETURN":
            return "RETURN"
        else:
            assert target.name in self.chains
        return ""

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets."""
        self.sets[one], self.sets[other] = self.sets[other], self.sets[one]

    def named(self) -> int:
        """What the sets that packets fill know by now: by port and by source, less one for each entry by port."""
        names, total = set_names(self.family), 0
        for counting in (names.counting_begun(), names.counting_replies()):
            by_port, by_source = self.sets[counting.by_port], self.sets[counting.by_source]
            total += sum(by_port.values()) + sum(by_source.values()) - len(by_port)
        return total


def in_rules(family: Family) -> tuple[str, ...]:
    """Every set that a rule refers to."""
    extensions = (each for rule in chain_rules(family) for each in (*rule.matches, rule.target))
    words = {word for each in extensions for _, values in each.options for word in values}
    return tuple(name for name in set_names(family).all() if name in words)


def _key(packet: Packet, direction: str) -> Hashable:
    if direction == "src":
        return packet.source
    # To look into the other's set would count it there.
    assert direction == ("src,src" if packet.reply else "src,dst")
    return None if packet.port is None else (packet.source, packet.port)
