"""`sikkerguard demo`: its options, its list, and its server over real sockets."""

from __future__ import annotations

import ipaddress
import json
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sikkerguard.cli import parser
from sikkerguard.cli.command import Outcome
from sikkerguard.cli.demo import DEMO_KEY, SAMPLE
from sikkerguard.cli.demo_server import DemoServer, Entry, load_list
from sikkerguard.errors import SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}
BLACKLIST, REPORT, STATUS = "/v1/key/blacklist", "/v1/key/bulk-report", "/v1/key/status"


class Served:
    """A demo's server, and the lines that it printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        entries = (Entry("192.0.2.1", 50), Entry("2001:db8::/48", 95), Entry("192.0.2.3"))
        self.server = DemoServer("127.0.0.1", 0, entries, key=DEMO_KEY, say=self.lines.append)

    def get(self, path: str, key: str = DEMO_KEY, **parameters: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(self.server.url + path, params=parameters, headers=headers, **PLAIN)

    def post(self, body: bytes) -> httpx.Response:
        headers = {"Authorization": f"Bearer {DEMO_KEY}"}
        return httpx.post(self.server.url + REPORT, content=body, headers=headers, **PLAIN)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    with made.server:
        thread.start()
        yield made
        made.server.shutdown()
        thread.join()


# The list


def test_the_sample_is_real_routable_and_licensed() -> None:
    networks = [ipaddress.ip_network(entry.text) for entry in load_list(SAMPLE)]
    assert len(networks) == len(set(networks)) == 1120
    assert all(network.is_global and not network.is_multicast for network in networks)
    assert sum(network.version == 6 for network in networks) == 100
    assert sum(network.version == 4 and network.num_addresses > 1 for network in networks) == 20
    notice = SAMPLE.with_name("demo_list.LICENCE.md").read_text(encoding="utf-8")
    assert "Copyright (c) 2026 Bitwire" in notice
    assert "THE SOFTWARE IS PROVIDED" in notice
    assert "stamparm/ipsum" in notice


def test_the_score_follows_from_how_many_lists_name_an_entry(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("# comment\n\n192.0.2.1\t1\n192.0.2.2\t10 # worst\n2001:db8::/32\n192.0.2.3 40\n")
    assert load_list(file) == [("192.0.2.1", 50), ("192.0.2.2", 95), ("2001:db8::/32", 75), ("192.0.2.3", 100)]


@pytest.mark.parametrize("line", ["192.0.2.1 2 3", "192.0.2.1 many", "<html>", "192.0.2.1,4"])
def test_a_line_that_can_not_be_served_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text(f"192.0.2.1\n{line}\n")
    with pytest.raises(SikkerGuardError, match=rf"^Line 2 of {re.escape(str(file))} can't be served: .*\.$"):
        load_list(file)


def test_a_file_that_can_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing", binary, tmp_path):
        with pytest.raises(SikkerGuardError, match=rf"^The list {re.escape(str(path))} can't be read: .*\.$"):
            load_list(path)


# What is answered


def test_the_list_is_served_highest_score_first(served: Served) -> None:
    answer = served.get(BLACKLIST, plaintext="true")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text == "2001:db8::/48\n192.0.2.3\n192.0.2.1\n"
    assert served.get(BLACKLIST, scoreMinimum="70").text == "2001:db8::/48\n192.0.2.3\n"
    assert served.get(BLACKLIST, scoreMinimum="high").status_code == 400
    served.server.entries = ()
    assert served.get(BLACKLIST).content == b""


@pytest.mark.parametrize("path", [BLACKLIST, STATUS, "/nowhere"])
def test_without_the_key_everything_is_refused_as_by_sikkerapi(served: Served, path: str) -> None:
    for key in ("", "sk_free_other"):
        answer = served.get(path, key)
        assert (answer.status_code, answer.json()) == (401, {"error": "Invalid API key"})
    assert served.get("/nowhere").status_code == 404


def test_reports_are_taken_row_by_row_and_printed(served: Served) -> None:
    rows: list[Any] = [
        {"ip": "203.0.113.9", "category": "brute_force", "protocol": "ssh"},
        {"ip": "203.0.113", "category": "spam"},
        {"category": "spam"},
        "203.0.113.9",
        {"ip": "2001:db8::5", "category": "other"},
    ]
    answer = served.post(json.dumps({"reports": rows}).encode()).json()
    assert (answer["total"], answer["accepted"], answer["rejected"]) == (5, 2, 3)
    assert [(error["row"], error["ip"]) for error in answer["errors"]] == [(2, "203.0.113"), (3, ""), (4, "")]
    assert served.server.reports == [("203.0.113.9", "brute_force", "ssh"), ("2001:db8::5", "other", "")]
    assert "  reported: 203.0.113.9 brute_force ssh" in served.lines
    assert f'127.0.0.1 "POST {REPORT} HTTP/1.1" 200 -' in served.lines


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"reports": 5}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_report_is_refused(served: Served, body: bytes) -> None:
    answer = served.post(body)
    assert (answer.status_code, served.server.reports) == (400, [])
    assert answer.json()["error"]


def test_an_address_that_can_not_be_had_is_one_sentence(served: Served) -> None:
    port = served.server.server_port
    with pytest.raises(SikkerGuardError, match=rf"^The demo can't listen on 127.0.0.1 port {port}: .* in use\.$"):
        DemoServer("127.0.0.1", port, (), key=DEMO_KEY, say=print)
    with DemoServer("0.0.0.0", 0, (), key=DEMO_KEY, say=print) as everywhere:
        assert everywhere.url == f"http://127.0.0.1:{everywhere.server_port}"


# The command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_interrupted(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sikkerguard", "demo", "--listen", "127.0.0.1:0", "--key", "sk_mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # A demo that hangs must fail the test rather than hang it.
        timer = threading.Timer(20, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            introduction = "".join(iter(process.stdout.readline, "\n"))
            usage = process.stdout.readline()
            match = re.fullmatch(r" *SIKKER_API_URL=(\S+) SIKKER_API_KEY=(\S+) .*sikkerguard run\n", usage)
            assert match is not None, introduction + usage
            headers = {"Authorization": f"Bearer {match[2]}"}
            answer = httpx.get(f"{match[1]}{BLACKLIST}?plaintext=true&x=\x9b2J", headers=headers, **PLAIN)
            assert (answer.status_code, len(answer.text.splitlines())) == (200, 1120)
            process.send_signal(number)
            _, errors = process.communicate()
        finally:
            timer.cancel()
    assert (process.returncode, match[2]) == (0, "sk_mine")
    (line,) = errors.splitlines()
    assert line.startswith(f'127.0.0.1 "GET {BLACKLIST}?plaintext=true&x=')
    assert line.isprintable()


def test_its_options() -> None:
    plain = parser.make_parser().parse_args(["demo"])
    assert (plain.listen, plain.list, plain.key) == (("127.0.0.1", 8900), SAMPLE, DEMO_KEY)
    given = parser.make_parser().parse_args(["demo", "--listen", "[::1]:0", "--list", "a", "--key", "sk_x"])
    assert (given.listen, str(given.list), given.key) == (("::1", 0), "a", "sk_x")


@pytest.mark.parametrize("text", ["8900", "127.0.0.1:", "127.0.0.1:70000", "::1:8900"])
def test_an_impossible_address_is_wrong_use(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.run_command(["demo", "--listen", text]) is Outcome.WRONG_USE
    assert "--listen" in capsys.readouterr().err
