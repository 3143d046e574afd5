"""`sikkerguard demo`: the stand-in on a terminal, serving a list until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from tests.standin.record import RequestRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sikkerguard demo`; they end up as `listen`, `list`, `key` and `control`."""
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_listen_address,
        default=("127.0.0.1", 8900),
        help="where to listen, port 0 for any (127.0.0.1:8900)",
    )
    parser.add_argument(
        "--list",
        metavar="FILE",
        type=Path,
        help="the list to serve: an address or range a line, optionally a tab and the number of lists that "
        "name it (a sample of real public lists)",
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        type=_key,
        default="sk_free_demo",
        help="the one key to accept; its form sk_<tier>_... sets the quotas (sk_free_demo)",
    )
    parser.add_argument(
        "--control",
        action="store_true",
        help="let anyone who can connect read the log, queue faults and replace the list under /standin/",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM, then returns 0. For the main thread only, as signals are.

    Raises SikkerGuardError if the list can't be read or the address can't be listened on.
    """
    # Here and not above: every start of the command line reads this module for its options.
    from tests.standin.lists import SAMPLE, load_list
    from tests.standin.server import Standin

    address, port = arguments.listen
    standin = Standin(
        address,
        port,
        entries=load_list(arguments.list or SAMPLE),
        keys=[arguments.key],
        control=arguments.control,
        on_answer=_log,
    )
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        interrupted.set()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with standin:
            _introduce(standin.url, arguments.key, standin.entry_count, control=arguments.control)
            interrupted.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _introduce(url: str, key: str, count: int, *, control: bool) -> None:
    # The service asks no other machine in the clear unless it is told to.
    local = url.startswith(("http://127.", "http://[::1]:"))
    words = "SIKKER_DRY_RUN=true" if local else "SIKKER_ALLOW_HTTP=true SIKKER_DRY_RUN=true"
    lines = [
        f"A stand-in for SikkerAPI listens on {url} and serves {count} entries. Ctrl-C stops it.",
        "Point a SikkerGuard at it from another terminal; without SIKKER_DRY_RUN it blocks in earnest:",
        "",
        f"  SIKKER_API_URL={url} SIKKER_API_KEY={key} {words} sikkerguard run",
        "",
    ]
    if control:
        lines += [f"What it was asked and told: {url}/standin/log", ""]
    print("\n".join(lines), flush=True)


def _log(request: RequestRecord) -> None:
    """One line a request. A path may hold anything: nothing of it may steer the terminal."""
    query = "&".join(f"{name}={value}" for name, value in request.query)
    target = f"{request.path}?{query}" if query else request.path
    shown = target.encode("unicode_escape").decode("ascii")
    status = "no answer" if request.status is None else str(request.status)
    fault = f" (fault: {request.fault})" if request.fault is not None else ""
    # One write for a line, since each connection has its own thread.
    sys.stderr.write(f"{request.client} {request.method} {shown} {status}{fault}\n")
    sys.stderr.flush()


def _listen_address(text: str) -> tuple[str, int]:
    address, separator, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise argparse.ArgumentTypeError(f"{text!r} needs brackets around its IPv6 address, as in [::1]:8900")
    if not (separator and address and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} isn't of the form ADDRESS:PORT, as in 127.0.0.1:8900")
    return address, int(port)


def _key(text: str) -> str:
    from tests.standin.tiers import Key

    try:
        return Key.of(text).text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
