"""Our chains and the jump to them, through python-iptables.

For the thread that owns netfilter only. The library is imported at the first need: it costs 0.2 s and runs modprobe.
What it would do by itself and must not: commit on its own (autocommit hides failures), keep a table's copy from an
earlier read (each use here refreshes it), and write without the lock that iptables takes. A commit replaces the whole
table in one step, so a chain is rewritten without a moment in between.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sikkerguard.core.firewall.names import CHAIN, CHAINS, HOOK, TABLE
from sikkerguard.core.firewall.rules import Extension, Rule
from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.sample import PacketCount
from sikkerguard.edges.kernel.ipset_legacy.iptc_library import library
from sikkerguard.edges.kernel.ipset_legacy.iptc_patches import mend
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

# Where iptables keeps its lock unless told otherwise (its manual, XTABLES_LOCKFILE).
_LOCK_FILE = "/run/xtables.lock"
# Seconds to wait for it. The thread that waits renews the trial too; who comes for nothing comes again soon, and does
# not wait so long for a lock that is known to be held.
_LOCK_SECONDS, _HELD_LOCK_SECONDS = 1.0, 0.1
_LOCK_PAUSE_SECONDS = 0.02
_VERDICT = "DROP"


class Chains:
    """All that is done to chains. Every method raises `KernelError` when the kernel or the library refuses."""

    def __init__(self, lock_seconds: float = _LOCK_SECONDS) -> None:
        self._lock_seconds = lock_seconds
        self._tables: dict[Family, Any] = {}
        self._warned = False
        # Since when another program was found to hold the lock, in Unix seconds.
        self._held_since: float | None = None
        # How the library reads back what we wrote, where a version of iptables says it in other words.
        self._read_back: dict[Family, tuple[tuple[Rule, ...], tuple[Rule, ...]]] = {}

    def read(self, family: Family) -> tuple[tuple[Rule, ...] | None, tuple[int, ...]]:
        """The rules of our chains (None without the one that is jumped to), and where in the hook the jumps to it
        stand, from 0; -1 for one that is not as we write it."""
        with self._translated(family, "read"):
            table = self._refreshed(family)
            rules = self._rules(family, table) if table.is_chain(CHAIN) else None
            wanted = _selection(_entry_of(_new_jump(family))) if rules is not None else None
            return rules, tuple(
                position if _selection(entry) == wanted else -1 for position, entry in self._jumps(table)
            )

    def write(self, family: Family, rules: tuple[Rule, ...], dropped: PacketCount) -> None:
        """Make our chains consist of these rules, whatever they were, in one step, and read them back. The DROP rule
        goes on counting from where the one before it stands, or from `dropped` if that is more."""
        with self._changing(family) as table:
            dropped = max(dropped, self._counted(table) or dropped)
            for name in CHAINS:
                if table.is_chain(name):
                    table.flush_entries(name)
                else:
                    table.create_chain(name)
            for rule in rules:
                built = _built(family, rule)
                if rule.target.name == _VERDICT:
                    built.set_counters(dropped)
                self._chain(table, rule.chain).append_rule(built)
        with self._translated(family, "read"):
            found = self._raw_rules(self._refreshed(family))
        if [(rule.chain, rule.target.name) for rule in found] != [(rule.chain, rule.target.name) for rule in rules]:
            raise KernelError(
                f"the chain {CHAIN} does not hold what was written to it; another program changed it at that moment"
            )
        self._read_back[family] = (found, rules)

    def place_jump(self, family: Family) -> None:
        """Put one jump to our chain at the top of the hook, and take away any other, in one step."""
        with self._changing(family) as table:
            self._delete_jumps(table)
            self._chain(table, HOOK).insert_rule(_new_jump(family))
        _, jumps = self.read(family)
        if jumps != (0,):
            raise KernelError(f"the jump to {CHAIN} is not where it was put; another program changed {HOOK}")

    def remove(self, family: Family, lock_seconds: float | None = None) -> tuple[str, ...]:
        """Take away the jumps, the rules and the chains, in one step; nothing happens where there are none. Gives the
        chains that stay, without rules, since a rule of another program jumps to them. `lock_seconds` is how long to
        wait for iptables' lock, if not as long as usual."""
        iptc = library()
        with self._translated(family, "read"):
            table = self._refreshed(family)
            if not any(table.is_chain(name) for name in CHAINS) and not self._jumps(table):
                return ()
        kept = []
        with self._changing(family, lock_seconds) as table:
            self._delete_jumps(table)
            present = [name for name in CHAINS if table.is_chain(name)]
            for name in present:
                table.flush_entries(name)
            for name in present:
                try:
                    table.delete_chain(name)
                except iptc.IPTCError as error:
                    log.debug("the chain %s can't be deleted: %s", name, error)
                    kept.append(name)
        return tuple(kept)

    def unhook(self, family: Family, lock_seconds: float | None = None) -> None:
        """Take away the jumps alone: no packet meets the chains any more, and their counters stay."""
        with self._translated(family, "read"):
            if not self._jumps(self._refreshed(family)):
                return
        with self._changing(family, lock_seconds) as table:
            self._delete_jumps(table)

    def counters(self, family: Family, *, settled: bool = False) -> PacketCount | None:
        """What our DROP rule has counted; None without one. Another program that changes the table sets all counters
        back and adds them again a moment later; with `settled` this waits for its end."""
        with self._locked() if settled else nullcontext(), self._translated(family, "read"):
            return self._counted(self._refreshed(family))

    def _counted(self, table: Any) -> PacketCount | None:
        entry = table.first_rule(CHAIN) if table.is_chain(CHAIN) else None
        found = None
        while entry:
            # Not decoded: this is asked every second.
            if table.get_target(entry) == _VERDICT.encode():
                found = PacketCount(int(entry.counters.pcnt), int(entry.counters.bcnt))
            entry = table.next_rule(entry)
        return found

    def _table(self, family: Family) -> Any:
        if family not in self._tables:
            iptc = library()
            mend()
            kind = iptc.Table if family is Family.V4 else iptc.Table6
            self._tables[family] = kind(TABLE, autocommit=False)
        return self._tables[family]

    def _refreshed(self, family: Family) -> Any:
        table = self._table(family)
        table.refresh()
        return table

    def _chain(self, table: Any, name: str) -> Any:
        return library().Chain(table, name)

    @contextmanager
    def _translated(self, family: Family, what: str) -> Iterator[None]:
        iptc = library()
        try:
            yield
        except (iptc.IPTCError, iptc.XTablesError, ValueError, OSError) as error:
            tool = "iptables" if family is Family.V4 else "ip6tables"
            reason = str(error).replace("b'", "'")
            hint = (
                "; it takes CAP_NET_ADMIN and CAP_NET_RAW: run as root or give it these"
                if "Permission" in reason or "root" in reason
                else ""
            )
            raise KernelError(f"the table {TABLE} of {tool} could not be {what}: {reason}{hint}") from error

    @contextmanager
    def _changing(self, family: Family, lock_seconds: float | None = None) -> Iterator[Any]:
        """Read, modify and commit under the lock that iptables takes."""
        with self._locked(lock_seconds), self._translated(family, "changed"):
            table = self._refreshed(family)
            yield table
            table.commit()

    @contextmanager
    def _locked(self, seconds: float | None = None) -> Iterator[None]:
        path = os.environ.get("XTABLES_LOCKFILE", _LOCK_FILE)
        try:
            # iptables makes the file with this mode too; an exclusive flock needs no right to write.
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._warn_once(path, error)
            yield
            return
        try:
            self._acquire(handle, path, seconds)
            yield
        finally:
            os.close(handle)

    def _acquire(self, handle: int, path: str, seconds: float | None) -> None:
        began = time.time()
        if seconds is None:
            seconds = self._lock_seconds if self._held_since is None else _HELD_LOCK_SECONDS
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    # Who it is can't be told: other processes can't be looked into from here.
                    self._held_since = self._held_since or began
                    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._held_since))
                    raise BusyError(
                        f"another program has held {path} since {since}; rules are left as they are"
                    ) from None
                time.sleep(_LOCK_PAUSE_SECONDS)
            else:
                self._held_since = None
                return

    def _warn_once(self, path: str, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "%s can't be opened (%s): rules are changed without the lock that iptables takes. Make it readable "
                "for this user, or name another file in XTABLES_LOCKFILE.",
                Path(path),
                error.strerror,
            )

    def _jumps(self, table: Any) -> list[tuple[int, Any]]:
        """Position and entry of each rule of the hook that jumps to our chain. Other rules are not decoded, since
        they may use extensions that are not installed."""
        found = []
        entry, position = table.first_rule(HOOK), 0
        while entry:
            if table.get_target(entry) == CHAIN.encode():
                found.append((position, entry))
            entry, position = table.next_rule(entry), position + 1
        return found

    def _delete_jumps(self, table: Any) -> None:
        # By position, the last one first: deleting by content would take the first rule that is equal.
        for position, _ in reversed(self._jumps(table)):
            if table._iptc.iptc_delete_num_entry(HOOK.encode(), position, table._handle) != 1:
                raise ValueError(f"the jump at position {position} could not be deleted: {table.strerror()}")

    def _rules(self, family: Family, table: Any) -> tuple[Rule, ...]:
        found = self._raw_rules(table)
        read_back, written = self._read_back.get(family, ((), ()))
        return written if found == read_back else found

    def _raw_rules(self, table: Any) -> tuple[Rule, ...]:
        found: list[Rule] = []
        for name in CHAINS:
            if table.is_chain(name):
                found += self._rules_of(table, name)
        return tuple(found)

    def _rules_of(self, table: Any, name: str) -> list[Rule]:
        found = []
        for rule in self._chain(table, name).rules:
            matches = [_extension(match) for match in rule.matches]
            # Addresses, interfaces and protocol: ours name none, so whatever is there makes it another rule.
            goto = bool(rule.target.goto)
            header = _without_goto(rule.get_ip())
            if any(header):
                matches.append(Extension("header", (("bytes", (header.hex(),)),)))
            found.append(Rule(tuple(matches), _extension(rule.target), name, goto))
        return found


def _new_jump(family: Family) -> Any:
    """The jump to our chain, which must be there already."""
    jump = _new_rule(family)
    jump.in_interface = "!lo"
    jump.create_target(CHAIN)
    return jump


def _entry_of(rule: Any) -> Any:
    """The entry of a rule that was built here. Its offsets are filled in when the library serializes the rule."""
    if not rule.rule:
        raise ValueError("a rule has no target")
    return rule.entry


def _selection(entry: Any) -> tuple[bytes, int]:
    """What of all packets an entry is for: its addresses, interfaces and protocol, and the size of its matches."""
    header = entry.ip if hasattr(entry, "ip") else entry.ipv6
    return bytes(header), int(entry.target_offset)


def _new_rule(family: Family) -> Any:
    return library().Rule() if family is Family.V4 else library().Rule6()


def _built(family: Family, rule: Rule) -> Any:
    # All options of a match are set before the next one is made: the library gives options of a later match of the
    # same kind to the wrong one otherwise.
    built = _new_rule(family)
    for match in rule.matches:
        _set_options(built.create_match(match.name), match)
    _set_options(built.create_target(rule.target.name, goto=rule.goto), rule.target)
    return built


def _without_goto(header: Any) -> bytes:
    """The header of a rule, less the flag that says how its target is reached."""
    copied = type(header).from_buffer_copy(header)
    copied.flags &= ~(header.IPT_F_GOTO if hasattr(header, "IPT_F_GOTO") else header.IP6T_F_GOTO)
    return bytes(copied)


def _set_options(built: Any, extension: Extension) -> None:
    for name, values in extension.options:
        built.set_parameter(name, list(values))


def _extension(read: Any) -> Extension:
    options = read.get_all_parameters()
    return Extension(read.name, tuple((name, tuple(values)) for name, values in options.items()))
