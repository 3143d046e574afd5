"""The rules of our chains, as values without a backend's dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.headers import BEGINS_TCP, MAY_BE_TCP, OF_THE_LINK
from sikkerguard.core.firewall.names import (
    CHAIN,
    COUNT_CHAIN,
    LOG_PREFIX,
    NEWS_CHAIN,
    REPLIES_CHAIN,
    set_names,
)

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family

# A source is told apart by this many ports until the counts are read again, a second later, and logged for fewer of
# them: a scan of all ports by one source would else fill the set, and the log, before anyone else gets in.
_PORTS_OF_A_SOURCE = 64


_LINES_OF_A_SOURCE = 5


# The LOG rule's limit in all. Lines say where to look, counters count: without a limit a dropped packet costs eleven
# times as much, so that being blocked would be a weapon, and every line is kept on disk by someone.
_LOG_RATE, _LOG_BURST = "10/sec", "50"


# debug of syslog(2): Debian's kernels print everything above it on the console.
_LOG_LEVEL = "7"


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
