"""One tree of errors. Each message is a sentence: what happened, what stays protected, what to do."""

from __future__ import annotations


class SikkerGuardError(Exception):
    """The root: whatever the command line turns into a message and an exit code."""


class ConfigError(SikkerGuardError):
    """The configuration can't be used; `complaints` has one sentence for each fault, naming its variable. `key` is the
    key of the moment and its source, where that is found all the same: no other than the present one is to be used."""

    def __init__(self, complaints: list[str], key: tuple[str, str] | None = None) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints
        self.key = key


class FetchError(SikkerGuardError):
    """A list could not be had, or reports could not be sent; nothing of the request took effect.

    `retry_after`: seconds that the server asked to be left alone for, or None. When it is tried again depends on the
    kind of error: see `core.schedule`.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(FetchError):
    """The line, the name service or the server does not work; the same request may succeed at any moment."""


class KeyRefused(FetchError):
    """The server does not know the key, or refuses it: only a person can put that right."""


class SettingsRefused(FetchError):
    """By these settings nothing can be asked, or what answers is not what they name: only a person can put it right."""


class QuotaSpent(FetchError):
    """The server takes no more for now. `remaining`: what it says is left of the day's quota, `limit`: how much that is
    a day; None where it did not say."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        remaining: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.remaining = remaining
        self.limit = limit


class BodyRefused(FetchError):
    """The server refused the body of the request: a smaller one may be accepted. `content`: it objects to what is in
    it, rather than to its size."""

    def __init__(self, message: str, *, content: bool, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.content = content


class SendingFailed(Unreachable):
    """The connection broke while the body was on its way: a smaller one may come through."""


class Unanswered(FetchError):
    """A request left whole, and its answer was lost or says nothing clear: it may have taken effect."""


class ListError(SikkerGuardError):
    """What was fetched, or found in the cache, may not be put into force. `source` names the source of addresses whose
    new version it is, where that is known."""

    source = ""


class HeldBackError(ListError):
    """The list looks wrong, but might be right: if the next one shows no other `suspicions`, it will be believed."""

    def __init__(self, message: str, suspicions: frozenset[str]) -> None:
        super().__init__(message)
        self.suspicions = suspicions


class KernelError(SikkerGuardError):
    """The kernel refused, or holds something else than it was given."""


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
