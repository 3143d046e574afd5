"""Finds the rules and sets of other programs that refer to ours, where something of ours can't be removed.

Only tables that the kernel has anyhow are read: asking for another one would create it. Rules of iptables-nft can't be
read through python-iptables.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sikkerguard.core.firewall.names import CHAIN, CHAINS, HOOK, TABLE, tool_name
from sikkerguard.core.net.family import Family
from sikkerguard.core.text import printable
from sikkerguard.edges.kernel.ipset_legacy.iptc_library import library
from sikkerguard.edges.kernel.ipset_legacy.iptc_patches import apply_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sikkerguard.edges.kernel.ipset_legacy.sets import Sets

log = logging.getLogger(__name__)

# A message names at most this many rules.
_MAX_NAMED = 3
# In /proc/net, the tables that there are.
_TABLE_NAMES = {Family.V4: "ip_tables_names", Family.V6: "ip6_tables_names"}
# struct xt_entry_match and xt_entry_target of linux/netfilter/x_tables.h: length, name, revision.
_EXTENSION = struct.Struct("=H29sB")
_ANYWHERE = ("0.0.0.0/0.0.0.0", "::/0", "")


class References:
    """What can't be read is left out, since it is only for a message."""

    def __init__(self, sets: Sets) -> None:
        self._sets = sets

    def sentence(self, name: str) -> str:
        """What refers to this set of ours, as the second half of a sentence."""
        found = [f"the set {printable(each)}" for each in self._sets.lists_with(name)]
        found += self._rules(lambda rule: _uses_set(rule.extensions) and name in _values(rule.decode()))
        return _refers(found, f"'nft list ruleset' and 'iptables-save | grep {name}' may show it")

    def sentence_on_chain(self, chain: str) -> str:
        """What jumps to this chain of ours, as the second half of a sentence."""
        found = self._rules(lambda rule: rule.target == chain.encode(), tables=(TABLE,))
        return _refers(found, f"'iptables-save -t {TABLE} | grep {chain}' may show it")

    def _rules(self, refers: Callable[[_Rule], bool], tables: tuple[str, ...] | None = None) -> list[str]:
        iptc = library()
        apply_patches()
        found = []
        for family, file in _TABLE_NAMES.items():
            tool = tool_name(family)
            for table_name in _tables(file):
                if tables is not None and table_name not in tables:
                    continue
                try:
                    for rule in _foreign(family, table_name):
                        with _skipped(f"a rule of another program in the table {table_name} of {tool}"):
                            if refers(rule):
                                found.append(_text(tool, table_name, rule))
                except (iptc.IPTCError, OSError) as error:
                    log.debug("the table %s of %s can't be read: %s", table_name, tool, error)
        return found


@contextmanager
def _skipped(what: str) -> Iterator[None]:
    """Skip a rule that can't be read: its extension may not be installed."""
    iptc = library()
    try:
        yield
    except (iptc.IPTCError, iptc.XTablesError, ValueError) as error:
        log.debug("%s can't be read: %s", what, error)


def _tables(file: str) -> list[str]:
    """The tables that there are; without root, the one of ours."""
    try:
        return Path("/proc/self/net", file).read_text("ascii").split()
    except OSError:
        return [TABLE]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule of another program: its chain; its number in it, from 1; the name of the chain or extension that is its
    target (None for a plain verdict); its matches and its target as bytes; and a function that decodes it."""

    chain: str
    number: int
    target: bytes | None
    extensions: bytes
    decode: Callable[[], Any]


def _foreign(family: Family, table_name: str) -> Iterator[_Rule]:
    """Each rule that is not ours."""
    iptc = library()
    table = (iptc.Table if family is Family.V4 else iptc.Table6)(table_name, autocommit=False)
    table.refresh()
    for chain in table.chains:
        if table_name == TABLE and chain.name in CHAINS:
            continue
        entry, number = table.first_rule(chain.name), 1
        while entry:
            target = table.get_target(entry)
            if not (table_name == TABLE and chain.name == HOOK and target == CHAIN.encode()):
                raw = ctypes.string_at(ctypes.addressof(entry), entry.next_offset)[ctypes.sizeof(type(entry)) :]
                yield _Rule(chain.name, number, target, raw, partial(table.create_rule, entry, chain))
            entry, number = table.next_rule(entry), number + 1


def _uses_set(entry: bytes) -> bool:
    """Whether a rule has a match or a target that refers to sets. Others are not decoded, since their extensions may
    not be installed."""
    at = 0
    while at + _EXTENSION.size <= len(entry):
        length, name, _ = _EXTENSION.unpack_from(entry, at)
        if name.partition(b"\0")[0] in (b"set", b"SET"):
            return True
        if length < _EXTENSION.size:
            break
        at += length
    return False


def _values(rule: Any) -> set[str]:
    extensions = (*rule.matches, rule.target)
    return {value for each in extensions for values in each.get_all_parameters().values() for value in values}


def _text(tool: str, table: str, rule: _Rule) -> str:
    """The rule as its tool would be given it."""
    words = [tool, "-t", table, "-A", rule.chain]
    decoded = rule.decode()
    for option, value in (
        ("-s", decoded.src),
        ("-d", decoded.dst),
        ("-i", decoded.in_interface),
        ("-o", decoded.out_interface),
        ("-p", "" if decoded.protocol in ("ip", "0") else decoded.protocol),
    ):
        if value and value not in _ANYWHERE:
            words += ["!"] * value.startswith("!") + [option, value.lstrip("!")]
    for match in decoded.matches:
        words += ["-m", match.name, *_options(match)]
    words += ["-g" if decoded.target.goto else "-j", decoded.target.name, *_options(decoded.target)]
    return f"'{printable(' '.join(words))}' (rule {rule.number})"


def _options(extension: Any) -> list[str]:
    words: list[str] = []
    for name, values in extension.get_all_parameters().items():
        inverted = values[:1] == ["!"]
        words += ["!"] * inverted + [f"--{name}", *values[inverted:]]
    return words


def _refers(found: list[str], otherwise: str) -> str:
    if not found:
        return f"a rule that can't be seen from here refers to it; {otherwise}"
    more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
    return f"another program's {', '.join(found[:_MAX_NAMED])}{more} {'refers' if len(found) == 1 else 'refer'} to it"
