"""What the service needs from outside, one interface each. The edges implement them, tests put fakes in their place.

An interface says all that its users may rely on: shapes, units, and the errors a method raises. Times are in seconds;
"Unix seconds" are wall-clock time since 1970, all others come from a clock that never goes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from sikkerguard.core.firewall.diff import Operation
    from sikkerguard.core.firewall.state import Inspection
    from sikkerguard.core.host.flows import Flow
    from sikkerguard.core.host.surroundings import Surroundings
    from sikkerguard.core.lists.allowlist import Allowlist
    from sikkerguard.core.lists.pull_memory import PullMemory
    from sikkerguard.core.lists.sources import VerifiedList
    from sikkerguard.core.net.family import Family
    from sikkerguard.core.net.networks import Blocklist
    from sikkerguard.core.reports.outcomes import Outcome, Recovered, ReportStats
    from sikkerguard.core.reports.rows import ReportAnswer, ReportBatch, Row
    from sikkerguard.core.reports.screen import Screen
    from sikkerguard.core.selftest import ProbeResult
    from sikkerguard.core.sikkerapi.endpoint import EndpointMemory
    from sikkerguard.core.traffic.records import PendingTraffic, SavedTraffic
    from sikkerguard.core.traffic.sample import PacketCount, TrafficSample

    # What is kept on disk. The mapping: good settings as they were written, by variable, without the key.
    Saved = VerifiedList | Allowlist | PullMemory | EndpointMemory | Mapping[str, str]


class Clock(Protocol):
    """Time and chance."""

    def wall(self) -> float:
        """Unix seconds; may be set forward and back by others."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary beginning: the event loop's time."""

    def random(self) -> float:
        """A number from 0 to 1, 1 excluded."""


class FirewallBackend(Protocol):
    """The kernel's packet filter, driven by one program: `ipset-legacy`, or the dry run that only says what it would
    do. Called by one thread. Every method raises `KernelError` when the kernel refuses, `BusyError` where another
    program is in the way; the committed list stays in force then.
    """

    name: str

    def adopt(self, verified: Blocklist, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Begin with this list, which passed its trial earlier: finish or undo what a process that died was in the
        middle of, without a gap in the blocking. Returns what had to be done. After an error, `repair` may go on, and
        this is to be called again after it."""

    def repair(self, allowlist: Allowlist) -> tuple[Operation, ...]:
        """Make the kernel hold the committed list and this allowlist, whatever other programs did. Returns what had to
        be done: nothing where nothing had changed."""

    def read_committed(self) -> Blocklist:
        """The list that the kernel blocks by now, whoever put it there; empty where there is none."""

    def allow(self, allowlist: Allowlist) -> None:
        """Make the allow sets hold this allowlist: new entries are added before old ones are removed."""

    def stage(self, blocklist: Blocklist) -> None:
        """Load a candidate beside the committed list, and read it back. No packet meets it yet."""

    def begin_trial(self) -> None:
        """Let the candidate block too, for ten seconds from the last `renew_trial`."""

    def renew_trial(self) -> None:
        """Prolong the trial. `KernelError` also where it had lapsed, so that the self-test proves nothing."""

    def commit(self) -> None:
        """Put the candidate in the committed list's place, with no moment in which neither blocks."""

    def rollback(self) -> None:
        """End the trial and discard the candidate."""

    def unhook(self) -> None:
        """Take our rules out of the packets' way, so that their counters are final. The sets stay."""

    def remove(self) -> None:
        """Remove every object of ours. `BusyError` where something harmless stays because another program uses it."""

    def hold_counters(self) -> None:
        """Add up what the DROP rules count, but give none of it to `read_traffic` until `resume_counters`."""

    def resume_counters(self, counters: Mapping[Family, PacketCount]) -> None:
        """Count on from these readings of the DROP rules, which are reported already."""

    def read_traffic(self) -> tuple[TrafficSample, ...]:
        """What was dropped since the last call, attributed to its sources; one sample for each reading that was
        made, repairs included."""

    def inspect(self, family: Family, address: int) -> Inspection:
        """What the kernel does with packets from this address now."""

    def has_state(self) -> bool:
        """Whether any object of ours is in the kernel."""

    def close(self) -> None:
        """Close the sockets. Nothing in the kernel changes."""


class ApiConnector(Protocol):
    """Finds and proves the addresses of SikkerAPI, or of a proxy, and sends requests to no others."""

    @property
    def broken(self) -> bool:
        """Whether an address in use could not be connected to since the last `use`."""

    async def resolve(self) -> tuple[str, ...]:
        """The addresses that the name has now; empty where it does not resolve. Takes ten seconds at most."""

    async def prove(self, address: str) -> str:
        """Make a handshake with this address. Returns why it is not genuine, or an empty text where it is."""

    def use(self, addresses: Sequence[str]) -> None:
        """Send all further requests to these addresses, in this order."""


class Feed(Protocol):
    """A source of addresses. What else a new one needs says docs/architecture.md, "To add"."""

    @property
    def name(self) -> str:
        """What the feed is called in the status and on disk; it never changes."""

    @property
    def interval(self) -> float:
        """Seconds between two pulls that went well; infinite where `version` says when there is something new."""

    async def version(self) -> object:
        """What differs once there is a new version, without reading it; None where only a pull can tell."""

    def stream(self) -> AsyncGenerator[bytes, None]:
        """The content, piece by piece, as it comes. To be closed by whoever does not read it to its end
        (`contextlib.aclosing`): connections are closed then.

        Raises:
            FetchError: it could not be had, or not whole.
            ListError: what is there can't be a list.
        """

    @property
    def remaining(self) -> int | None:
        """What is left of the day's quota of pulls after the last `stream`, or None where that is not known."""


class Probes(Protocol):
    """The connections that the self-test makes."""

    async def run(self, api_addresses: Iterable[str]) -> tuple[ProbeResult, ...]:
        """Test gateways, resolvers and these addresses of the API, all at once. Takes some seconds at most."""


class PacketWatch(Protocol):
    """Packets that leave this host."""

    def seen(self) -> frozenset[Flow]:
        """The flows that these packets open, since the beginning; to be called about once a second."""


class Connections(Protocol):
    """Connections of this host, and of what is behind it. Methods block for some seconds at most."""

    def flows(self, covers: Callable[[Family, int], bool] | None = None) -> tuple[Flow, ...]:
        """All flows; with `covers` only those to peers for which it is true. Raises `KernelError`."""

    def watch(self) -> AbstractContextManager[PacketWatch]:
        """A watch of outgoing packets as long as the context lasts, which raises `KernelError` as it is entered."""


class Signal(Protocol):
    """Something that wakes whoever waits for it."""

    def set(self) -> None:
        """Wake the waiter; it finds out itself what there is to do."""


class HostMonitor(Protocol):
    """Watches addresses, routes, resolver files and SSH sessions, and sets a signal when any of them changed."""

    def start(self) -> None:
        """Begin, within the running event loop. Raises `OSError`."""

    def stop(self) -> None:
        """End."""


class HostObserver(Protocol):
    """Finds out what this host must never be cut off from."""

    def observe(self, ssh_ports: Iterable[int], listed: Blocklist) -> Surroundings:
        """Gateways, resolvers, own addresses, and peers of SSH sessions. `ssh_ports` are further ports of sshd; of
        connections that nobody recorded, those from addresses in `listed` don't count as sessions. For one thread at a
        time; blocks for some seconds at most. Raises `KernelError`."""

    def monitor(self, signal: Signal) -> HostMonitor:
        """What sets this signal soon after any of it changed, once it is started."""


class StateStore(Protocol):
    """The service's own files, one for each kind of what is kept. `save` and `claim` raise `OSError`."""

    def claim(self) -> bool:
        """Own the directory; True where it had to be made again."""

    def save(self, value: Saved) -> None:
        """Write this in place of what was kept of its kind."""

    def load_list(self) -> VerifiedList | None:
        """The list that was written last. Raises `ListError` where the file is damaged."""

    def load_allowlist(self) -> Allowlist:
        """What was written last; empty where there is nothing."""

    def load_pull_memory(self) -> PullMemory:
        """What was written last; empty where there is nothing."""

    def load_endpoint(self) -> EndpointMemory:
        """What was written last; empty where there is nothing."""


class TrafficRecords(Protocol):
    """What was counted, on disk. Every method raises `RecordError`; `close` is the last one."""

    def load(self) -> SavedTraffic:
        """What earlier runs have counted."""

    def save(self, pending: PendingTraffic) -> None:
        """Add what was counted since the last save; all of it or, on an error, none."""

    def close(self) -> None:
        """Close the database."""


class ReportOutbox(Protocol):
    """Report rows on disk. Every method is one transaction and raises `RecordError`."""

    def recover(self) -> Recovered:
        """Resolve requests that a dead process left open: rows that can't have been accepted wait again."""

    def gather(
        self, day: int, make_row: Callable[[bytes, Mapping[tuple[int, int], int]], Row | None], screen: Screen
    ) -> None:
        """Make rows of what was blocked. `make_row` gets a source (packed) and its packets by (protocol, port), and
        returns None where nothing is to be reported."""

    def discard(self) -> None:
        """Forget what waits, since nothing is to be reported."""

    def take(self, most: int, screen: Screen) -> ReportBatch | None:
        """Mark the first rows as sending, at most so many, and return them; None where none waits."""

    def on_wire(self, request: int) -> None:
        """Note that the last byte of this request is about to leave."""

    def apply(self, outcome: Outcome) -> None:
        """Record what became of a request."""

    def quota(self, day: int, key: str) -> tuple[int | None, int | None]:
        """Reports that may be sent with this key, on this day still and on a whole day; None where nobody said."""

    def stats(self, day: int, key: str) -> ReportStats:
        """How reporting stands."""


class ReportClient(Protocol):
    """SikkerAPI's endpoint for reports."""

    async def report(self, body: bytes, before_last_byte: Callable[[], None]) -> ReportAnswer:
        """Send one request; `before_last_byte` is called when all but one byte has left, and may raise to stop it.

        Raises:
            Unanswered: the request may have been accepted.
            FetchError: it was certainly not accepted.
        """


class ServiceManager(Protocol):
    """systemd, by sd_notify(3). What is not taken at once is sent later; nothing raises."""

    def ready(self, status: str) -> None:
        """READY=1 with this STATUS."""

    def status(self, status: str) -> None:
        """STATUS, one line."""

    def reloading(self) -> None:
        """RELOADING=1."""

    def ping_watchdog(self) -> None:
        """WATCHDOG=1."""

    def extend_timeout(self, seconds: float) -> None:
        """EXTEND_TIMEOUT_USEC: the start goes on for so long at most."""

    def stopping(self) -> None:
        """STOPPING=1."""

    def pending_job(self) -> str:
        """The job that systemd has for our unit: `restart`, `shutdown`, `stop`, or empty. Blocks for a second."""

    def close(self) -> None:
        """Close the socket."""


class KernelLog(Protocol):
    """A source of the kernel's own log lines. `name` is `journald` or `kmsg`; `lost` counts records that were
    overwritten before they were read."""

    name: str
    lost: int

    def fileno(self) -> int:
        """The descriptor that becomes readable with new records."""

    def read(self) -> list[str]:
        """The messages that are there now, some hundred at most. Raises `OSError` where the source is gone."""

    def close(self) -> None:
        """Close the source."""


class Server(Protocol):
    """Where the service can be asked."""

    name: str

    async def open(self) -> None:
        """Listen; nothing where it does already. Raises `ListenError`."""

    async def close(self) -> None:
        """Close everything."""


class Operations(Protocol):
    """What the page and the control socket may ask of the service, in the event loop."""

    def failures(self) -> tuple[str, ...]:
        """Why it can't be said that the list blocks, a sentence each; empty where it does."""

    def status(self) -> Mapping[str, object]:
        """What `/status` shows, for JSON."""

    def reload(self, *, accept: bool) -> Mapping[str, object]:
        """Read the settings again and pull now, taking that list whatever its size if `accept` says so. Returns, for
        JSON, the number `pull`, which the status names as `pullAnswered` when that was done, and `complaint`, a
        sentence on settings that can't be used, or empty."""
