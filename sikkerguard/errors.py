"""One tree of errors. Each message is a sentence: what happened, what stays protected, what to do."""

from __future__ import annotations

from enum import Enum


class SikkerGuardError(Exception):
    """The root: whatever the command line turns into a message and an exit code."""


class ConfigError(SikkerGuardError):
    """The configuration can't be used; `complaints` has one sentence for each fault, naming its variable. `key` is the
    key of the moment and its source, where that is found all the same: no other than the present one is to be used."""

    def __init__(self, complaints: list[str], key: tuple[str, str] | None = None) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints
        self.key = key


class Objection(Enum):
    """What a request was at fault for, so that less of it may do."""

    CONTENT = "content"
    SIZE = "size"


class FetchError(SikkerGuardError):
    """The list could not be had, or reports not be sent.

    `retryable` says whether the same request may succeed soon; `retry_after` is the time in seconds that the server
    asked for, where it did; `quota` is True where it refused for the quota's sake, of which `remaining` is left of
    `limit` a day, None where it did not say; `objection` is what the request itself was at fault for, if it was.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        retry_after: float | None = None,
        quota: bool = False,
        remaining: int | None = None,
        limit: int | None = None,
        objection: Objection | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.quota = quota
        self.remaining = remaining
        self.limit = limit
        self.objection = objection


class UnansweredError(FetchError):
    """A request went out whole and its answer was lost, or says nothing clear: it may have taken effect."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, retryable=True, retry_after=retry_after)


class ListError(SikkerGuardError):
    """What was fetched, or found in the cache, may not be put into force. `source` names the source of addresses whose
    new version it is, where that is known."""

    source = ""


class HeldBackError(ListError):
    """The list looks wrong, but might be right: if the next one shows no other `signs`, it will be believed."""

    def __init__(self, message: str, signs: frozenset[str]) -> None:
        super().__init__(message)
        self.signs = signs


class KernelError(SikkerGuardError):
    """The kernel refused, or holds something else than what it was told."""


class BusyError(KernelError):
    """Another program is in the way: it lists a set, holds a lock, or has a rule that refers to something of ours. What
    was asked for may succeed as soon as it lets go."""


class FullError(KernelError):
    """A set has no room for more entries."""


class SelfTestError(SikkerGuardError):
    """The host lost a connection that it had before the trial."""


class UnexpectedError(SikkerGuardError):
    """Something that nobody thought of; what it was stands in the log with its trace."""


class ListenError(SikkerGuardError):
    """Nobody can ask here how things are: the address or the socket can't be had."""


class RecordError(SikkerGuardError):
    """Counts and reports can't be kept on disk, or not be read from it."""


def as_sentence(error: Exception) -> str:
    """The error's message with a capital at its beginning; the full stop is the caller's."""
    message = str(error)
    return message[:1].upper() + message[1:]
