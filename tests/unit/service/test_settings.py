"""The configuration of a running service: what a reload takes and keeps, and what a person corrects."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sikkerguard.config.settings import Config
from sikkerguard.config.variables import FIXED
from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.state import State
from sikkerguard.errors import ConfigError
from sikkerguard.service.announcer import Announcer
from sikkerguard.service.pull_loop import PullLoop
from sikkerguard.service.settings import Reload, Settings, SettingsWatch
from sikkerguard.service.state_writer import StateWriter
from sikkerguard.service.supervision import UnexpectedErrors
from sikkerguard.service.wakeup import Wakeup
from tests.unit.service.assembly import assembled
from tests.unit.service.fakes import Changes, Manager, Store, dry_writer
from tests.unit.service.virtual_time import VirtualClock, run

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY, FILE = Path("/etc/sikkerguard/api-key"), Path("/etc/sikkerguard/sikkerguard.env")
GOOD = Config(api_key="sk_free_good", key_source="the file", texts={})
OTHER = replace(GOOD, score_min=70, texts={"SIKKER_SCORE_MIN": "70"})


class Files:
    """Files of settings, by their versions; and what is written there: settings, or what reading them raises."""

    def __init__(self, written: Config | Exception = GOOD) -> None:
        self.versions: dict[Path, int] = {KEY: 1, FILE: 1}
        self.written = written
        self.threads = set[int]()
        self.loads = 0

    def load(self) -> Config:
        self.threads.add(threading.get_ident())
        self.loads += 1
        if isinstance(self.written, Exception):
            raise self.written
        return self.written

    def files(self) -> Iterable[Path]:
        return tuple(self.versions)

    def file_stamp(self, path: Path) -> object:
        self.threads.add(threading.get_ident())
        return self.versions[path]

    def write(self, path: Path, written: Config | Exception | None = None) -> None:
        self.versions[path] += 1
        self.written = written or self.written


def settings(files: Files, config: Config = GOOD, writer: StateWriter | None = None) -> Settings:
    made = Settings(config, files, files, writer or dry_writer(), Changes())
    made.begin()
    return made


# A reload


def test_good_settings_are_used_and_whoever_waits_for_them_is_woken() -> None:
    files = Files()
    held, woken = settings(files), Changes()
    held.config.wake(woken)
    assert (held.config.value, held.trouble) == (GOOD, "")
    files.written = OTHER
    held.reload()
    assert (held.config.value, held.trouble, woken.times) == (OTHER, "", 1)


def test_what_can_not_change_stays_until_the_next_start(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "sikkerguard")
    fixed: dict[str, Any] = {
        "dry_run": True,
        "health_host": "::1",
        "health_port": 81,
        "state_dir": Path("/x"),
        "log_source": "kmsg",
        "log_level": "debug",
    }
    assert fixed.keys() == FIXED.keys()
    for name, value in fixed.items():
        caplog.clear()
        held = settings(Files(replace(OTHER, **{name: value})))
        held.reload()
        assert held.config.value == OTHER
        assert caplog.messages == [f"The new {FIXED[name]} takes effect with the next start only."]


@pytest.mark.parametrize("key", [None, ("sk_free_new", "another file")])
def test_wrong_settings_are_not_used_but_for_the_key(key: tuple[str, str] | None) -> None:
    start = replace(GOOD, key_missing="There is no key.")
    files = Files(ConfigError(["SIKKER_SCORE_MIN is no number.", "SIKKER_NONE is unknown."], key))
    held = settings(files, start)
    held.reload()
    assert held.trouble == (
        "The new configuration is not used, the one before it stays: SIKKER_SCORE_MIN is no number. "
        "SIKKER_NONE is unknown."
    )
    found = held.config.value
    if key is None:
        assert found is start
    else:
        # No other than the present one is to be used.
        assert (found.api_key, found.key_source, found.key_missing) == ("sk_free_new", "another file", "")
        assert found == replace(start, api_key="sk_free_new")
    files.written = OTHER
    held.reload()
    assert (held.config.value, held.trouble) == (OTHER, "")


def test_settings_that_can_be_used_in_part_say_what_is_the_matter() -> None:
    troubled = replace(OTHER, troubles=("One is unknown.", "One is wrong."), texts=None)
    assert settings(Files(), troubled).trouble == "One is unknown. One is wrong."
    held = settings(Files(troubled))
    held.reload()
    assert (held.config.value, held.trouble) == (troubled, "One is unknown. One is wrong.")


def test_a_disk_that_does_not_answer_is_waited_for_by_nobody() -> None:
    files = Files(TimeoutError())
    held = settings(files)
    files.threads.clear()
    held.reload()
    assert (held.config.value, held.trouble) == (GOOD, "The settings can't be read within 2 s; those before stay.")
    # Nothing of the disk was read by the loop.
    assert files.threads
    assert threading.get_ident() not in files.threads


def test_good_settings_are_kept_for_a_start_that_meets_wrong_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "sikkerguard")
    store, files = Store(), Files(OTHER)

    async def work() -> None:
        writer = StateWriter(store, Path("/state"), VirtualClock(), Changes())
        held = settings(files, GOOD, writer)
        held.save()
        await writer.settled(5)
        assert store.settings == {}
        held.reload()
        await writer.settled(5)
        assert store.settings == OTHER.texts
        # Those that are good in part only are not, nor are wrong ones; what may not be meant is said.
        files.written = replace(GOOD, texts=None, port_map={64222: "telnett"})
        held.reload()
        files.written = ConfigError(["SIKKER_SCORE_MIN is no number."])
        held.reload()
        await writer.settled(5)
        assert store.settings == OTHER.texts

    run(work())
    assert caplog.messages == list(replace(GOOD, port_map={64222: "telnett"}).hints)
    assert caplog.messages


# What a reload consists of


class Pulls(PullLoop):
    """Takes requests for pulls. `cures`: a pull by these settings needs nobody's correction."""

    def __init__(self, *, needed: bool = False, cures: bool = True) -> None:
        self.needs_correction = needed
        self.cures = cures
        self.requests: list[tuple[float, bool]] = []

    def pull_now(self, *, accept: bool = False) -> int:
        self.requests.append((asyncio.get_running_loop().time(), accept))
        self.needs_correction = self.needs_correction and not self.cures
        return len(self.requests)


class Bench:
    """A reload of these files, and a service manager that hears of it."""

    def __init__(self, files: Files, *, needed: bool = False, cures: bool = True) -> None:
        self.files = files
        self.settings = settings(files)
        self.pulls = Pulls(needed=needed, cures=cures)
        self.manager = Manager()
        self.state = State(0.0, dry_run=False)
        self.announcer = Announcer(self.manager, VirtualClock(), Wakeup(), self)
        self.reload = Reload(self.settings, self.pulls, self.announcer, UnexpectedErrors())
        self.watch = SettingsWatch(self.reload)

    def get_ready(self) -> None:
        """As once the chain stands and a pull was tried."""
        pull, repair = replace(self.state.pull, pulls=1), replace(self.state.repair, verified_ok_at=0.0)
        self.state = replace(self.state, pull=pull, repair=repair)
        self.announcer.announce()
        self.manager.lines.clear()


def test_a_reload_is_announced_and_pulls_by_the_new_settings() -> None:
    bench = Bench(Files(OTHER))

    async def work() -> None:
        bench.get_ready()
        assert (bench.reload.now(), bench.reload.now(accept=True)) == (1, 2)

    run(work())
    assert bench.settings.config.value == OTHER
    assert bench.pulls.requests == [(0, False), (0, True)]
    assert [line.partition(" ")[0] for line in bench.manager.lines] == ["RELOADING", "READY"] * 2


def test_who_is_allowed_by_new_settings_is_let_in_without_a_pull() -> None:
    async def work() -> None:
        whole = assembled()
        await whole.begin()
        looking = asyncio.create_task(whole.parts.repairs.run())
        await asyncio.sleep(3.0)
        colleague = AllowEntry(*parse_prefix("198.51.100.7"), "SIKKER_WHITELIST")
        whole.change(whitelist=(colleague,))
        whole.parts.settings.reload()
        await asyncio.sleep(0.2)
        assert colleague in whole.adapters.backend.allowlist.entries
        looking.cancel()

    run(work())


def test_before_the_service_is_ready_a_reload_says_nothing() -> None:
    bench = Bench(Files(OTHER))

    async def work() -> None:
        bench.reload.now()

    run(work())
    assert bench.pulls.requests == [(0, False)]
    assert bench.manager.lines == []


def test_a_defect_in_reading_keeps_no_pull_from_being_made(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(Files(ZeroDivisionError("a defect")))

    async def work() -> None:
        bench.get_ready()
        bench.reload.now()

    run(work())
    assert bench.settings.config.value == GOOD
    assert bench.pulls.requests == [(0, False)]
    assert [line.partition(" ")[0] for line in bench.manager.lines] == ["RELOADING", "READY"]
    assert caplog.messages[-1] == (
        "The settings can't be read (an error that nobody expected (ZeroDivisionError: a defect)); those before stay."
    )


# What a person corrects


def watching(bench: Bench, *steps: tuple[float, object]) -> None:
    """Run the watch, do each step at its second, and look for a while longer."""

    async def work() -> None:
        watch = asyncio.create_task(bench.watch.run())
        now = asyncio.get_running_loop().time
        for at, step in steps:
            await asyncio.sleep(at - now())
            assert callable(step)
            step()
        await asyncio.sleep(5)
        watch.cancel()

    run(work())


def test_a_key_that_is_corrected_counts_within_a_second() -> None:
    bench = Bench(Files(), needed=True)

    def need() -> None:
        bench.pulls.needs_correction = True

    watching(
        bench,
        (1.0, lambda: bench.files.write(KEY, OTHER)),
        # Nothing is to be corrected any more: another change waits for a reload, or for something that is.
        (3.0, lambda: bench.files.write(FILE)),
        (6.0, need),
    )
    first, second = (at for at, _ in bench.pulls.requests)
    assert 1 < first < 2
    assert 6 < second < 7
    assert bench.settings.config.value == OTHER


def test_wrong_settings_that_are_corrected_count_as_soon() -> None:
    bench = Bench(Files())

    def spoil() -> None:
        bench.files.write(FILE, ConfigError(["SIKKER_SCORE_MIN is no number."]))
        bench.settings.reload()

    watching(bench, (1.0, spoil), (3.0, lambda: bench.files.write(FILE, OTHER)))
    ((at, accept),) = bench.pulls.requests
    assert 3 < at < 4
    assert not accept
    assert (bench.settings.config.value, bench.settings.trouble) == (OTHER, "")


def test_what_is_still_wrong_is_tried_once() -> None:
    bench = Bench(Files(), needed=True, cures=False)

    def reload() -> None:
        bench.files.write(KEY)
        bench.reload.now()

    # What was read by a reload is not read again.
    watching(bench, (1.0, lambda: bench.files.write(KEY)), (8.0, reload))
    assert len(bench.pulls.requests) == 2
    assert bench.files.loads == 2


def test_a_file_that_is_being_written_is_waited_for() -> None:
    bench = Bench(Files(), needed=True)
    watching(bench, *((1 + 0.25 * number, lambda: bench.files.write(KEY)) for number in range(40)))
    ((at, _),) = bench.pulls.requests
    assert 10.75 < at < 11.75


def test_where_nothing_needs_a_correction_no_file_is_looked_at() -> None:
    bench = Bench(Files())
    bench.files.threads.clear()
    watching(bench, (1.0, lambda: bench.files.write(KEY, OTHER)))
    assert not bench.files.threads
    assert bench.pulls.requests == []
