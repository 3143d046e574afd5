"""Whatever a request ends with is a sentence; what nobody has thought of is told with a traceback, once."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.edges.sikkerapi import failures
from sikkerguard.edges.sikkerapi.failures import CancelledByLibraryError, reason, sentence, within


@pytest.fixture(autouse=True)
def _nothing_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_logged", set())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ReadTimeout(""), "SikkerAPI did not answer in time (nothing came)"),
        (httpx.RemoteProtocolError("odd\x1b[2K"), "SikkerAPI's answer broke off or is not HTTP (odd?[2K)"),
        (httpx.ConnectError("refused"), "SikkerAPI can't be reached (refused)"),
        (ConnectionResetError(104, "reset"), "SikkerAPI can't be reached ([Errno 104] reset)"),
        (ssl.SSLError(1, "\u202ereversed"), "SikkerAPI can't be reached (?reversed)"),
        (httpx.InvalidURL("r\u0430ypal"), "SikkerAPI's answer can't be understood (r?ypal)"),
        (ValueError("Invalid IPv6 URL"), "SikkerAPI's answer can't be understood (Invalid IPv6 URL)"),
        (UnicodeError(""), "SikkerAPI's answer can't be understood (UnicodeError)"),
    ],
)
def test_each_kind_of_failure_is_a_sentence_and_no_traceback(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert sentence(error) == said
    assert caplog.records == []


def fail(kind: type[Exception], words: str) -> Exception:
    try:
        raise kind(words)
    except kind as error:
        return error


def test_what_nobody_has_thought_of_is_logged_with_a_traceback_once_for_each_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        assert sentence(fail(KeyError, "x")) == "SikkerAPI's answer was not understood (KeyError: 'x')"
        assert "RuntimeError" in sentence(fail(RuntimeError, "y"))
        sentence(ZeroDivisionError("never raised, so of no place"))
    kinds = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert kinds == [KeyError, RuntimeError, ZeroDivisionError]
    assert "blocking goes on" in caplog.text
    assert "raise kind(words)\nKeyError: 'x'" in caplog.text


@given(st.text(), st.sampled_from([httpx.ReadError, OSError, ValueError, RuntimeError]))
def test_whatever_words_it_has_the_sentence_is_printable_and_ends(words: str, kind: type[Exception]) -> None:
    said = sentence(kind(words))
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 300
    assert reason(kind(words))


# The deadline


async def _cancelling_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(5)


def test_work_that_a_library_cancels_is_an_error_and_no_stop() -> None:
    with pytest.raises(CancelledByLibraryError):
        asyncio.run(within(5, _cancelling_itself()))


def test_who_is_cancelled_is_cancelled_and_so_is_the_work() -> None:
    async def cancelled() -> bool:
        ended = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        task = asyncio.create_task(within(60, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended.is_set()

    assert asyncio.run(cancelled())


def test_work_that_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(within(0.01, asyncio.sleep(60)))
