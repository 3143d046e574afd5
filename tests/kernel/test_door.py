"""The way to SikkerAPI: who may say that he is it, where it is found when it moves, and the proxy in front of it."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.network import API
from scripts.laboratory.packets import tcp
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from tests.fronts import Authority, Front, ProxyServer
from tests.kernel.conftest import UNPROTECTED
from tests.kernel.test_counting import begin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.laboratory.network import Laboratory
    from tests.kernel.conftest import Guard

LIARS = [f"203.0.113.{number}" for number in range(1, 26)]
MOVED, ATTACKER = "203.0.113.80", "203.0.113.99"
PROXY, PROXY_PORT = "203.0.113.200", 3128
MOST = 16
SECONDS = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def everywhere(lab: Laboratory) -> None:
    """The internet answers at each address of the documentation's ranges."""
    for words in ("203.0.113.0/24", "192.0.2.0/24", "2001:db8:9::/48"):
        lab.internet.run("ip", "route", "add", "local", words, "dev", "lo")


@pytest.fixture(params=["http", "https"])
def front(guard: Guard, authority: Authority, everywhere: None, request: pytest.FixtureRequest) -> Iterator[Front]:
    """Servers everywhere, of which the API's is genuine."""
    with fronting(guard, authority, request.param) as made:
        yield made


def fronting(guard: Guard, authority: Authority, scheme: str, port: int = 0) -> Front:
    """Servers everywhere, and the service told to go there by the name."""
    tls = None
    if scheme == "https":
        tls = authority.context(Resolver.NAME), authority.context("other.example.net")
    made = Front(guard.lab.internet.inside, (API, 80), {API}, port=port, tls=tls)
    guard.environment["SIKKER_API_URL"] = f"{scheme}://{Resolver.NAME}:{made.port}"
    guard.environment["SSL_CERT_FILE"] = str(authority.file)
    return made


def allowed(lab: Laboratory) -> set[str]:
    """The entries of the allow sets."""
    return set(re.findall(r"^add sikkerguard-allow-v[46] (\S+)", lab.sets(), re.MULTILINE))


def kept(guard: Guard) -> set[str]:
    """What is kept on disk as allowed."""
    return {text for text, _ in json.loads((guard.state / "allowlist.json").read_text())}


def test_dns_lets_nobody_in(guard: Guard, resolver: Resolver, front: Front) -> None:
    lab = guard.lab
    resolver.answers = [*LIARS, API]
    guard.serve(*LIARS)
    guard.start()
    guard.logged("Blocking 25 IPs")
    # Again, now that they are blocked: a moment's leave to prove themselves is all that they get.
    assert guard.cli("pull").returncode == 0
    assert allowed(lab).isdisjoint(LIARS)
    assert API in allowed(lab)
    assert kept(guard).isdisjoint(LIARS)
    assert guard.blocked() == set(LIARS)
    assert not any(lab.passes(liar) for liar in LIARS[::6])
    # Nobody got the key, by plain HTTP neither: only a genuine server was asked for a list.
    paths = [request.path for request in guard.standin.record.requests]
    assert paths.count("/v1/key/blacklist") == 2
    keyless = [request for request in guard.standin.record.requests if request.path == "/v1/key/status"]
    assert not any(request.header("Authorization") for request in keyless)


@pytest.mark.parametrize("front", ["https"], indirect=True)
def test_of_thousands_of_answers_few_are_tried(guard: Guard, resolver: Resolver, front: Front) -> None:
    many = [f"192.0.2.{number}" for number in range(256)] + [f"203.0.113.{number}" for number in range(256)]
    many += [f"2001:db8:9::{number:x}" for number in range(1, 2200)]
    resolver.answers = [*many, API]
    guard.serve(ATTACKER)
    before = len(guard.standin.record.requests)
    guard.start()
    guard.logged("Blocking 1 IPs")
    assert len(guard.standin.record.requests) == before + 1
    assert 1 <= len(front.tried) <= MOST
    # By the handshake, twice by the self-test, and by the pull itself.
    assert front.tried[API] == 4
    assert set(front.tried.values()) == {1, 4}
    assert allowed(guard.lab).isdisjoint(many)


@pytest.mark.parametrize("front", ["https"], indirect=True)
def test_a_certificate_for_another_name_proves_nothing(guard: Guard, resolver: Resolver, front: Front) -> None:
    front.genuine.clear()
    guard.expected_errors.append("ERROR SikkerAPI can't be reached: no address of api.example.net is genuine")
    guard.start()
    line = guard.logged("ERROR SikkerAPI can't be reached")
    assert f"({API}: its certificate is not SikkerAPI's: Hostname mismatch, " in line
    assert API not in allowed(guard.lab)
    # Not even a request, which would have had the key in it.
    assert not front.asked
    assert not guard.standin.record.requests


def test_the_api_that_moved_to_a_listed_address_is_found_by_the_next_report(
    guard: Guard, resolver: Resolver, front: Front
) -> None:
    wire = begin(guard, MOVED, ATTACKER, SIKKER_REPORT_INTERVAL="10s")
    assert not guard.lab.passes(MOVED)
    front.genuine = {MOVED}
    resolver.answers = [MOVED]
    # Its own packets too were dropped and counted until now: it is not to be reported to itself for that.
    wire.send([*[tcp(ATTACKER, 22)] * 5, *[tcp(MOVED, 22)] * 5])
    guard.logged("INFO Reported 1 blocked IPs", seconds=25)
    assert [record.row.ip for record in guard.standin.record.reports] == [ATTACKER]
    assert MOVED in allowed(guard.lab)
    assert guard.lab.reaches(MOVED)
    # Where it was before nobody proves to be it any more.
    assert API not in allowed(guard.lab)
    assert sum("blacklist" in request.path for request in guard.standin.record.requests) == 1


def test_while_the_api_is_down_it_stays_allowed_and_after_a_restart_too(
    guard: Guard, resolver: Resolver, front: Front
) -> None:
    guard.expected_errors.append("ERROR SikkerAPI")
    resolver.answers = [MOVED]
    front.genuine = {MOVED}
    guard.serve(MOVED, ATTACKER)
    guard.start()
    guard.logged("Blocking 1 IPs")
    guard.kill()
    front.genuine = set()
    guard.start()
    guard.logged("ERROR SikkerAPI can't be reached: no address of api.example.net is genuine")
    assert MOVED in allowed(guard.lab)
    # A boot: nothing is left in the kernel, and DNS is down as well.
    guard.stop()
    resolver.answers = []
    guard.start()
    guard.logged("Blocking 1 IPs .*from the cache", times=2)
    assert MOVED in allowed(guard.lab)
    guard.logged("ERROR SikkerAPI can't be reached", times=2)
    assert MOVED in allowed(guard.lab)
    assert guard.lab.reaches(MOVED)
    # Who has its name now, and does not prove it, gets nothing by that.
    assert allowed(guard.lab).isdisjoint(LIARS)


@pytest.mark.parametrize("front", ["https"], indirect=True)
def test_what_is_let_in_to_prove_itself_is_let_in_for_seconds_only(
    guard: Guard, resolver: Resolver, front: Front
) -> None:
    guard.expected_errors.append("ERROR SikkerAPI")
    lab = guard.lab
    guard.serve(MOVED, ATTACKER)
    guard.start()
    guard.logged("Blocking 2 IPs")
    resolver.answers = [MOVED]
    front.silent = True
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)
    wait_for("a moment's leave", lambda: MOVED in allowed(lab), SECONDS)
    assert MOVED not in kept(guard)
    guard.logged("ERROR SikkerAPI can't be reached: .*does not answer within 5 s")
    assert MOVED not in allowed(lab)
    assert not lab.passes(MOVED)
    # Of all that the looks in between met, nothing was taken for a change by others.
    assert guard.status()["repairs"] == 0

    # A death in the middle of it: the next start takes it out, and knows nothing of it.
    guard.process.send_signal(signal.SIGHUP)
    wait_for("a moment's leave", lambda: MOVED in allowed(lab), SECONDS)
    guard.kill()
    assert MOVED in allowed(lab)
    assert MOVED not in kept(guard)
    resolver.answers = []
    guard.start()
    wait_for("the end of it", lambda: MOVED not in allowed(lab), SECONDS)
    guard.logged("Blocking 2 IPs .*from the cache")
    assert not lab.passes(MOVED)


# A proxy


@pytest.fixture
def proxy(guard: Guard, everywhere: None) -> Iterator[ProxyServer]:
    """A proxy, and the service told of it: SikkerAPI itself can't be reached, nor does its name resolve."""
    with ProxyServer(guard.lab.internet.inside, (API, 80), address=PROXY, port=PROXY_PORT) as made:
        guard.environment["HTTP_PROXY"] = f"http://someone:secret@{PROXY}:{PROXY_PORT}"
        guard.environment["SIKKER_API_URL"] = "http://api.invalid"
        yield made


@pytest.fixture(params=["address", "name"])
def named_proxy(proxy: ProxyServer, guard: Guard, resolver: Resolver, request: pytest.FixtureRequest) -> ProxyServer:
    """The same, by its address or by a name that stands for it and for others."""
    if request.param == "name":
        resolver.answers = [*LIARS[:3], PROXY]
        guard.environment["HTTP_PROXY"] = f"http://someone:secret@{Resolver.NAME}:{PROXY_PORT}"
    return proxy


def test_a_list_that_names_the_proxy_does_not_cut_off_the_next_list(guard: Guard, named_proxy: ProxyServer) -> None:
    lab = guard.lab
    guard.serve(PROXY, *LIARS, ATTACKER)
    guard.start()
    guard.logged("Blocking 26 IPs")
    assert PROXY in allowed(lab)
    assert allowed(lab).isdisjoint({*LIARS, API})
    guard.logged(rf"WARNING {re.escape(PROXY)} \(proxy\) is on the list and stays allowed")
    assert guard.cli("pull").returncode == 0
    assert guard.blocked() == {*LIARS, ATTACKER}
    assert len([line for line in named_proxy.asked if "/v1/key/blacklist" in line]) == 2
    shown = guard.cli("check", PROXY)
    assert shown.returncode == 0
    assert "proxy" in shown.stdout
    assert "secret" not in guard.log() + shown.stdout + guard.cli("status", "--json").stdout
    # Nor does DNS's word for SikkerAPI's name matter any more.
    assert "does not resolve" not in guard.log()


def test_a_list_that_cuts_the_proxy_off_fails_its_trial(guard: Guard, proxy: ProxyServer) -> None:
    guard.expected_errors.append("ERROR The self-test failed: ")
    guard.serve(ATTACKER)
    guard.start(*UNPROTECTED)
    guard.logged("Blocking 1 IPs")
    guard.serve(ATTACKER, PROXY)
    assert guard.cli("pull").returncode == 1
    line = guard.logged("ERROR The self-test failed: ")
    assert f"proxy {PROXY} port {PROXY_PORT} does not take connections" in line
    assert guard.blocked() == {ATTACKER}
    assert guard.lab.reaches(PROXY)


def test_what_no_proxy_excepts_is_asked_for_without_one(guard: Guard, proxy: ProxyServer) -> None:
    guard.environment |= {"SIKKER_API_URL": f"http://{API}", "NO_PROXY": "[2001:db8::]/32, 198.51.100.0/24, ::junk::"}
    guard.serve(ATTACKER)
    guard.start()
    guard.logged("Blocking 1 IPs")
    assert not proxy.asked
    assert API in allowed(guard.lab)
    assert PROXY not in allowed(guard.lab)
