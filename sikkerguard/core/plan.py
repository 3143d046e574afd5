"""What is to lie in the kernel, what does lie there, and the operations that turn one into the other.

An operation is a value: the dry run prints its description, the kernel edge carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sikkerguard.core.headers import BEGINS_TCP, MAY_BE_TCP, OF_THE_LINK
from sikkerguard.core.model import Family, Prefix, to_text
from sikkerguard.core.names import (
    CHAIN,
    CHAINS,
    COUNT_CHAIN,
    HOOK,
    LOG_PREFIX,
    NEWS_CHAIN,
    REPLIES_CHAIN,
    TABLE,
    set_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sikkerguard.core.model import Allowlist, Blocklist

# A source is told apart by this many ports until the counts are read again, a second later, and logged for fewer of
# them: a scan of all ports by one source would else fill the set, and the log, before anyone else gets in.
_PORTS_OF_A_SOURCE = 64
_LINES_OF_A_SOURCE = 5
# The LOG rule's limit in all. Lines say where to look, counters count: without a limit a dropped packet costs eleven
# times as much, so that being blocked would be a weapon, and every line is kept on disk by someone.
_LOG_RATE, _LOG_BURST = "10/sec", "50"
# debug of syslog(2): Debian's kernels print everything above it on the console.
_LOG_LEVEL = "7"

# Entries that a description names: a host may have thousands of addresses, and a line of the log should be read.
_SHOWN = 20

Option = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target: its name and its options, as (name, values)."""

    name: str
    options: tuple[Option, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.name, *(" ".join([name, *values]) for name, values in self.options)])


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain of ours: the verdict `target` is reached when every match holds. With `goto` what returns
    from the chain that is the target does not come back to this one, but to where this one was jumped to from."""

    matches: tuple[Extension, ...]
    target: Extension
    chain: str = CHAIN
    goto: bool = False

    def __str__(self) -> str:
        arrow = "=>" if self.goto else "->"
        return " and ".join(str(match) for match in self.matches or ("always",)) + f" {arrow} {self.target}"


def _in_set(
    name: str, *, direction: str = "src", invert: bool = False, count: bool = True, packets_up_to: int | None = None
) -> Extension:
    inverted = ("!",) if invert else ()
    options: list[Option] = [("match-set", (*inverted, name, direction))]
    if not count:
        options.append(("update-counters", ("!",)))
    if packets_up_to is not None:
        options.append(("packets-lt", (str(packets_up_to + 1),)))
    return Extension("set", tuple(options))


def _add_to_set(name: str, direction: str) -> Extension:
    return Extension("SET", (("add-set", (name, direction)),))


def _says(header: str, *, invert: bool = False) -> Extension:
    return Extension("u32", (("u32", ("!", header) if invert else (header,)),))


def chain_rules(family: Family) -> tuple[Rule, ...]:
    """The rules of our chains, the same for as long as they stand: only the sets' contents ever change.

    A rule holds where all of its matches do, so "listed, or on trial and in the candidate" is said by what is let
    go: a packet that is not listed while no trial runs, and one that is in no list at all. The second rule does not
    ask whether a trial runs: it may end between the two rules, and a packet that is on no list would be dropped. A
    good packet pays for the two block sets and the empty trial set. Counters are kept by the first rule alone.

    What neighbours send that no host can do without is let go where only packets pay for it that would be dropped.

    A packet that will be dropped is counted by its source, protocol and port: the match does it where the set has
    that entry, and whatever it has not goes through another chain, which counts it by its source and adds it.
    So hits and sources together, less one packet for each entry of hits, are all packets of a source. Neither set
    has time limits: a full one that had would look for something to forget at each packet, at 12 microseconds.

    Of TCP that is so for what begins a connection. All else of it, what answers first of all, is counted likewise in
    sets of its own, by the port that it comes from. Each packet is held against one of the two alone: the chain in
    between sends it on its way, from which it comes back to the DROP rule. A test of a header takes some 40 ns.
    """
    names = set_names(family)
    neither = (_in_set(names.singles, invert=True), _in_set(names.ranges, invert=True))

    def known_for(packets: int, name: str = names.sources) -> Extension:
        return _in_set(name, count=False, packets_up_to=packets)

    return (
        Rule((*neither, _in_set(names.trial, invert=True)), Extension("RETURN")),
        Rule(
            tuple(
                _in_set(name, invert=True, count=False)
                for name in (names.singles, names.ranges, names.new_singles, names.new_ranges)
            ),
            Extension("RETURN"),
        ),
        Rule((_in_set(names.allow),), Extension("RETURN")),
        *(Rule((_says(header),), Extension("RETURN")) for header in OF_THE_LINK[family]),
        Rule((), Extension(COUNT_CHAIN)),
        Rule((), Extension("DROP")),
        Rule((_says(BEGINS_TCP[family]),), Extension(NEWS_CHAIN), COUNT_CHAIN, goto=True),
        Rule((_says(MAY_BE_TCP[family], invert=True),), Extension(NEWS_CHAIN), COUNT_CHAIN, goto=True),
        Rule((), Extension(REPLIES_CHAIN), COUNT_CHAIN, goto=True),
        Rule((_in_set(names.hits, direction="src,dst"),), Extension("RETURN"), NEWS_CHAIN),
        # A match counts the packet in its entry. Only where there is none yet, the target adds it; adding to an entry
        # that exists would set its counters back.
        Rule((_in_set(names.sources, invert=True),), _add_to_set(names.sources, "src"), NEWS_CHAIN),
        # Not hashlimit: where its table is full it drops the packet itself, past the counter of the DROP rule.
        Rule(
            (
                known_for(_LINES_OF_A_SOURCE),
                Extension("limit", (("limit", (_LOG_RATE,)), ("limit-burst", (_LOG_BURST,)))),
            ),
            Extension("LOG", (("log-prefix", (LOG_PREFIX,)), ("log-level", (_LOG_LEVEL,)))),
            NEWS_CHAIN,
        ),
        Rule((known_for(_PORTS_OF_A_SOURCE),), _add_to_set(names.hits, "src,dst"), NEWS_CHAIN),
        Rule((_in_set(names.replies, direction="src,src"),), Extension("RETURN"), REPLIES_CHAIN),
        # Not logged: a line says where to look for who attacks.
        Rule((_in_set(names.repliers, invert=True),), _add_to_set(names.repliers, "src"), REPLIES_CHAIN),
        Rule((known_for(_PORTS_OF_A_SOURCE, names.repliers),), _add_to_set(names.replies, "src,src"), REPLIES_CHAIN),
    )


@dataclass(frozen=True, slots=True)
class ObservedFamily:
    """What lies in the kernel for one family: the number of entries of each set of ours that is there; what the allow
    set holds; the chains' rules, or None without the chain that the hook jumps to; where in the hook our jumps stand,
    0 being the top (-1 for one that is not as we write it); `misfits`, sets with a name of ours that are of another
    kind; and `excepted`, what the allow set has as `nomatch`, so that it is not allowed."""

    sets: Mapping[str, int]
    allow: frozenset[Prefix]
    rules: tuple[Rule, ...] | None
    jumps: tuple[int, ...]
    misfits: tuple[str, ...] = ()
    excepted: frozenset[Prefix] = frozenset()


@dataclass(frozen=True, slots=True)
class DesiredFamily:
    """What is to lie in the kernel: the number of entries of the two committed sets, what is allowed, and the sets
    that are to be empty, since nothing is on trial."""

    singles: int
    ranges: int
    allow: frozenset[Prefix]
    idle: tuple[str, ...] = ()


def desired_state(
    families: Sequence[Family], blocklist: Blocklist, allowlist: Allowlist
) -> dict[Family, DesiredFamily]:
    """What is to lie in the kernel when this list is committed."""
    return {
        family: DesiredFamily(
            singles=len(blocklist.of(family)) - len(blocklist.of(family).ranges),
            ranges=len(blocklist.of(family).ranges),
            allow=allowlist.prefixes(family),
        )
        for family in families
    }


@dataclass(frozen=True, slots=True)
class DropMisfits:
    """Put sets of the right kind in the place of such as are of another. Where the kernel lets no set of another kind
    be exchanged, take it away, and before it the rules that hold on to it; all is made anew behind it."""

    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        """In words."""
        return f"replace the sets {', '.join(self.names)}, which are of another kind"


@dataclass(frozen=True, slots=True)
class CreateSets:
    """Make the sets that are missing."""

    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        """In words."""
        return f"create the sets {', '.join(self.names)}"


@dataclass(frozen=True, slots=True)
class EmptySets:
    """Empty what is for a trial, while there is none: an entry that stays in both of its sets would be blocked."""

    family: Family
    names: tuple[str, ...]

    def describe(self) -> str:
        """In words."""
        return f"empty the sets {', '.join(self.names)}, since nothing is on trial"


@dataclass(frozen=True, slots=True)
class FillAllow:
    """Put into the allow set what is to be in it, and nothing else."""

    family: Family
    allow: frozenset[Prefix]

    def describe(self) -> str:
        """In words."""
        ordered = sorted(self.allow)
        entries = ", ".join(to_text(self.family, prefix) for prefix in ordered[:_SHOWN])
        more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
        return f"allow {entries}{more} in {set_names(self.family).allow}"


@dataclass(frozen=True, slots=True)
class FillCommitted:
    """Put the committed list's entries into the two block sets."""

    family: Family
    singles: int
    ranges: int

    def describe(self) -> str:
        """In words."""
        names = set_names(self.family)
        return f"block {self.singles} addresses in {names.singles} and {self.ranges} ranges in {names.ranges}"


@dataclass(frozen=True, slots=True)
class WriteChain:
    """Make our chains consist of exactly these rules, in one step."""

    family: Family
    rules: tuple[Rule, ...]

    def describe(self) -> str:
        """In words."""
        tool = "iptables" if self.family is Family.V4 else "ip6tables"
        lines = "".join(f"\n    {rule.chain}: {rule}" for rule in self.rules)
        return f"write the chains {', '.join(CHAINS)} of {tool}, table {TABLE}:{lines}"


@dataclass(frozen=True, slots=True)
class PlaceJump:
    """Have exactly one jump to the chain, at the top of the hook, for what does not come from `lo`."""

    family: Family
    missing: bool

    def describe(self) -> str:
        """In words."""
        tool = "iptables" if self.family is Family.V4 else "ip6tables"
        return f"put the jump to {CHAIN} at the top of {HOOK} of {tool}, table {TABLE}"


Operation = DropMisfits | CreateSets | EmptySets | FillAllow | FillCommitted | WriteChain | PlaceJump


def diff(desired: Mapping[Family, DesiredFamily], observed: Mapping[Family, ObservedFamily]) -> tuple[Operation, ...]:
    """What has to be done, in the order in which it is safe: a packet never meets a rule whose sets are not ready,
    and the allow set is right before anything is blocked."""
    operations: list[Operation] = []
    for family, wanted in desired.items():
        found, names = observed[family], set_names(family)
        if found.misfits:
            operations.append(DropMisfits(family, found.misfits))
            found = replace(found, rules=None, jumps=(), misfits=())
        missing = tuple(name for name in names.all() if name not in found.sets)
        if missing:
            operations.append(CreateSets(family, missing))
        if filled := tuple(name for name in wanted.idle if found.sets.get(name)):
            operations.append(EmptySets(family, filled))
        if found.allow != wanted.allow or found.excepted:
            operations.append(FillAllow(family, wanted.allow))
        held = (found.sets.get(names.singles), found.sets.get(names.ranges))
        # Sets just made are empty, which is all that an empty list wants.
        if held != (wanted.singles, wanted.ranges) and (any(held) or wanted.singles or wanted.ranges):
            operations.append(FillCommitted(family, wanted.singles, wanted.ranges))
        rules = chain_rules(family)
        if found.rules != rules:
            operations.append(WriteChain(family, rules))
        if found.jumps != (0,):
            operations.append(PlaceJump(family, missing=not found.jumps))
    return tuple(operations)
