"""Whatever SikkerAPI, or what stands in its place, may answer: the committed list stays, one line says why, and the
next good answer is taken.

One service in one laboratory meets them all, one after the other, as a service that runs for years does.
"""

from __future__ import annotations

import datetime
import gzip
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API, GATEWAY, HOST, RESOLVER, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from sikkerguard.core.lists.parse import MOST_OTHER_LINES, MOST_RANGES
from tests.kernel.conftest import Guard
from tests.standin.entries import Entry
from tests.standin.faults import Canned, CutOff, Drip, Drop, Endless, Fault, GzipBomb, Reset, Understate
from tests.standin.server import DEMO_KEY, Standin

if TYPE_CHECKING:
    from collections.abc import Iterator

ELSEWHERE = "198.51.100.81"
"""Another host of the internet, to which no key may go."""

SINGLES = [f"203.0.113.{n}" for n in range(1, 201)] + [f"192.0.2.{n}" for n in range(1, 101)]
SINGLES_V6 = [f"2001:db8:bad::{n:x}" for n in range(1, 601)]
RANGES = [f"192.0.2.{n}/30" for n in range(128, 208, 8)]
RANGES_V6 = [f"2001:db8:{n:x}::/48" for n in range(0xAA00, 0xAAB4, 2)]
GOOD = [*SINGLES, *SINGLES_V6, *RANGES, *RANGES_V6]
"""A thousand entries of which no two can be written as one."""
LISTED = ("203.0.113.7", "192.0.2.130", "2001:db8:bad::7", "2001:db8:aa02::1")
INNOCENT = ("203.0.113.251", "192.0.2.250", "2001:db8:beef::1")

PLAIN = "text/plain; charset=utf-8"
STAYS = r"the list verified \d+\w ago \(1000 entries\) stays in force"
MOST_MEMORY = 110 << 10
"""KiB that the process may ever take: what it has by itself, and room to read as much as it is willing to before it
refuses it. 82,000 were seen."""


@dataclass
class Service:
    """The running service, and what of its log was read already."""

    guard: Guard
    elsewhere: Standin

    def begin(self) -> None:
        """Start it, or start it again after a test that it did not survive, and have it block the good list."""
        if self.guard.process is None or self.guard.process.poll() is not None:
            self.guard.start()
            # Not the cached list alone: the first pull must not meet what is meant for a later one.
            wait_for("the first pull", lambda: '"pulls": 1,' in self.guard.cli("status", "--json").stdout)
        self.requests = self.guard.standin.record.requests_total
        self.mark = len(self.guard.log())

    def news(self) -> list[str]:
        """What was logged since the test began."""
        return self.guard.log()[self.mark :].splitlines()

    def errors(self) -> list[str]:
        """Those lines of it that tell of something wrong, tracebacks and warnings of Python among them."""
        return [
            line for line in self.news() if re.match(r"[0-9:]{8} (ERROR|CRITICAL)|Traceback|\S*(Error|Warning): ", line)
        ]

    def meets(self, fault: Fault, times: int = 1) -> None:
        """Have the next answers be this one."""
        self.guard.standin.clear_faults()
        self.guard.standin.fault("blacklist", fault, times)

    def pull_fails(self, phrase: str) -> None:
        """Pull now: the command and the log say why it failed, in one line."""
        done = self.guard.cli("pull")
        assert done.returncode == 1, done
        assert re.search(phrase, done.stderr, re.IGNORECASE), done.stderr
        assert len([line for line in done.stderr.splitlines() if "waiting for" not in line]) == 1
        assert done.stdout == ""
        (line,) = self.errors()
        assert re.search(phrase, line, re.IGNORECASE), line
        assert re.search(STAYS, line), line
        assert re.search(r"next try in \d+[smhd]\b", line), line

    def pull_works(self) -> None:
        """Pull what the API has when nothing is wrong with it."""
        self.guard.standin.clear_faults()
        self.mark = len(self.guard.log())
        self.told()
        assert self.errors() == []

    def told(self) -> str:
        """Have it pull now, without waiting for a command to start: the line that says what came of it."""
        assert self.guard.process is not None
        self.guard.process.send_signal(signal.SIGHUP)
        ends = re.compile(r"^Traceback| ERROR | Blocking \d+ IPs")
        found = wait_for("the end of a pull", lambda: [line for line in self.news() if ends.search(line)])
        return found[-1]

    @contextmanager
    def packets_meet_the_good_list(self) -> Iterator[None]:
        """Packets sent now are dropped and passed as the good list has it. That nothing answers takes half a second to
        see, in which other things may be done."""
        with ThreadPoolExecutor(len(LISTED + INNOCENT)) as pool:
            passing = pool.map(self.guard.lab.passes, LISTED + INNOCENT)
            yield
            passed = dict(zip(LISTED + INNOCENT, passing, strict=True))
        assert passed == {**dict.fromkeys(LISTED, False), **dict.fromkeys(INNOCENT, True)}

    def blocks_the_good_list(self) -> None:
        """It runs and says so, the stock tool prints the entries, and packets meet them."""
        with self.packets_meet_the_good_list():
            self.holds_the_good_list()

    def holds_the_good_list(self) -> None:
        """It runs and says so, and the stock tool prints the entries and no candidate beside them."""
        self.is_well()
        assert self.guard.blocked() == set(GOOD)
        sets = self.guard.lab.sets()
        assert not re.search(r"^add sikkerguard-(new|load|trial)", sets, re.MULTILINE), sets

    def is_well(self) -> None:
        """It runs, and says so."""
        assert self.guard.process is not None
        assert self.guard.process.poll() is None
        assert self.guard.cli("health").stdout == "OK\n"

    def peak(self) -> int:
        """The most memory that the process ever had, in KiB."""
        assert self.guard.process is not None
        text = Path(f"/proc/{self.guard.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", text)
        assert match
        return int(match[1])

    def next_pull(self) -> float:
        """Seconds from now until the service will ask again."""
        at = datetime.datetime.fromisoformat(self.guard.status()["nextPull"])
        return (at - datetime.datetime.now(datetime.UTC)).total_seconds()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A laboratory with the service in it, for all tests of this file."""
    directory = tmp_path_factory.mktemp("service")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIKKER_")}
    environment |= {
        "SIKKER_API_URL": f"http://{API}",
        "SIKKER_ALLOW_HTTP": "true",
        "SIKKER_API_KEY": DEMO_KEY,
        "SIKKER_STATE_DIR": str(directory / "state"),
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    with laboratory() as lab:
        lab.own_many([*LISTED, *INNOCENT, ELSEWHERE])
        standin, elsewhere = Standin(API, 80, entries=map(Entry, GOOD)), Standin(ELSEWHERE, 80)
        lab.internet.inside(standin.start)
        lab.internet.inside(elsewhere.start)
        guard = Guard(lab, standin, directory, environment)
        try:
            with Resolver(lab.internet):
                yield Service(guard, elsewhere)
                if guard.process is not None and guard.process.poll() is None:
                    guard.stop()
        finally:
            if guard.process is not None and guard.process.poll() is None:
                guard.kill()
            elsewhere.stop()
            standin.stop()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """The service, blocking the good list before and after each test."""
    running.begin()
    yield running
    running.guard.standin.clear_faults()
    # What a test made of the list is undone; a test that failed is not to fail the next one.
    process = running.guard.process
    if process is not None and any(line.startswith("Traceback") for line in running.errors()):
        process.wait(10)
    elif running.guard.blocked() != set(GOOD):
        running.guard.cli("pull", "--accept")


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def plain(*texts: str) -> Canned:
    return Canned(body=lines(*texts), content_type=PLAIN)


def packed(body: bytes) -> Canned:
    return Canned(body=body, content_type=PLAIN, headers=(("Content-Encoding", "gzip"),))


def redirect(location: str) -> Canned:
    return Canned(302, headers=(("Location", location),))


HTML = b"<!DOCTYPE html>\n<html><body><h1>Sign in to the hotel's network</h1></body></html>\n"
NO_LIST = "not a list of addresses"
NOTHING_LEFT = "nothing is left of SikkerAPI's list once private, reserved and allowlisted addresses are cut out"

BAD: dict[str, tuple[Fault, str]] = {
    "empty": (plain(), "no address in it"),
    "html with 200": (Canned(body=HTML, content_type="text/html"), NO_LIST),
    "json error with 200": (Canned(), NO_LIST),
    "cut off": (CutOff(100), "answer broke off"),
    "packed, shorter than it is": (Understate(1), "packed answer broke off"),
    "last line not ended": (Canned(body=lines(*GOOD)[:-1], content_type=PLAIN), "ends in the middle of a line"),
    "gzip bomb": (GzipBomb(), "more than 2,000,000 entries"),
    "endless": (Endless(), "more than 2,000,000 entries"),
    "too many ranges": (
        plain(*(f"{n >> 16 | 128}.{n >> 8 & 255}.{n & 255}.0/25" for n in range(MOST_RANGES + 1))),
        "more than 250,000 ranges",
    ),
    "blank lines without end": (plain(*GOOD, "\n" * MOST_OTHER_LINES), "more than 1,000,000 lines that are no entries"),
    "broken gzip": (packed(HTML), "can't be unpacked"),
    "thrice as large": (
        plain(*(f"2001:db8:3::{n:x}" for n in range(3000))),
        r"grew from 100[01] to 3000 entries.*sikkerguard pull --accept.*SIKKER_MAX_GROWTH",
    ),
    "a twentieth": (plain(*GOOD[:50]), r"shrank from 1000 to 50 entries.*if the next pull says the same"),
    "all private": (plain("10.1.2.3", "172.16.0.0/12", "192.168.1.1", "127.0.0.1", "fc00::1", "fe80::1"), NOTHING_LEFT),
    "all allowlisted": (plain(GATEWAY, RESOLVER, API, HOST), NOTHING_LEFT),
    "crlf": (Canned(body=lines(*GOOD).replace(b"\n", b"\r\n"), content_type=PLAIN), f"{NO_LIST}.*0x0d near line 1,"),
    "bom": (Canned(body=b"\xef\xbb\xbf" + lines(*GOOD), content_type=PLAIN), f"{NO_LIST}.*0xef near line 1,"),
    "nul": (Canned(body=lines(*GOOD) + b"203.0.113.251\0\n", content_type=PLAIN), f"{NO_LIST}.*0x00 near line 1001,"),
    "digits of another script": (plain(*GOOD, "٢٠٣.0.113.251"), f"{NO_LIST}.*0xd9 near line 1001,"),
    "one line of 10 MB": (plain("203.0.113.251 " * 700_000), f"{NO_LIST}.*longer than 1024 characters"),
    "429": (Canned(429), r"quota is used up \(429\)"),
    "401": (Canned(401), r"does not know this key \(401\); correct it in SIKKER_API_KEY"),
    "403": (Canned(403), r"refuses this key \(403\).*put a new one into SIKKER_API_KEY"),
    "500": (Canned(500), "answered 500 Internal Server Error"),
    "redirect to what is no address": (
        redirect(":http://%00@x[::1]:80///"),
        r"redirects to what is no address \(:http://%00@x\[::1\]:80///\); check SIKKER_API_URL",
    ),
    "redirect in a circle": (redirect("/v1/key/blacklist"), "redirects in a circle; check SIKKER_API_URL"),
    "reset before the answer": (Reset(), "broke off or is not HTTP|can't be reached"),
    "reset in the body": (Reset(after=100), "broke off or is not HTTP|can't be reached"),
    "closed without a word": (Drop(accepted=True), "broke off or is not HTTP"),
}

VARIATIONS: dict[str, tuple[Fault, str]] = {
    "comments only": (plain("# none today", ""), "no address in it"),
    "html that says plain": (Canned(body=HTML, content_type=PLAIN), NO_LIST),
    "json list": (Canned(body=b'{"meta": {"count": 1}, "data": [{"ip": "203.0.113.7"}]}'), NO_LIST),
    "cut off by a byte": (CutOff(1), "answer broke off"),
    "last line half": (Canned(body=lines(*GOOD)[:-5], content_type=PLAIN), "ends in the middle of a line"),
    "redirect to another kind of no address": (redirect("http:////[@x.example/"), "redirects to what is no address"),
    "two lengths": (
        Canned(body=lines(*GOOD), content_type=PLAIN, headers=(("Content-Length", "20"),)),
        "broke off or is not HTTP",
    ),
    "cut gzip": (packed(gzip.compress(lines(*GOOD))[:-9]), "packed answer broke off"),
    "another coding": (Canned(headers=(("Content-Encoding", "br"),)), "packed as 'br', which was not asked for"),
    "all multicast or reserved": (plain("224.0.0.1", "240.0.0.1", "255.255.255.255", "ff02::1", "::1"), NOTHING_LEFT),
    "mapped in hexadecimal": (plain("::ffff:cb00:71fb"), NOTHING_LEFT),
    "one crlf": (
        Canned(body=lines(*GOOD[:500]) + b"203.0.113.251\r\n" + lines(*GOOD[500:]), content_type=PLAIN),
        f"{NO_LIST}.*0x0d near line 501,",
    ),
    "utf-16": (Canned(body="\n".join(GOOD).encode("utf-16"), content_type=PLAIN), NO_LIST),
    "fullwidth digits": (plain("\uff12\uff10\uff13.0.113.251"), NO_LIST),
    "a line of 10 MB among good ones": (plain(*GOOD, "2" * 10_000_000), f"{NO_LIST}.*longer than 1024 characters"),
    "404": (Canned(404), "answered 404 Not Found"),
    "503 in html": (Canned(503, body=HTML, content_type="text/html"), "answered 503 Service Unavailable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_changes_nothing_and_is_said_in_one_line(service: Service, kind: str) -> None:
    fault, phrase = BAD[kind]
    service.meets(fault, times=20 if "circle" in kind else 1)
    service.pull_fails(phrase)
    with service.packets_meet_the_good_list():
        service.holds_the_good_list()
        assert service.peak() < MOST_MEMORY
        service.pull_works()
    assert service.guard.blocked() == set(GOOD)


def test_variations_of_these_change_as_little(service: Service) -> None:
    for kind, (fault, phrase) in VARIATIONS.items():
        service.begin()
        service.meets(fault)
        line = service.told()
        assert re.search(f"{phrase}.*{STAYS}", line, re.IGNORECASE), (kind, line)
        assert service.errors() == [line]
        assert service.guard.blocked() == set(GOOD), kind
        service.pull_works()
    service.blocks_the_good_list()
    assert service.peak() < MOST_MEMORY


UNREADABLE = {
    "prefix too long": ("203.0.113.251/33", "not a prefix length"),
    "prefix too long in v6": ("2001:db8:beef::1/129", "not a prefix length"),
    "prefix with a zero": ("203.0.113.0/024", "not a prefix length"),
    "mask": ("203.0.113.0/255.255.255.0", "not a prefix length"),
    "octal": ("0313.0.0161.0373", "not an address"),
    "leading zeros": ("203.000.113.251", "not an address"),
    "hexadecimal": ("0xcb.0.0x71.0xfb", "not an address"),
    "number": ("3405803003", "not an address"),
    "short": ("203.29179", "not an address"),
    "shorter": ("203", "not an address"),
    "mapped v4": ("::ffff:203.0.113.251", "IPv4 written as IPv6"),
    "zone": ("fe80::1%wan", "not an address"),
    "zone of a global address": ("2001:db8:beef::1%2", "not an address"),
    "two on a line": ("203.0.113.251 203.0.113.252", "not an address"),
    "name": ("localhost", "not an address"),
    "range with a dash": ("203.0.113.1-203.0.113.251", "not an address"),
    "option": ("--help", "not an address"),
    "command": ("203.0.113.251; ipset flush", "not an address"),
}

# They can be read, and cover too much.
TOO_WIDE = {"0.0.0.0/0": 16, "128.0.0.0/1": 16, "203.0.0.0/15": 16, "::/0": 32, "2000::/3": 32, "2001:db8::/31": 32}


def test_a_few_good_lines_beside_a_wide_one_are_refused(service: Service) -> None:
    for text in TOO_WIDE:
        service.begin()
        service.meets(plain(text))
        assert re.search(f"(?i){NOTHING_LEFT}.*{STAYS}", service.told())
        service.begin()
        service.meets(plain(*GOOD[:5], text, *GOOD[5:10]))
        assert re.search(f"1 of 11 entries of SikkerAPI's list are wider ranges than .*{STAYS}", service.told())
    service.blocks_the_good_list()


def test_a_wide_line_in_a_thousand_is_left_out_alone_and_named(service: Service) -> None:
    for text, floor in TOO_WIDE.items():
        service.begin()
        service.meets(plain(*GOOD[:500], text, *GOOD[500:]))
        assert "Blocking 1000 IPs" in service.told()
        (warning,) = [line for line in service.news() if " WARNING " in line]
        assert f"1 wider than /{floor} skipped" in warning
    assert service.guard.blocked() == set(GOOD)


def test_a_body_of_unreadable_lines_is_no_list(service: Service) -> None:
    for text, reason in UNREADABLE.values():
        service.begin()
        service.meets(plain(text))
        line = service.told()
        assert re.search(f"{NO_LIST}: 1 of 1 lines can't be used .*{re.escape(reason)}.*{STAYS}", line)
        assert service.errors() == [line]
    service.blocks_the_good_list()


def test_a_few_good_lines_beside_unreadable_ones_do_not_make_a_list(service: Service) -> None:
    for text, reason in UNREADABLE.values():
        service.begin()
        service.meets(plain(*GOOD[:5], text, *GOOD[5:10]))
        line = service.told()
        assert re.search(f"{NO_LIST}: 1 of 11 lines can't be used .*line 6: .*{re.escape(reason)}.*{STAYS}", line)
        assert service.errors() == [line]
    service.blocks_the_good_list()


def test_one_unreadable_line_in_a_thousand_is_left_out_alone_and_named(service: Service) -> None:
    for text, reason in UNREADABLE.values():
        service.begin()
        service.meets(plain(*GOOD[:500], text, *GOOD[500:]))
        assert "Blocking 1000 IPs" in service.told()
        assert service.errors() == []
        (warning,) = [line for line in service.news() if " WARNING " in line]
        assert f"1 {reason} skipped" in warning
        assert f"line 501: {text!r}" in warning
        assert service.guard.blocked() == set(GOOD)
    service.blocks_the_good_list()


def test_what_is_never_blocked_is_cut_out_of_a_good_list_and_counted(service: Service) -> None:
    service.meets(plain(*GOOD, "10.0.0.0/8", GATEWAY, "::ffff:cb00:71fb", "198.51.100.0/24"))
    done = service.guard.cli("pull")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in service.news() if "Left out of the list: " in line]
    assert re.search(r"\d allowlisted", line)
    assert "1 private" in line
    assert "1 reserved" in line
    blocked = service.guard.blocked()
    assert blocked > set(GOOD)
    assert not blocked & {GATEWAY, RESOLVER, API, HOST, "198.51.100.0/24", "10.0.0.0/8"}
    assert service.guard.lab.passes(GATEWAY)


# Redirects


@pytest.mark.parametrize(
    "location",
    [
        f"http://{ELSEWHERE}/v1/key/blacklist",
        f"//{ELSEWHERE}/",
        f"http://{API}@{ELSEWHERE}/",
        f"http://{ELSEWHERE}:80/",
    ],
)
def test_the_key_never_follows_a_redirect_to_another_origin(service: Service, location: str) -> None:
    service.meets(redirect(location))
    service.pull_fails(f"redirects to http://{ELSEWHERE}, where the key must not go; check SIKKER_API_URL")
    assert service.elsewhere.record.requests_total == 0
    # It can be reached from the host: that nothing came is not the network's doing.
    service.guard.lab.host.run("bash", "-c", f"exec 3<>/dev/tcp/{ELSEWHERE}/80")
    service.is_well()


def test_another_port_of_the_same_host_is_another_origin(service: Service) -> None:
    neighbour = Standin(API, 8081)
    service.guard.lab.internet.inside(neighbour.start)
    try:
        service.meets(redirect(f"http://{API}:8081/v1/key/blacklist"))
        service.pull_fails("where the key must not go")
        assert neighbour.record.requests_total == 0
    finally:
        neighbour.stop()


def test_a_redirect_within_the_origin_is_followed(service: Service) -> None:
    for location in ("/v1/key/blacklist?plaintext=true", f"http://{API}:80/v1/key/blacklist?plaintext=true"):
        service.meets(redirect(location))
        done = service.guard.cli("pull")
        assert done.returncode == 0, done.stderr
    assert service.guard.blocked() == set(GOOD)
    assert service.errors() == []


def test_a_circle_of_redirects_is_left_after_a_few_rounds(service: Service) -> None:
    service.meets(redirect("/v1/key/blacklist"), times=1000)
    service.pull_fails("redirects in a circle")
    assert service.guard.standin.record.requests_total - service.requests <= 10


def test_a_redirect_to_what_is_no_address_does_not_end_the_service(service: Service) -> None:
    service.meets(redirect("http://xn--a/"))
    assert re.search(STAYS, service.told())
    assert len(service.errors()) == 1
    service.is_well()


# When it asks again


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_was_refused_is_not_tried_again_soon(service: Service, status: int) -> None:
    service.meets(Canned(status), times=1000)
    service.pull_fails(f"\\({status}\\)")
    asked = service.guard.standin.record.requests_total
    assert asked == service.requests + 1
    assert not service.guard.standin.record.wait_for(lambda record: record.requests_total > asked, seconds=2)
    assert service.next_pull() >= 45 * 60


@pytest.mark.parametrize(
    ("headers", "earliest", "latest"),
    [
        ((("Retry-After", "1800"),), 1790, 1870),
        ((("Retry-After", "40000"),), 39_990, 40_070),
        # No honest quota lasts longer than a day: a server that says so must not end protection.
        ((("Retry-After", "999999999999"),), 24 * 3600, 27 * 3600),
        ((("X-RateLimit-Reset", "9999999999999999"),), 24 * 3600, 27 * 3600),
        ((), 11 * 60, 20 * 60),
        ((("Retry-After", "-1"),), 11 * 60, 20 * 60),
        ((("Retry-After", "\xb2\xb3"),), 11 * 60, 20 * 60),
    ],
)
def test_a_used_up_quota_is_left_alone_for_as_long_as_was_asked(
    service: Service, headers: tuple[tuple[str, str], ...], earliest: float, latest: float
) -> None:
    service.meets(Canned(429, headers=headers), times=1000)
    service.pull_fails("quota is used up")
    assert service.guard.standin.record.requests_total == service.requests + 1
    assert earliest <= service.next_pull() <= latest


def test_a_used_up_quota_is_left_alone_until_it_is_reset(service: Service) -> None:
    service.meets(Canned(429, headers=(("X-RateLimit-Reset", str(int(time.time()) + 7200)),)))
    service.pull_fails("quota is used up")
    assert 7150 <= service.next_pull() <= 7270


def test_a_line_that_comes_back_is_used_without_being_told(service: Service) -> None:
    service.meets(Reset())
    service.pull_fails("broke off or is not HTTP|can't be reached")
    assert service.next_pull() <= 7
    wait_for("a pull of its own", lambda: any("Blocking 1000 IPs" in line for line in service.news()), 15)
    assert service.guard.status()["lastPullError"] is None


def test_an_api_that_is_gone_is_unreachable_and_one_that_is_back_is_used(service: Service) -> None:
    standin = service.guard.standin
    standin.stop()
    try:
        service.pull_fails("SikkerAPI can't be reached")
        service.blocks_the_good_list()
    finally:
        service.guard.lab.internet.inside(standin.start)
    service.pull_works()


def test_many_who_want_a_pull_at_the_same_moment_get_one(service: Service) -> None:
    """Each SIGHUP makes a new client of the API, also while the one before is about to be used."""
    guard = service.guard
    assert guard.process is not None
    for _ in range(100):
        before = guard.log().count("Settings reloaded; pulling now.")
        guard.process.send_signal(signal.SIGHUP)
        # At once: a pull begins with the line that is waited for, and that is the moment to disturb it in.
        while guard.log().count("Settings reloaded; pulling now.") == before:
            assert guard.process.poll() is None, "\n".join(service.news()[-30:])
    service.pull_works()
    service.is_well()


# Sizes


def test_a_list_that_shrank_is_taken_once_the_next_pull_says_the_same(service: Service) -> None:
    service.meets(plain(*GOOD[:50]), times=2)
    service.pull_fails("shrank from 1000 to 50 entries")
    service.blocks_the_good_list()
    done = service.guard.cli("pull")
    assert (done.returncode, done.stdout) == (0, "Blocking 50 IPs\n"), done.stderr
    assert service.guard.blocked() == set(GOOD[:50])
    assert service.guard.lab.passes(LISTED[1])


def test_a_good_list_in_between_makes_a_shrunken_one_a_surprise_again(service: Service) -> None:
    for _ in range(2):
        service.begin()
        service.meets(plain(*GOOD[:50]))
        service.pull_fails("shrank from 1000 to 50 entries")
        service.pull_works()
    assert service.guard.blocked() == set(GOOD)


def test_a_list_that_grew_is_refused_however_often_and_taken_once_when_told(service: Service) -> None:
    grown = [f"2001:db8:3::{n:x}" for n in range(1, 3001)]
    service.meets(plain(*grown), times=10)
    for _ in range(2):
        service.mark = len(service.guard.log())
        # Measured by the largest version, which an earlier test may have made.
        service.pull_fails("grew from 100[0-9] to 3000 entries")
    done = service.guard.cli("pull", "--accept")
    assert (done.returncode, done.stdout) == (0, "Blocking 3000 IPs\n"), done.stderr
    assert service.guard.blocked() == set(grown)
    # It was for once: the next leap is refused again.
    service.meets(plain(*(f"2001:db8:4::{n:x}" for n in range(9000))))
    done = service.guard.cli("pull")
    assert done.returncode == 1
    assert "grew from 3000 to 9000 entries" in done.stderr
    assert service.guard.blocked() == set(grown)


def test_accepting_does_not_make_nothing_a_list(service: Service) -> None:
    service.meets(plain("10.0.0.1"))
    done = service.guard.cli("pull", "--accept")
    assert done.returncode == 1
    assert NOTHING_LEFT in done.stderr
    service.blocks_the_good_list()


def test_a_wish_to_accept_ends_with_the_pull_that_it_was_for(service: Service) -> None:
    service.meets(Canned(500))
    done = service.guard.cli("pull", "--accept")
    assert done.returncode == 1
    assert "the pull failed" in done.stderr
    # Whoever was told so may be gone when the next list comes.
    service.mark = len(service.guard.log())
    service.meets(plain(*(f"2001:db8:3::{n:x}" for n in range(9000))))
    service.pull_fails("grew from [0-9]+ to 9000 entries")
    service.blocks_the_good_list()


def test_a_plain_answer_that_says_less_than_it_has_is_taken_for_cut_off(service: Service) -> None:
    # Too short to be packed, and so with a length that the body's own end can't give the lie to.
    few = GOOD[:10]
    service.guard.standin.replace(map(Entry, few))
    try:
        assert service.guard.cli("pull", "--accept").stdout == "Blocking 10 IPs\n"
        # Without its last character, 203.0.113.10 is another address, and a valid one.
        for extra in (1, 2):
            service.mark = len(service.guard.log())
            service.meets(Understate(extra))
            done = service.guard.cli("pull")
            assert done.returncode == 1, done
            assert "SikkerAPI's list ends in the middle of a line, as one that was cut off does" in done.stderr
            (line,) = service.errors()
            assert "the list verified" in line
            assert service.guard.blocked() == set(few)
            assert service.guard.cli("pull").returncode == 0
    finally:
        service.guard.standin.replace(map(Entry, GOOD))
    service.is_well()


# Time


def test_a_server_that_drips_is_given_up_and_holds_nothing_up_meanwhile(service: Service) -> None:
    service.meets(Drip(interval=0.5), times=2)
    assert service.guard.process is not None
    service.guard.process.send_signal(signal.SIGHUP)
    assert service.guard.standin.record.wait_for(lambda record: record.requests_total > service.requests, seconds=10)
    began = time.monotonic()
    service.blocks_the_good_list()
    wait_for("the end of patience", service.errors, seconds=30)
    assert 10 < time.monotonic() - began < 25
    (line,) = service.errors()
    assert re.search(r"sent \d+ bytes in 1\d s, which is too slow to wait for", line)
    assert re.search(STAYS, line)
    # The pause begins when the patience ended: a server that costs 15 s of it is not asked again at once.
    assert service.next_pull() > 1
    service.pull_works()
