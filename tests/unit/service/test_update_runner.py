"""What is in force, from the cache and from pulls, as the status shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.core.lists.sources import LOCAL_FILE, SIKKERAPI, ListedSource, VerifiedList
from sikkerguard.errors import KernelError
from tests.unit.core.lists.test_admission import listing
from tests.unit.service.assembly import CROWD, FILE, FakeAdapters, assembled, lines
from tests.unit.service.virtual_time import BEGINNING, run

if TYPE_CHECKING:
    import pytest


def kept() -> FakeAdapters:
    adapters = FakeAdapters()
    adapters.store.verified = VerifiedList(
        (ListedSource(SIKKERAPI, listing("203.0.113.7", "192.0.2.1"), BEGINNING - 7200),), BEGINNING - 7200
    )
    return adapters


def test_the_cached_list_is_admitted_against_the_allowlist_of_now() -> None:
    async def main() -> None:
        made = assembled(kept())
        await made.begin()
        state = made.parts.runner.state
        # 192.0.2.1 is the gateway.
        assert (state.blocked_v4, state.protecting, state.verified_at) == (1, True, BEGINNING - 7200)
        assert made.parts.runner.stays() == "the list verified 2h ago (1 entry) stays in force"
        assert made.parts.lists.listed == listing("203.0.113.7", "192.0.2.1")

    run(main())


def test_a_damaged_cache_is_said_and_nothing_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        adapters = kept()
        adapters.store.is_damaged = True
        made = assembled(adapters)
        await made.begin()
        assert not made.parts.runner.state.protecting
        assert made.parts.runner.stays() == "no list is in force yet"

    run(main())
    assert "The cached list is damaged" in caplog.text


def test_of_a_list_that_only_the_kernel_knows_its_size_is_shown() -> None:
    async def main() -> None:
        adapters = FakeAdapters()
        adapters.backend.committed = listing("203.0.113.7", "2001:db8::7")
        made = assembled(adapters)
        await made.begin()
        state = made.parts.runner.state
        assert (state.blocked_v4, state.blocked_v6, state.verified_at, state.sources) == (1, 1, None, ())
        assert made.parts.runner.stays() == "what the kernel blocks stays"

    run(main())


def test_what_is_committed_is_on_disk_before_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        change = await made.parts.runner.fetch()
        assert (made.parts.runner.state.quota_remaining, made.parts.runner.interval) == (None, 86400.0)
        await made.parts.runner.put_in_force([change], accept=False)
        assert made.adapters.store.verified is not None
        assert made.adapters.store.pulls.of(SIKKERAPI).versions
        made.adapters.sikkerapi.remaining = 7
        await made.parts.runner.fetch()
        assert made.parts.runner.state.quota_remaining == 7

    with caplog.at_level("INFO"):
        run(main())
    assert "Blocking 2000 IPs" in caplog.text


def test_troubles_of_sources_are_shown_until_they_are_over() -> None:
    async def main() -> None:
        made = assembled(custom_blacklist=FILE)
        await made.begin()
        runner = made.parts.runner
        runner.note_trouble(LOCAL_FILE, "it can't be read")
        assert [(each.name, each.entries, each.trouble) for each in runner.state.sources] == [
            (LOCAL_FILE, 0, "it can't be read")
        ]
        assert runner.local_file_stays() == "nothing is blocked by it, and everything else stays"
        made.adapters.file.write(lines("203.0.113.7"))
        change = await made.parts.local_file.change()
        assert change is not None
        await runner.put_in_force([change], accept=False)
        assert runner.local_file_stays() == "its version of 2s ago (1 entry) stays in force"
        runner.note_trouble(LOCAL_FILE, "")
        assert [each.trouble for each in runner.state.sources] == [""]

    run(main())


def test_what_is_pulled_is_by_the_settings_of_now() -> None:
    async def main() -> None:
        made = assembled()
        await made.begin()
        await made.parts.runner.fetch()
        made.change(score_min=90)
        made.parts.settings.reload()
        await made.parts.runner.fetch()
        assert made.adapters.sikkerapi.scores == [50, 90]
        await made.parts.runner.readmit()
        assert made.adapters.backend.steps.count("stage") == 0  # there is nothing in force

    run(main())


def test_a_dry_run_says_that_it_is_one(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        made = assembled(dry_run=True)
        await made.begin()
        change = await made.parts.runner.fetch()
        made.adapters.backend.fail("stage", KernelError("refused"), None)
        try:
            await made.parts.runner.put_in_force([change], accept=False)
        except KernelError:
            await made.parts.runner.put_in_force([change], accept=False)
        assert made.adapters.store.verified is None

    with caplog.at_level("INFO"):
        run(main())
    assert f"Dry run: would be blocking {len(CROWD)} IPs" in caplog.text
