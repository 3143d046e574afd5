"""Asking the running service at its control socket, and what to say where none answers.

The socket is found without good settings, and only the service itself is believed.
"""

from __future__ import annotations

import http.client
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sikkerguard.cli.command import MAX_LINE_LENGTH, settings_reader
from sikkerguard.core.text import printable
from sikkerguard.edges.http import control_socket
from sikkerguard.edges.systemd.notifier import unit_properties
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_ANSWER_SECONDS = 5.0
# A service that listens takes a connection at once.
_CONNECT_SECONDS = 2.0
_MAX_ANSWER_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Reply:
    """A status code of HTTP, the body, and the id of the process that answered."""

    code: int
    body: bytes
    process: int

    def read_json(self) -> dict[str, Any]:
        """Decode the object that the body is.

        Raises:
            SikkerGuardError: it is none, or the service refused; then with its reason.
        """
        if self.code != 200:
            first = self.body.decode("utf-8", "replace").partition("\n")[0]
            raise SikkerGuardError(
                printable(first, MAX_LINE_LENGTH) or f"the service answered {self.code}; see its log"
            )
        try:
            found: dict[str, Any] = json.loads(self.body)
        except ValueError as error:
            raise SikkerGuardError(
                f"the service's answer can't be read ({error}); is it of another version?"
            ) from error
        return found


def find_directories(environment: Mapping[str, str], state_dir: Path) -> tuple[Path, ...]:
    """List where the control socket may be: where systemd or the image puts it, and the state directory."""
    places = (control_socket.runtime_directory(environment), control_socket.RUNTIME_DIRECTORY, state_dir)
    return tuple(dict.fromkeys(place for place in places if place is not None))


def make_client(options: argparse.Namespace) -> ServiceClient:
    """Make a client of the service that a command with these options is about."""
    return ServiceClient(find_directories(os.environ, settings_reader(options).state_dir()))


class ServiceClient:
    """Asks the service whose control socket lies in the first of these directories that has one.

    `answer_seconds` limits each step of an exchange; `read_unit` gives what systemd says of our unit.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        *,
        answer_seconds: float = _ANSWER_SECONDS,
        read_unit: Callable[[], Mapping[str, str]] = unit_properties,
    ) -> None:
        self._directories = directories
        self._answer_seconds = answer_seconds
        self._read_unit = read_unit

    def is_answered(self) -> bool:
        """Whether a service listens that can be trusted."""
        for directory in self._directories:
            with suppress(OSError, control_socket.UntrustedError):
                control_socket.connect(directory, _CONNECT_SECONDS).close()
                return True
        return False

    def ask(self, target: str, method: str = "GET") -> Reply:
        """Make one request.

        Raises:
            SikkerGuardError: no service answers, or it may not be asked; with what to do.
        """
        refused: SikkerGuardError | None = None
        for directory in self._directories:
            path = directory / control_socket.NAME
            try:
                connected = control_socket.connect(directory, self._answer_seconds)
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
                continue
            except PermissionError:
                refused = refused or SikkerGuardError(
                    f"{path} is open to root and the service's group only; run it as root (sudo)"
                )
            except control_socket.UntrustedError as error:
                refused = error
            except OSError as error:
                raise SikkerGuardError(f"the service at {path} can't be asked ({error.strerror or error})") from error
            else:
                return _exchange(connected, target, method, path)
        raise refused or SikkerGuardError(self._describe_absence())

    def _describe_absence(self) -> str:
        """That no service answers, and what to do."""
        unit = self._read_unit()
        said = printable(unit.get("StatusText", ""), MAX_LINE_LENGTH)
        state = printable(unit.get("ActiveState", ""))
        if state != "active" and said.startswith("Waiting for a key"):
            return said
        paths = " or ".join(str(directory / control_socket.NAME) for directory in self._directories)
        sentence = f"no sikkerguard answers at {paths}"
        if unit.get("LoadState") != "loaded":
            return f"{sentence}; is the service running?"
        if state in ("inactive", "failed"):
            return f"{sentence}: sikkerguard.service is {state}. Start it: systemctl start sikkerguard"
        return f"{sentence}, though sikkerguard.service is {state}; see why: journalctl -u sikkerguard"


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__("localhost")
        self._connected = connected

    def connect(self) -> None:
        self.sock = self._connected


def _exchange(connected: socket.socket, target: str, method: str, path: Path) -> Reply:
    process = control_socket.peer_of(connected).process
    connection = _Connection(connected)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return Reply(response.status, response.read(_MAX_ANSWER_BYTES), process)
    except (OSError, http.client.HTTPException) as error:
        raise SikkerGuardError(
            f"no answer from the service at {path} ({error or type(error).__name__}); see its log"
        ) from error
    finally:
        connection.close()
