"""A request as the stand-in sees it and an answer before it meets the wire."""

from __future__ import annotations

import enum
import gzip
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = "application/json"
PLAIN = "text/plain; charset=utf-8"

_SMALLEST_WORTH_PACKING = 256


class Refused(ValueError):
    """What the client sent can't be taken; the message is the sentence to answer."""


class Endpoint(enum.StrEnum):
    """The endpoints that the service asks; the values are what tests and paths call them."""

    BLACKLIST = "blacklist"
    BULK_REPORT = "bulk-report"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; its Content-Length follows from the body."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body already read.

    `path` is as sent, `query` its decoded pairs. `problem` is the answer to a body that could not or would
    not be read.
    """

    client: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    problem: Answer | None = None

    def header(self, name: str) -> str:
        """The first header of that name, in whatever case, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    @property
    def accepts_gzip(self) -> bool:
        """Whether Accept-Encoding names gzip and doesn't rule it out with q=0."""
        for offer in self.header("Accept-Encoding").lower().split(","):
            coding, _, parameters = offer.partition(";")
            if coding.strip() in ("gzip", "*"):
                weight = parameters.replace(" ", "").removeprefix("q=")
                return weight.strip("0.") != "" if parameters else True
        return False


def endpoint_of(path: str) -> Endpoint | None:
    """The endpoint that a path means, if any."""
    return next((endpoint for endpoint in Endpoint if path == f"/v1/key/{endpoint}"), None)


def json_answer(value: Mapping[str, object], status: int = 200, **headers: str) -> Answer:
    """JSON, with headers whose underscores become hyphens."""
    pairs = tuple((name.replace("_", "-"), text) for name, text in headers.items())
    return Answer(status, json.dumps(value).encode() + b"\n", JSON, pairs)


def error_answer(status: int, message: str, **headers: str) -> Answer:
    """The service's form of an error: `{"error": "..."}`."""
    return json_answer({"error": message}, status, **headers)


def gzipped(answer: Answer) -> Answer:
    """The same answer packed, unless it is too short to gain by it."""
    if len(answer.body) < _SMALLEST_WORTH_PACKING:
        return answer
    headers = (*answer.headers, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"))
    return replace(answer, body=gzip.compress(answer.body, compresslevel=5), headers=headers)
