"""`sikkerguard demo`: serves a list and takes reports as SikkerAPI does, until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path

from sikkerguard.cli.command import Command, Outcome
from sikkerguard.core.text import printable

DEMO_KEY = "sk_free_demo"
SAMPLE = Path(__file__).with_name("demo_list.txt")  # of public blocklists; its sources and licences are beside it


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_read_address,
        default=("127.0.0.1", 8900),
        help="where to listen, port 0 for any (127.0.0.1:8900)",
    )
    parser.add_argument(
        "--list",
        metavar="FILE",
        type=Path,
        default=SAMPLE,
        help="the list to serve: an address or range a line, optionally a tab and the number of lists that name it (a "
        "sample of public lists)",
    )
    parser.add_argument("--key", metavar="KEY", default=DEMO_KEY, help=f"the one key to accept ({DEMO_KEY})")


def _read_address(text: str) -> tuple[str, int]:
    address, separator, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise argparse.ArgumentTypeError(f"{text!r} needs brackets around its IPv6 address, as in [::1]:8900")
    if not (separator and address and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} isn't of the form ADDRESS:PORT, as in 127.0.0.1:8900")
    return address, int(port)


def _run(options: argparse.Namespace) -> Outcome:
    from sikkerguard.cli.demo_server import DemoServer, load_list

    entries = load_list(options.list)
    address, port = options.listen
    with DemoServer(address, port, entries, key=options.key, say=_print_line) as server:
        # SIGTERM is to end the serving as SIGINT does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            _introduce(server.url, options.key, len(entries))
            server.serve_forever()
    return Outcome.FINE


def _introduce(url: str, key: str, count: int) -> None:
    # The service sends its key to no other machine in the clear unless it is told to.
    local = url.startswith(("http://127.", "http://[::1]:"))
    words = "SIKKER_DRY_RUN=true" if local else "SIKKER_ALLOW_HTTP=true SIKKER_DRY_RUN=true"
    print(f"A stand-in for SikkerAPI listens on {url} and serves {count} entries. Ctrl-C stops it.")
    print("Point a SikkerGuard at it from another terminal; without SIKKER_DRY_RUN it blocks in earnest:\n")
    print(f"  SIKKER_API_URL={url} SIKKER_API_KEY={key} {words} sikkerguard run\n", flush=True)


def _print_line(line: str) -> None:
    # One write a line, since each connection has its own thread.
    sys.stderr.write(f"{printable(line)}\n")


COMMAND = Command("demo", "start a stand-in for SikkerAPI, for trying things out", _run, _add_options)
