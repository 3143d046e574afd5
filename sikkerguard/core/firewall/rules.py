"""The rules of our chains, as values: matches and targets of iptables-extensions(8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sikkerguard.core.firewall.headers import BEGINS_TCP, MAY_BE_TCP, OF_THE_LINK
from sikkerguard.core.firewall.names import CHAIN, COUNT_CHAIN, LOG_PREFIX, NEW_CHAIN, REPLIES_CHAIN, set_names

if TYPE_CHECKING:
    from sikkerguard.core.net.family import Family

# Between two readings of the counts, a second apart, a source gets this many entries by port, and so many log lines.
# Without a limit a scan of all ports by one source would fill the set, and the log, before anyone else gets in.
_MAX_PORTS_OF_A_SOURCE = 64
_MAX_LOG_LINES_OF_A_SOURCE = 5
# The limit of all log lines together. Lines say where to look, sets count: without a limit a dropped packet costs
# eleven times as much, so that being blocked would be a weapon, and every line is kept on somebody's disk.
_LOG_RATE, _LOG_BURST = "10/sec", "50"
# debug of syslog(2): Debian's kernels print everything above it on the console.
_LOG_LEVEL = "7"

Option = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target: its name, and its options as (name without dashes, values). A first value "!" inverts."""

    name: str
    options: tuple[Option, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.name, *(" ".join([name, *values]) for name, values in self.options)])


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain of ours: `target` applies to a packet for which every match holds. With `goto`, a packet
    that returns from the target's chain does not come back to this rule's chain, but to the one that jumped there."""

    matches: tuple[Extension, ...]
    target: Extension
    chain: str = CHAIN
    goto: bool = False

    def __str__(self) -> str:
        arrow = "=>" if self.goto else "->"
        return " and ".join(str(match) for match in self.matches or ("always",)) + f" {arrow} {self.target}"


_RETURN = Extension("RETURN")


def chain_rules(family: Family) -> tuple[Rule, ...]:
    """The rules of all our chains, in the order of `CHAINS`. They never change: only the sets' contents do."""
    names = set_names(family)
    return (
        *_decide(family),
        *_count(family),
        *_count_new(names.hits, names.sources),
        *_count_replies(names.replies, names.repliers),
    )


def _decide(family: Family) -> tuple[Rule, ...]:
    """CHAIN: what becomes of a packet.

    All matches of a rule must hold, so "listed, or on trial and in the candidate" is expressed by what returns: a
    packet that is not listed while no trial runs, and one that is in no list at all. The second rule does not ask
    whether a trial runs: one may end between the two rules, and a packet that is on no list would be dropped. A good
    packet pays for the two block sets and the empty trial set. Only the first rule updates the lists' counters.
    """
    names = set_names(family)
    committed = (names.singles, names.ranges)
    candidate = (names.new_singles, names.new_ranges)
    return (
        Rule(tuple(_in_set(name, invert=True) for name in (*committed, names.trial)), _RETURN),
        Rule(tuple(_in_set(name, invert=True, count=False) for name in (*committed, *candidate)), _RETURN),
        Rule((_in_set(names.allow),), _RETURN),
        # Behind the lists, so that only packets pay for it that would be dropped.
        *(Rule((_header(expression),), _RETURN) for expression in OF_THE_LINK[family]),
        Rule((), Extension(COUNT_CHAIN)),
        Rule((), Extension("DROP")),
    )


def _count(family: Family) -> tuple[Rule, ...]:
    """COUNT_CHAIN: send a packet that will be dropped through one of the two counting chains, from which it comes back
    to the DROP rule: of TCP what begins a connection, and everything that is not TCP, through NEW_CHAIN; all else of
    TCP, which may be a reply, through REPLIES_CHAIN. A test of a header takes some 40 ns."""
    return (
        Rule((_header(BEGINS_TCP[family]),), Extension(NEW_CHAIN), COUNT_CHAIN, goto=True),
        Rule((_header(MAY_BE_TCP[family], invert=True),), Extension(NEW_CHAIN), COUNT_CHAIN, goto=True),
        Rule((), Extension(REPLIES_CHAIN), COUNT_CHAIN, goto=True),
    )


def _count_new(by_port: str, by_source: str) -> tuple[Rule, ...]:
    """NEW_CHAIN: count a packet by its source, protocol and port, and log it.

    Where the set by port has its entry, the match counts the packet there. Any other packet is counted by its source
    alone, and its entry by port is added. So both sets together, less one packet for each entry by port, hold all
    packets of a source. Neither set has timeouts: a full set that has them searches for something to expire at each
    packet, which takes 12 microseconds.
    """
    return (
        Rule((_in_set(by_port, direction="src,dst"),), _RETURN, NEW_CHAIN),
        # Only where there is no entry yet: adding one that exists would reset its counters.
        Rule((_in_set(by_source, invert=True),), _add_to_set(by_source, "src"), NEW_CHAIN),
        # Not hashlimit: where its table is full it drops the packet itself, past the counter of the DROP rule.
        Rule(
            (
                _in_set(by_source, count=False, max_packets=_MAX_LOG_LINES_OF_A_SOURCE),
                Extension("limit", (("limit", (_LOG_RATE,)), ("limit-burst", (_LOG_BURST,)))),
            ),
            Extension("LOG", (("log-prefix", (LOG_PREFIX,)), ("log-level", (_LOG_LEVEL,)))),
            NEW_CHAIN,
        ),
        Rule(
            (_in_set(by_source, count=False, max_packets=_MAX_PORTS_OF_A_SOURCE),),
            _add_to_set(by_port, "src,dst"),
            NEW_CHAIN,
        ),
    )


def _count_replies(by_port: str, by_source: str) -> tuple[Rule, ...]:
    """REPLIES_CHAIN: count a packet likewise, by the port that it comes from. It is not logged: log lines say where to
    look for attackers."""
    return (
        Rule((_in_set(by_port, direction="src,src"),), _RETURN, REPLIES_CHAIN),
        Rule((_in_set(by_source, invert=True),), _add_to_set(by_source, "src"), REPLIES_CHAIN),
        Rule(
            (_in_set(by_source, count=False, max_packets=_MAX_PORTS_OF_A_SOURCE),),
            _add_to_set(by_port, "src,src"),
            REPLIES_CHAIN,
        ),
    )


def _in_set(
    name: str, *, direction: str = "src", invert: bool = False, count: bool = True, max_packets: int | None = None
) -> Extension:
    """Whether the packet is in a set; with `count` its entry counts it, with `max_packets` the entry must have counted
    no more than these."""
    options: list[Option] = [("match-set", (*(("!",) if invert else ()), name, direction))]
    if not count:
        options.append(("update-counters", ("!",)))
    if max_packets is not None:
        options.append(("packets-lt", (str(max_packets + 1),)))
    return Extension("set", tuple(options))


def _add_to_set(name: str, direction: str) -> Extension:
    return Extension("SET", (("add-set", (name, direction)),))


def _header(expression: str, *, invert: bool = False) -> Extension:
    return Extension("u32", (("u32", ("!", expression) if invert else (expression,)),))
