"""Our chains and the jump to them, through python-iptables (1.0.1 to 1.2.0).

The library is imported when it is first needed: that takes 0.2 s and runs modprobe. What it would do by itself and must
not: commit on its own (autocommit hides failures), use a table's copy from an earlier read (each use here refreshes
it), and write without the lock that iptables takes. A commit replaces the whole table in one step, so that a chain is
rewritten without a moment in between.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sikkerguard.core.firewall.names import CHAIN, CHAINS, HOOK, TABLE, tool_name
from sikkerguard.core.firewall.rules import Extension, Rule
from sikkerguard.core.net.family import Family
from sikkerguard.core.traffic.sample import PacketCount
from sikkerguard.edges.kernel.ipset_legacy.iptc_library import library
from sikkerguard.edges.kernel.ipset_legacy.iptc_patches import apply_patches
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

# The lock file of iptables(8), unless XTABLES_LOCKFILE names another.
_LOCK_FILE = "/run/xtables.lock"
# Seconds to wait for it: the thread that waits has to renew the trial too. A lock that was held the last time is waited
# for more shortly, since the next attempt comes soon.
_LOCK_SECONDS, _HELD_LOCK_SECONDS = 1.0, 0.1
_LOCK_PAUSE_SECONDS = 0.02
_VERDICT = "DROP"


class Chains:
    """Everything that is done to chains. Every method raises `KernelError` when the kernel or the library refuses, and
    `BusyError` where another program holds the lock, or python-iptables is being installed."""

    def __init__(self) -> None:
        self._tables: dict[Family, Any] = {}
        self._warned = False
        # When another program was first found to hold the lock, in Unix seconds.
        self._held_since: float | None = None
        # (as read back, as written) of the rules that we wrote: some versions of iptables print them differently.
        self._read_back: dict[Family, tuple[tuple[Rule, ...], tuple[Rule, ...]]] = {}

    def read(self, family: Family) -> tuple[tuple[Rule, ...] | None, tuple[int, ...]]:
        """The rules of our chains, or None without the one that the hook jumps to; and the positions in the hook, from
        0, of the jumps to it, -1 for one that is not as we write it."""
        with self._translated(family, "read"):
            table = self._refreshed(family)
            rules = self._rules(family, table) if table.is_chain(CHAIN) else None
            wanted = _selection(_entry_of(_new_jump(family))) if rules is not None else None
            return rules, tuple(
                position if _selection(entry) == wanted else -1 for position, entry in self._jumps(table)
            )

    def write(self, family: Family, rules: tuple[Rule, ...], dropped: PacketCount) -> None:
        """Make our chains consist of these rules, in one step, and read them back. The DROP rule goes on counting from
        the present one's counter, or from `dropped` if that is more."""
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
        """Put one jump to our chain at the top of the hook, and remove any other, in one step."""
        with self._changing(family) as table:
            self._delete_jumps(table)
            self._chain(table, HOOK).insert_rule(_new_jump(family))
        _, jumps = self.read(family)
        if jumps != (0,):
            raise KernelError(f"the jump to {CHAIN} is not where it was put; another program changed {HOOK}")

    def remove(self, family: Family, lock_seconds: float | None = None) -> tuple[str, ...]:
        """Remove the jumps, the rules and the chains, in one step. Returns the chains that stay, without rules, since a
        rule of another program jumps to them. `lock_seconds`: how long to wait for the lock, if not as usual."""
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
        """Remove the jumps alone: no packet meets the chains any more, and their counters stay."""
        with self._translated(family, "read"):
            if not self._jumps(self._refreshed(family)):
                return
        with self._changing(family, lock_seconds) as table:
            self._delete_jumps(table)

    def counters(self, family: Family, *, settled: bool = False) -> PacketCount | None:
        """What our DROP rule has counted; None without one. A program that changes the table resets all counters and
        adds them again a moment later; with `settled` this waits for its end."""
        with self._locked() if settled else nullcontext(), self._translated(family, "read"):
            return self._counted(self._refreshed(family))

    def _counted(self, table: Any) -> PacketCount | None:
        entry = table.first_rule(CHAIN) if table.is_chain(CHAIN) else None
        found = None
        while entry:
            # The rule is not decoded, since this is called every second.
            if table.get_target(entry) == _VERDICT.encode():
                found = PacketCount(int(entry.counters.pcnt), int(entry.counters.bcnt))
            entry = table.next_rule(entry)
        return found

    def _refreshed(self, family: Family) -> Any:
        if family not in self._tables:
            iptc = library()
            apply_patches()
            kind = iptc.Table if family is Family.V4 else iptc.Table6
            self._tables[family] = kind(TABLE, autocommit=False)
        self._tables[family].refresh()
        return self._tables[family]

    def _chain(self, table: Any, name: str) -> Any:
        return library().Chain(table, name)

    @contextmanager
    def _translated(self, family: Family, what: str) -> Iterator[None]:
        iptc = library()
        try:
            yield
        except (iptc.IPTCError, iptc.XTablesError, ValueError, OSError) as error:
            reason = str(error).replace("b'", "'")
            hint = (
                "; it takes CAP_NET_ADMIN and CAP_NET_RAW: run as root or give it these"
                if "Permission" in reason or "root" in reason
                else ""
            )
            raise KernelError(
                f"the table {TABLE} of {tool_name(family)} could not be {what}: {reason}{hint}"
            ) from error

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
            seconds = _LOCK_SECONDS if self._held_since is None else _HELD_LOCK_SECONDS
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    # Which one is not known: this process may not look into others.
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
        """(position, entry) of each rule of the hook that jumps to our chain. Other rules are not decoded, since their
        extensions may not be installed."""
        found = []
        entry, position = table.first_rule(HOOK), 0
        while entry:
            if table.get_target(entry) == CHAIN.encode():
                found.append((position, entry))
            entry, position = table.next_rule(entry), position + 1
        return found

    def _delete_jumps(self, table: Any) -> None:
        # By position, the last one first: deleting by content would delete the first rule that is equal.
        for position, _ in reversed(self._jumps(table)):
            if table._iptc.iptc_delete_num_entry(HOOK.encode(), position, table._handle) != 1:
                raise ValueError(f"the jump at position {position} could not be deleted: {table.strerror()}")

    def _rules(self, family: Family, table: Any) -> tuple[Rule, ...]:
        found = self._raw_rules(table)
        read_back, written = self._read_back.get(family, ((), ()))
        return written if found == read_back else found

    def _raw_rules(self, table: Any) -> tuple[Rule, ...]:
        found = []
        for name in filter(table.is_chain, CHAINS):
            for rule in self._chain(table, name).rules:
                matches = [_extension(match) for match in rule.matches]
                # Addresses, interfaces and protocol: ours name none, so whatever is there makes it another rule.
                header = _without_goto(rule.get_ip())
                if any(header):
                    matches.append(Extension("header", (("bytes", (header.hex(),)),)))
                found.append(Rule(tuple(matches), _extension(rule.target), name, bool(rule.target.goto)))
        return tuple(found)


def _new_jump(family: Family) -> Any:
    """The jump to our chain, which must exist already."""
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
    """Which packets an entry is for: its addresses, interfaces and protocol; and the size of its matches."""
    header = entry.ip if hasattr(entry, "ip") else entry.ipv6
    return bytes(header), int(entry.target_offset)


def _new_rule(family: Family) -> Any:
    return library().Rule() if family is Family.V4 else library().Rule6()


def _built(family: Family, rule: Rule) -> Any:
    # All options of a match are set before the next one is made: those that are set later are lost silently where a
    # match of the same kind was made in between, in whatever rule (findings/python-iptables-second-match.sh).
    built = _new_rule(family)
    for match in rule.matches:
        _set_options(built.create_match(match.name), match)
    _set_options(built.create_target(rule.target.name, goto=rule.goto), rule.target)
    return built


def _without_goto(header: Any) -> bytes:
    """The header of a rule, without the flag that says how its target is reached."""
    copied = type(header).from_buffer_copy(header)
    copied.flags &= ~(header.IPT_F_GOTO if hasattr(header, "IPT_F_GOTO") else header.IP6T_F_GOTO)
    return bytes(copied)


def _set_options(built: Any, extension: Extension) -> None:
    for name, values in extension.options:
        built.set_parameter(name, list(values))


def _extension(read: Any) -> Extension:
    options = read.get_all_parameters()
    return Extension(read.name, tuple((name, tuple(values)) for name, values in options.items()))
