"""The control path /standin/..., for a laboratory that talks to the stand-in over HTTP only.

It needs no key, so it answers only where control was asked for.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from sikkerguard.errors import SikkerGuardError
from tests.standin.faults import KINDS, Fault
from tests.standin.lists import parse_list
from tests.standin.messages import Answer, Endpoint, Refused, Request, error_answer, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.standin.entries import Entry
    from tests.standin.faults import FaultQueue
    from tests.standin.record import Record

PREFIX = "/standin/"


class Control:
    """GET and DELETE /standin/log, POST and DELETE /standin/faults, POST /standin/list."""

    def __init__(
        self,
        record: Record,
        faults: FaultQueue,
        replace: Callable[[Iterable[Entry]], None],
        clock: Callable[[], float],
    ) -> None:
        self._record = record
        self._faults = faults
        self._replace = replace
        self._clock = clock

    def answer(self, request: Request) -> Answer:
        """Does what is asked. Faults and lists that can't be understood are answered 400, and change nothing."""
        if request.problem is not None:
            return request.problem
        try:
            match request.method, request.path:
                case "GET", "/standin/log":
                    return json_answer(self._record.as_json())
                case "DELETE", "/standin/log":
                    self._record.clear()
                    return json_answer({"cleared": True})
                case "POST", "/standin/faults":
                    return self._queue(request.body)
                case "DELETE", "/standin/faults":
                    self._faults.clear()
                    return json_answer({"cleared": True})
                case "POST", "/standin/list":
                    return self._list(request.body)
                case _, "/standin/log" | "/standin/faults":
                    return error_answer(405, "Method not allowed")
                case _, "/standin/list":
                    return error_answer(405, "Method not allowed", Allow="POST")
        except (SikkerGuardError, ValueError) as error:
            return error_answer(400, str(error))
        return error_answer(404, "Not found")

    def _queue(self, body: bytes) -> Answer:
        endpoint, fault, times = parse_fault(body)
        self._faults.put(endpoint, fault, times)
        return json_answer({"endpoint": endpoint, "pending": self._faults.pending(endpoint)})

    def _list(self, body: bytes) -> Answer:
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused("the list must be UTF-8 text") from error
        entries = parse_list(text, now=self._clock())
        self._replace(entries)
        return json_answer({"count": len(entries)})


def parse_fault(body: bytes) -> tuple[Endpoint, Fault, int]:
    """Reads `{"endpoint": "blacklist", "kind": "cut_off", "times": 2, "missing": 100}`: what isn't one of
    the first three is a field of the fault (faults.py), `headers` an object, `body` text, or `bodyBase64`.

    `times` is 1 unless given. Raises Refused.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("a fault must be JSON") from error
    if not isinstance(given, dict):
        raise Refused("a fault must be a JSON object")
    name = given.pop("endpoint", None)
    kind = given.pop("kind", None)
    times = given.pop("times", 1)
    if name not in list(Endpoint):
        raise Refused(f"endpoint must be one of {', '.join(Endpoint)}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise Refused(f"kind must be one of {', '.join(KINDS)}")
    if not isinstance(times, int) or isinstance(times, bool):
        raise Refused("times must be a whole number")
    return Endpoint(name), _fault(KINDS[kind], given), times


_FORMS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "str": (str,),
    "bytes | None": (bytes, type(None)),
    "tuple[tuple[str, str], ...]": (tuple,),
}
"""What a field may hold, by its annotation, which is a string in that module."""


def _fault(kind: type[Fault], given: dict[str, Any]) -> Fault:
    values = _converted(given)
    forms = {field.name: _FORMS[str(field.type)] for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in forms:
            raise Refused(f"{kind.__name__} has no {name}")
        if not isinstance(value, forms[name]) or (isinstance(value, bool) and bool not in forms[name]):
            raise Refused(f"{name} has the wrong type")
    try:
        return kind(**values)
    except TypeError as error:
        raise Refused(f"{kind.__name__} needs more than that: {error}") from error


def _converted(given: dict[str, Any]) -> dict[str, Any]:
    """The same with bodies as bytes and headers as pairs."""
    values = dict(given)
    if "bodyBase64" in values:
        encoded = values.pop("bodyBase64")
        if not isinstance(encoded, str):
            raise Refused("bodyBase64 must be a string")
        try:
            values["body"] = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise Refused("bodyBase64 is no base64") from error
    elif isinstance(values.get("body"), str):
        values["body"] = values["body"].encode()
    if "headers" in values:
        headers = values["headers"]
        if not isinstance(headers, dict) or not all(isinstance(text, str) for text in headers.values()):
            raise Refused("headers must be an object of strings")
        values["headers"] = tuple(headers.items())
    return values
