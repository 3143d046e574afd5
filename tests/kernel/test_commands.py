"""The command line, as an operator meets it: what each word prints, how it ends, and what it leaves alone."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.laboratory.network import API, GATEWAY, HOST, laboratory
from scripts.laboratory.resolver import Resolver
from scripts.laboratory.tools import wait_for
from sikkerguard.version import VERSION
from tests.kernel.conftest import SIKKERGUARD, Guard
from tests.standin.entries import Entry
from tests.standin.faults import Canned
from tests.standin.server import DEMO_KEY, Standin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.laboratory.network import Laboratory

LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
RANGE, IN_RANGE, SPARED = "192.0.2.0/25", "192.0.2.9", "192.0.2.77"
RANGE_V6, IN_RANGE_V6 = "2001:db8:aa::/48", "2001:db8:aa::9"
CUSTOM, INNOCENT, INNOCENT_V6 = "203.0.113.50", "203.0.113.99", "2001:db8:99::99"
LIST = (LISTED, LISTED_V6, RANGE, RANGE_V6)

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
ENOUGH = ("net_admin", "net_raw", "syslog")


def with_only(*capabilities: str) -> tuple[str, ...]:
    """The words that make a program run as nobody with exactly these capabilities."""
    wanted = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return (*NOBODY, f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={wanted}")


def put(guard: Guard, *addresses: str) -> None:
    """Have the API list these."""
    guard.standin.replace(map(Entry, addresses))


def outcome(guard: Guard, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the host with the guard's environment, to its end."""
    return subprocess.run(
        ["ip", "netns", "exec", guard.lab.host.name, *words],
        env={**guard.environment, **variables},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The sentences of a command that failed; but for lines of the log nothing else may be on standard error."""
    found = [line for line in done.stderr.splitlines() if not re.match(r"[0-9:]{8} (INFO|WARNING) ", line)]
    assert found, done
    assert all(line.startswith("sikkerguard: ") for line in found), done.stderr
    return [line.removeprefix("sikkerguard: ") for line in found]


def complaints_if_any(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The sentences of a command on standard error, but for what a pull waits for."""
    return [line for line in done.stderr.splitlines() if not line.startswith("sikkerguard: waiting for ")]


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that anyone may use, where every user can reach it."""
    with tempfile.TemporaryDirectory(prefix="sikkerguard-") as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """A service that blocks, for those tests that only look at it."""
    directory = tmp_path_factory.mktemp("service")
    custom = directory / "custom.txt"
    custom.write_text(f"{CUSTOM}  # noisy\n{LISTED}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIKKER_")}
    environment |= {
        "SIKKER_API_URL": f"http://{API}",
        "SIKKER_ALLOW_HTTP": "true",
        "SIKKER_API_KEY": DEMO_KEY,
        "SIKKER_STATE_DIR": str(directory / "state"),
        "SIKKER_WHITELIST": SPARED,
        "SIKKER_CUSTOM_BLACKLIST": str(custom),
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    with laboratory() as lab:
        standin = Standin(API, 80)
        lab.internet.inside(standin.start)
        made = Guard(lab, standin, directory, environment)
        put(made, *LIST, GATEWAY, "10.1.2.3")
        try:
            with Resolver(lab.internet):
                made.start()
                # The local file alone first, then both.
                made.logged("Blocking ", times=2)
                yield made
                made.stop()
        finally:
            if made.process is not None and made.process.poll() is None:
                made.kill()
            standin.stop()
    assert not re.search("ERROR|Traceback|Warning: ", made.log()), made.log()


# Asking a running service


def test_status_as_json_has_what_readers_rely_on(running: Guard) -> None:
    done = running.cli("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    status: dict[str, Any] = json.loads(done.stdout)
    assert status.keys() >= {"status", "blockedIps", "lastPull", "lastReport", "dryRun", "uptime", "uptimeSeconds"}
    assert (status["status"], status["dryRun"], status["version"]) == ("active", False, VERSION)
    # The range is cut in pieces around the address that is spared.
    assert status["blockedIps"] == len(running.blocked()) == status["blockedV4"] + status["blockedV6"]
    assert 0 <= status["uptimeSeconds"] < 600
    assert re.fullmatch(r"(\d+m )?\d+s", status["uptime"])
    pulled = datetime.datetime.fromisoformat(status["lastPull"])
    assert abs((datetime.datetime.now(datetime.UTC) - pulled).total_seconds()) < 600
    due = datetime.datetime.fromisoformat(status["nextPull"])
    assert 22 * 3600 < (due - pulled).total_seconds() < 26 * 3600
    assert status["reasons"] == []


def test_status_in_words_tells_the_same(running: Guard) -> None:
    done = running.cli("status")
    assert (done.returncode, done.stderr) == (0, "")
    told = {name: value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())}
    assert told["Status"] == "active"
    assert told["Blocked"] == str(len(running.blocked()))
    assert told["Dry run"] == "no"
    assert told["Safety whitelist"] == running.status()["allowlist"]
    assert "Last pull" in told


def test_the_key_is_in_nothing_that_is_printed_or_logged(running: Guard) -> None:
    secret = DEMO_KEY.rpartition("_")[2]
    for words in (("status",), ("status", "--json"), ("config",), ("check", LISTED), ("health",)):
        done = running.cli(*words)
        assert secret not in done.stdout + done.stderr
    assert secret not in running.log()


def test_health_of_a_healthy_service_is_ok(running: Guard) -> None:
    done = running.cli("health")
    assert (done.returncode, done.stdout, done.stderr) == (0, "OK\n", "")


@pytest.mark.parametrize(
    "words",
    [("health",), ("status",), ("status", "--json"), ("pull",), ("pull", "--accept"), ("check", LISTED)],
    ids=" ".join,
)
def test_a_plain_user_is_told_to_ask_as_root(running: Guard, words: tuple[str, ...]) -> None:
    before = running.status()["pulls"]
    done = outcome(running, *NOBODY, *SIKKERGUARD, *words)
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = complaints(done)
    assert sentence.endswith("run it as root (sudo)")
    assert running.status()["pulls"] == before


@pytest.mark.parametrize(
    "words", [("health",), ("status",), ("status", "--json"), ("pull",), ("check", INNOCENT)], ids=" ".join
)
def test_asking_does_not_depend_on_the_settings_of_the_shell(
    running: Guard, words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "sikkerguard.env"
    file.write_text(f"nonsense\nSIKKER_STATE_DIR={running.state}\nSIKKER_PULL_INTERVAL=soon\n")
    wrong = {"SIKKER_SCORE_MIN": "abc", "SIKKER_HEALTH_ADDRESS": "nowhere", "SIKKER_API_KEY": "", "SIKKER_NONE": "1"}
    done = running.cli("--config", str(file), *words, **wrong, SIKKER_STATE_DIR="")
    assert (done.returncode, complaints_if_any(done)) == (0, [])
    assert done.stdout


def test_a_second_service_on_the_same_state_is_refused_and_harms_nothing(running: Guard) -> None:
    rules, sets = running.lab.rules(), running.blocked()
    done = running.cli("run", SIKKER_HEALTH_ADDRESS="127.0.0.1:8081")
    assert done.returncode == 2
    (sentence,) = complaints(done)
    assert "another sikkerguard runs on" in sentence
    assert str(running.state) in sentence
    assert running.process is not None
    assert f"(process {running.process.pid})" in sentence
    assert (running.lab.rules(), running.blocked()) == (rules, sets)
    assert running.cli("health").returncode == 0


# check


@pytest.mark.parametrize(
    ("address", "entry", "source"),
    [
        (LISTED, LISTED, "SikkerAPI"),
        (CUSTOM, CUSTOM, "SIKKER_CUSTOM_BLACKLIST"),
        (IN_RANGE, RANGE, "SikkerAPI"),
        (LISTED_V6, LISTED_V6, "SikkerAPI"),
        ("2001:DB8:0007:0:0::7", LISTED_V6, "SikkerAPI"),
        (IN_RANGE_V6, RANGE_V6, "SikkerAPI"),
    ],
)
def test_check_says_which_entry_of_which_list_blocks(running: Guard, address: str, entry: str, source: str) -> None:
    done = running.cli("check", address)
    assert (done.returncode, done.stderr) == (3, "")
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"[0-9a-f:.]+ is blocked\.", first)
    assert any(re.fullmatch(rf"Listed by {source} as {re.escape(entry)}, since .* UTC\.", line) for line in rest)
    assert "allowlist" not in done.stdout


def test_check_as_json_names_every_list_that_has_the_address(running: Guard) -> None:
    done = running.cli("check", LISTED, "--json")
    assert (done.returncode, done.stderr) == (3, "")
    answer = json.loads(done.stdout)
    assert answer["address"] == LISTED
    assert answer["blocked"] is True
    assert answer["allowed_by"] is None
    found = {listing["source"]: listing["entry"] for listing in answer["listings"]}
    assert found == {"SikkerAPI": LISTED, "SIKKER_CUSTOM_BLACKLIST": LISTED}


@pytest.mark.parametrize("address", [INNOCENT, "192.0.2.128", "2001:db8:ab::1"])
def test_check_of_an_address_that_nobody_listed_is_zero(running: Guard, address: str) -> None:
    done = running.cli("check", address)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{address} is not blocked.", "It is on no list."]
    answer = json.loads(running.cli("check", address, "--json").stdout)
    nothing: dict[str, object] = {"listings": [], "allowed_by": None, "packets": 0, "left_out": None}
    assert answer == {"address": address, "blocked": False, **nothing}


@pytest.mark.parametrize(
    ("address", "line", "listed"),
    [
        (SPARED, f"{SPARED} (SIKKER_WHITELIST)", True),
        (GATEWAY, f"{GATEWAY} (default gateway)", True),
        ("10.1.2.3", "10.0.0.0/8 (private network)", True),
        (API, f"{API} (SikkerAPI)", False),
        ("127.0.0.53", "127.0.0.0/8 (loopback)", False),
    ],
)
def test_check_names_the_line_of_the_allowlist_that_protects(
    running: Guard, address: str, line: str, listed: bool
) -> None:
    done = running.cli("check", address)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{address} is not blocked." in done.stdout
    assert f"The allowlist protects it: {line}." in done.stdout
    assert ("Listed by SikkerAPI" in done.stdout) is listed
    as_json = running.cli("check", address, "--json")
    assert as_json.returncode == 0
    assert json.loads(as_json.stdout)["allowed_by"] == line


def test_check_counts_the_packets_that_were_dropped(running: Guard) -> None:
    def counted(address: str) -> int:
        found = json.loads(running.cli("check", address, "--json").stdout)["packets"]
        assert isinstance(found, int)
        return found

    sources = (LISTED, "192.0.2.41", LISTED_V6, "2001:db8:aa::41")
    running.lab.own_many(sources)
    with ThreadPoolExecutor(len(sources)) as pool:
        before = list(pool.map(counted, sources))
        assert not any(pool.map(running.lab.passes, [source for source in sources for _ in range(3)]))
        after = list(pool.map(counted, sources))
    assert after == [packets + 3 for packets in before]
    assert f"Packets dropped: {after[0]:,}." in running.cli("check", LISTED).stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "203.0.113",
        "203.0.113.7.",
        "203.0.113.007",
        "0xcb007107",
        "203.0.113.0/24",
        "203.0.113.7/33",
        "203.0.113.7; reboot",
        "2001:db8::7%wan",
        "2001:db8:::7",
        "::ffff:203.0.113.7",
        "٢٠٣.0.113.7",
        "localhost",
    ],
)
def test_check_of_what_is_no_address_is_wrong_use(running: Guard, text: str) -> None:
    done = running.cli("check", text)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = complaints(done)
    assert sentence.startswith(f"{text!r} can't be checked: ")


def test_check_without_a_service_says_that_no_rule_blocks(guard: Guard) -> None:
    put(guard, *LIST)
    guard.start()
    guard.logged("Blocking 4 IPs")
    guard.stop()
    done = guard.cli("check", LISTED)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{LISTED} is not blocked." in done.stdout
    assert "Listed by SikkerAPI" in done.stdout
    assert "No rule blocks it now: is the service running?" in done.stdout
    # Looking makes nothing.
    assert guard.lab.sets() == ""
    assert "SIKKERGUARD" not in guard.lab.rules()


def test_check_where_nothing_ever_ran_makes_no_state(guard: Guard) -> None:
    done = guard.cli("check", LISTED)
    assert (done.returncode, done.stderr) == (0, "")
    unknown = f"No list is kept in {guard.state}, so it is not known whether it is listed."
    assert done.stdout.splitlines() == [f"{LISTED} is not blocked.", unknown]
    assert not guard.state.exists()


# Asking where nobody answers


@pytest.mark.parametrize("words", [("health",), ("status",), ("status", "--json"), ("pull", "--accept")], ids=" ".join)
def test_asking_no_service_fails_and_says_what_to_look_at(guard: Guard, words: tuple[str, ...]) -> None:
    done = guard.cli(*words)
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = complaints(done)
    assert sentence.startswith("no sikkerguard answers at /run/sikkerguard/control.sock or ")
    assert f"{guard.state}/control.sock" in sentence
    assert not guard.state.exists()


def test_an_unhealthy_service_says_why(guard: Guard) -> None:
    guard.expected_errors.append("answered 500 Internal Server Error")
    guard.standin.fault("blacklist", Canned(500), 100)
    guard.start()
    guard.logged("ERROR SikkerAPI answered 500")
    done = guard.cli("health")
    assert done.returncode == 1
    assert "No list is in force yet: SikkerAPI answered 500 Internal Server Error." in done.stdout
    status = guard.cli("status")
    assert status.returncode == 1
    assert re.search(r"^Status: +degraded$", status.stdout, re.MULTILINE)
    assert re.search(r"^Trouble: +No list is in force yet", status.stdout, re.MULTILINE)
    as_json = guard.cli("status", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["lastPullError"] == "SikkerAPI answered 500 Internal Server Error"
    guard.stop()


# config, version and wrong use


def test_config_prints_what_is_in_force_and_no_key(guard: Guard) -> None:
    before = guard.lab.everything()
    done = guard.cli("config", SIKKER_PULL_INTERVAL="90m", SIKKER_WHITELIST="192.0.2.1, 2001:db8::/48")
    assert (done.returncode, done.stderr) == (0, "")
    settings = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert settings["SIKKER_API_KEY"] == "sk_free_********"
    assert settings["SIKKER_API_URL"] == f"http://{API}"
    assert settings["SIKKER_PULL_INTERVAL"] == "90m"
    assert settings["SIKKER_WHITELIST"] == "192.0.2.1,2001:db8::/48"
    assert settings["SIKKER_SCORE_MIN"] == "50"
    assert settings["SIKKER_HEALTH_ADDRESS"] == "127.0.0.1:8080"
    assert guard.lab.everything() == before == "\n"
    assert not guard.state.exists()
    assert guard.standin.record.requests_total == 0


def test_config_can_be_read_as_a_config_file_again(guard: Guard, tmp_path: Path) -> None:
    first = guard.cli("config", SIKKER_PORT_MAP="8443=https", SIKKER_MAX_GROWTH="2.5", SIKKER_WHITELIST="192.0.2.1")
    file = tmp_path / "sikkerguard.env"
    file.write_text(first.stdout.replace("sk_free_********", DEMO_KEY))
    plain = {name: value for name, value in guard.environment.items() if not name.startswith("SIKKER_")}
    guard.environment = plain
    assert guard.cli("--config", str(file), "config").stdout == first.stdout


FAULTS = {
    "SIKKER_API_URL": "ftp://api.example.net",
    "SIKKER_SCORE_MIN": "101",
    "SIKKER_PULL_INTERVAL": "soon",
    "SIKKER_WHITELIST": "192.0.2.300",
    "SIKKER_DRY_RUN": "perhaps",
    "SIKKER_MAX_GROWTH": "0.5",
    "SIKKER_HEALTH_ADDRESS": "0.0.0.0:8080",
    "SIKKER_STATE_DIR": "relative",
    "SIKKER_CUSTOM_BLACKLIST": "relative/list",
    "SIKKER_LOG_LEVEL": "loud",
    "SIKKER_WITELIST": "192.0.2.1",
}


@pytest.mark.parametrize("word", ["config", "run"])
def test_a_faulty_configuration_is_told_with_every_fault_at_once(guard: Guard, word: str) -> None:
    before = guard.lab.everything()
    done = guard.cli(word, **FAULTS)
    assert (done.returncode, done.stdout) == (2, "")
    found = complaints(done)
    assert {re.split("[: ]", sentence)[0] for sentence in found} == set(FAULTS)
    assert len(found) == len(FAULTS)
    assert any("the nearest is SIKKER_WHITELIST" in sentence for sentence in found)
    assert guard.lab.everything() == before
    assert not guard.state.exists()


def test_config_without_a_key_shows_the_rest_and_says_what_is_missing(guard: Guard) -> None:
    del guard.environment["SIKKER_API_KEY"]
    done = guard.cli("config")
    assert done.returncode == 2
    assert "SIKKER_API_KEY=(not set)" in done.stdout
    (sentence,) = complaints(done)
    assert sentence.startswith("SIKKER_API_KEY is not set")
    run = guard.cli("run")
    assert run.returncode == 2
    assert complaints(run) == [sentence]
    assert not guard.state.exists()


def test_a_config_file_that_is_not_there_is_wrong_use(guard: Guard, tmp_path: Path) -> None:
    done = guard.cli("--config", str(tmp_path / "none.env"), "config")
    assert done.returncode == 2
    assert f"{tmp_path}/none.env: there is no such file." in complaints(done)


def test_version_prints_itself(guard: Guard) -> None:
    done = guard.cli("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sikkerguard {VERSION}\n", "")


@pytest.mark.parametrize(
    "words", [(), ("unknown",), ("check",), ("run", "now"), ("status", "--xml"), ("check", "192.0.2.1", "192.0.2.2")]
)
def test_wrong_words_are_wrong_use_and_touch_nothing(guard: Guard, words: tuple[str, ...]) -> None:
    done = guard.cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: sikkerguard" in done.stderr
    assert guard.lab.everything() == "\n"
    assert not guard.state.exists()


def test_whether_there_is_a_key_is_answered_without_a_look_at_the_rest(guard: Guard) -> None:
    done = guard.cli("config", "--has-key", SIKKER_SCORE_MIN="nonsense")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = guard.cli("config", "--has-key", SIKKER_API_KEY="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sikkerguard: There is no key: put yours into /etc/sikkerguard/api-key.\n"
    assert guard.lab.everything() == "\n"


def test_help_names_every_command_and_touches_nothing(guard: Guard) -> None:
    done = outcome(guard, *NOBODY, *SIKKERGUARD, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("run", "restore", "status", "check", "pull", "health", "config", "cleanup", "demo", "version"):
        assert re.search(rf"^ +{word}\b", done.stdout, re.MULTILINE), word
    assert guard.lab.everything() == "\n"
    assert not guard.state.exists()


def test_a_reader_that_goes_away_is_no_drama(running: Guard) -> None:
    done = outcome(running, "bash", "-c", f"{' '.join(SIKKERGUARD)} status --json | true; exit ${{PIPESTATUS[0]}}")
    assert done.stderr == ""


# cleanup


def test_cleanup_where_nothing_is_succeeds_as_often_as_you_like(guard: Guard) -> None:
    # The table is there before: reading it is what makes it.
    guard.lab.host.run("iptables-legacy", "-t", "raw", "-S")
    guard.lab.host.run("ip6tables-legacy", "-t", "raw", "-S")
    before = guard.lab.everything()
    for _ in range(2):
        done = guard.cli("cleanup")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "Nothing of SikkerGuard is left in the kernel.\n"
    assert guard.lab.everything() == before
    assert not guard.state.exists()


FOREIGN_SETS = f"""\
create foreign hash:ip family inet
add foreign {INNOCENT}
create foreign6 hash:net family inet6
add foreign6 2001:db8:f::/48
create sikkerguardian hash:ip family inet
add sikkerguardian 203.0.113.201
create my-sikkerguard-v4 hash:net family inet
add my-sikkerguard-v4 203.0.113.128/26
"""
FOREIGN_RULES = (
    ("iptables-legacy", "-t", "raw", "-N", "SIKKERGUARDIAN"),
    ("iptables-legacy", "-t", "raw", "-A", "SIKKERGUARDIAN", "-s", "203.0.113.60", "-j", "DROP"),
    ("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-j", "SIKKERGUARDIAN"),
    ("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-m", "comment", "--comment", "SIKKERGUARD", "-j", "ACCEPT"),
    ("iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "foreign", "src", "-j", "DROP"),
    ("ip6tables-legacy", "-t", "raw", "-I", "PREROUTING", "-m", "set", "--match-set", "foreign6", "src", "-j", "DROP"),
    ("iptables-nft", "-A", "FORWARD", "-s", "203.0.113.61", "-j", "LOG", "--log-prefix", "SIKKERGUARD "),
)


def make_foreign(lab: Laboratory) -> str:
    """Sets and rules of others, some named so that they are easily taken for ours."""
    lab.host.run("ipset", "restore", text=FOREIGN_SETS)
    for words in FOREIGN_RULES:
        lab.host.run(*words)
    return lab.everything()


def test_cleanup_takes_away_what_a_dead_service_left_and_nothing_else(guard: Guard) -> None:
    lab = guard.lab
    before = make_foreign(lab)
    put(guard, *LIST)
    guard.start()
    guard.logged("Blocking 4 IPs")
    guard.kill()
    assert not lab.passes(LISTED)
    assert guard.cli("check", LISTED).returncode == 3
    kept = sorted(path.name for path in guard.state.iterdir())
    for _ in range(2):
        done = guard.cli("cleanup")
        assert (done.returncode, done.stderr) == (0, "")
        assert lab.everything() == before
    assert lab.reaches(LISTED)
    assert not lab.passes(INNOCENT)
    # The list on disk is not in the kernel, and the next start wants it.
    assert sorted(path.name for path in guard.state.iterdir()) == kept


@pytest.mark.parametrize(
    ("result", "left"),
    [
        # What systemd says of the service that has ended (systemd.exec(5), SERVICE_RESULT); no job of it is queued.
        ("success", False),
        ("exec-condition", False),
        ("watchdog", True),
        ("signal", True),
        ("core-dump", True),
        ("exit-code", True),
        ("oom-kill", True),
        ("timeout", True),
    ],
)
def test_after_a_stop_only_what_was_stopped_for_good_is_removed(guard: Guard, result: str, left: bool) -> None:
    put(guard, *LIST)
    guard.start()
    guard.logged("Blocking 4 IPs")
    guard.kill()
    done = guard.cli("cleanup", "--after-stop", SERVICE_RESULT=result)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert bool(guard.lab.sets()) == left
    assert guard.lab.passes(LISTED) != left


def test_cleanup_without_a_configuration_does_its_work(guard: Guard) -> None:
    # It is what a package's removal runs, when the files may be gone.
    put(guard, *LIST)
    guard.start()
    guard.logged("Blocking 4 IPs")
    guard.kill()
    guard.environment = {name: value for name, value in guard.environment.items() if not name.startswith("SIKKER_")}
    done = guard.cli("cleanup", SIKKER_SCORE_MIN="nonsense")
    assert (done.returncode, done.stderr) == (0, "")
    assert guard.lab.sets() == ""
    assert "SIKKERGUARD" not in guard.lab.rules()


def test_cleanup_that_can_not_finish_says_what_is_in_the_way(guard: Guard) -> None:
    lab = guard.lab
    put(guard, *LIST)
    guard.start()
    guard.logged("Blocking 4 IPs")
    lab.host.run("iptables-legacy", "-A", "FORWARD", "-m", "set", "--match-set", "sikkerguard-v4", "src", "-j", "DROP")
    guard.kill()
    done = guard.cli("cleanup")
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = complaints(done)
    assert "not everything could be removed" in sentence
    assert "sikkerguard-v4" in sentence
    assert "SIKKERGUARD" not in lab.rules()
    assert "--match-set sikkerguard-v4 src" in lab.rules()
    assert re.findall(r"^create (\S+)", lab.sets(), re.MULTILINE) == ["sikkerguard-v4"]
    assert lab.reaches(LISTED)
    lab.host.run("iptables-legacy", "-F", "FORWARD")
    assert guard.cli("cleanup").returncode == 0
    assert lab.sets() == ""


def test_cleanup_by_a_plain_user_says_what_it_takes(guard: Guard) -> None:
    put(guard, *LIST)
    guard.start()
    guard.logged("Blocking 4 IPs")
    guard.kill()
    before = guard.lab.everything()
    done = outcome(guard, *NOBODY, *SIKKERGUARD, "cleanup")
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = complaints(done)
    assert "CAP_NET_ADMIN" in sentence
    assert guard.lab.everything() == before


# run: where it may not begin


@pytest.mark.parametrize("capabilities", [(), ("net_raw", "syslog"), ("net_admin", "syslog")], ids="+".join)
def test_without_its_capabilities_it_fails_and_names_what_is_missing(
    guard: Guard, capabilities: tuple[str, ...]
) -> None:
    missing = {"CAP_NET_ADMIN", "CAP_NET_RAW"} - {f"CAP_{name.upper()}" for name in capabilities}
    before = guard.lab.everything()
    with open_directory() as directory:
        words = (*with_only(*capabilities), *SIKKERGUARD, "run")
        done = outcome(guard, *words, SIKKER_STATE_DIR=str(directory / "state"))
    assert done.returncode == 1, done
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("sikkerguard: ")
    assert all(name in sentence for name in missing), sentence
    assert "Traceback" not in done.stderr
    assert guard.lab.everything().strip() == before.strip() or "SIKKERGUARD" not in guard.lab.rules()


# run: as a plain user


def test_a_plain_user_with_three_capabilities_blocks_and_cleans_up(guard: Guard) -> None:
    put(guard, *LIST)
    with open_directory() as directory:
        guard.start(*with_only(*ENOUGH), *SIKKERGUARD, "run", SIKKER_STATE_DIR=str(directory / "state"))
        guard.logged("Blocking 4 IPs")
        assert guard.process is not None
        status = Path(f"/proc/{guard.process.pid}/status").read_text()
        assert re.search(r"^Uid:\s+65534\s+65534\s+65534\s+65534$", status, re.MULTILINE)
        # CAP_NET_ADMIN is 12, CAP_NET_RAW 13, CAP_SYSLOG 34 (capabilities(7), linux/capability.h).
        assert re.search(rf"^CapEff:\s+{1 << 12 | 1 << 13 | 1 << 34:016x}$", status, re.MULTILINE)
        for address in (LISTED, IN_RANGE, LISTED_V6, IN_RANGE_V6):
            assert not guard.lab.passes(address), address
        assert guard.lab.reaches(INNOCENT)
        assert guard.lab.reaches(INNOCENT_V6)
        state = directory / "state"
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "list.bin").stat().st_uid == 65534
        guard.stop()
        assert guard.lab.sets() == ""
        assert "SIKKERGUARD" not in guard.lab.rules()
        assert guard.lab.reaches(LISTED)


# run: dry


def test_a_dry_run_by_a_plain_user_tells_all_and_changes_nothing(guard: Guard) -> None:
    put(guard, *LIST, GATEWAY, "10.1.2.3", "127.0.0.1", "198.51.100.0/24")
    before = make_foreign(guard.lab)
    guard.lab.host.run("sysctl", "-qw", "net.ipv4.ping_group_range=1 0")
    with open_directory() as directory:
        state = directory / "state"
        words = (*NOBODY, *SIKKERGUARD, "run")
        guard.start(*words, SIKKER_DRY_RUN="true", SIKKER_STATE_DIR=str(state), SIKKER_WHITELIST=SPARED)
        guard.logged(r"Dry run: would be blocking \d+ IPs")
        assert guard.lab.reaches(LISTED)
        # What anyone may have started is not believed by root.
        assert "is neither root nor the service's user" in guard.cli("health", SIKKER_STATE_DIR=str(state)).stderr
        asking = {"SIKKER_STATE_DIR": str(state)}
        assert outcome(guard, *NOBODY, *SIKKERGUARD, "health", **asking).stdout == "OK\n"
        status = json.loads(outcome(guard, *NOBODY, *SIKKERGUARD, "status", "--json", **asking).stdout)
        assert (status["status"], status["dryRun"]) == ("dry-run", True)
        guard.stop()
        assert not state.exists()
        assert list(directory.iterdir()) == []
    log = guard.log()
    assert guard.lab.everything() == before
    would = " ".join(re.findall(r"Dry run: would block (.*)", log))
    for text in (LISTED, LISTED_V6, RANGE_V6):
        assert text in would
    for text in (f"{SPARED},", f"{SPARED} ", f"{GATEWAY},", "10.1.2.3", f"{HOST},"):
        assert text not in f"{would} "
    (removed,) = re.findall(r"Left out of the list: (.*)", log)
    assert "1 private" in removed
    assert "1 loopback" in removed
    assert re.search(r"\d allowlisted", removed)
    for entry in (f"{GATEWAY} (default gateway)", f"{SPARED} (SIKKER_WHITELIST)"):
        assert f"{entry} is on the list and stays allowed." in log
    assert "PREROUTING" in log
    assert "ERROR" not in log


def test_a_dry_run_beside_a_running_service_does_not_disturb_it(running: Guard, tmp_path: Path) -> None:
    rules, sets = running.lab.rules(), running.blocked()
    with (tmp_path / "log").open("wb") as log:
        process = running.lab.host.start(
            (*SIKKERGUARD, "run"),
            {**running.environment, "SIKKER_DRY_RUN": "true", "SIKKER_HEALTH_ADDRESS": "127.0.0.1:8081"},
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
        try:
            wait_for("the dry run", lambda: "would be blocking" in (tmp_path / "log").read_text())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
    assert (running.lab.rules(), running.blocked()) == (rules, sets)
    assert not running.lab.passes(LISTED)
    assert running.cli("check", LISTED).returncode == 3


# SIGHUP


def reread(guard: Guard, expected: str = "Settings reloaded; pulling now.") -> None:
    """SIGHUP, until the log has this line once more and the pull behind it is through."""
    assert guard.process is not None
    lines, pulls = len(re.findall(expected, guard.log())), guard.status()["pulls"]
    guard.process.send_signal(signal.SIGHUP)
    guard.logged(expected, times=lines + 1)
    wait_for("a pull", lambda: guard.status()["pulls"] > pulls)


def test_a_changed_config_file_takes_effect_and_a_faulty_one_does_not(guard: Guard, tmp_path: Path) -> None:
    file = tmp_path / "sikkerguard.env"
    file.write_text("# as an administrator writes it\nSIKKER_SCORE_MIN=60\n")
    put(guard, *LIST)
    guard.start(*SIKKERGUARD, "--config", str(file), "run")
    guard.logged("Blocking 4 IPs")
    assert ("scoreMinimum", "60") in guard.standin.record.requests[-1].query
    assert not guard.lab.passes(LISTED)

    file.write_text(f'SIKKER_SCORE_MIN="70"\nSIKKER_WHITELIST={LISTED}\n')
    reread(guard)
    assert ("scoreMinimum", "70") in guard.standin.record.requests[-1].query
    assert guard.lab.reaches(LISTED)
    assert not guard.lab.passes(IN_RANGE)
    assert guard.cli("check", LISTED).returncode == 0

    guard.expected_errors.append("The new configuration is not used")
    file.write_text("SIKKER_SCORE_MIN=800\nSIKKER_WITELIST=192.0.2.9\nSIKKER_DRY_RUN=true\n")
    reread(guard, "The new configuration is not used, the one before it stays")
    line = guard.logged("The new configuration is not used")
    assert "SIKKER_SCORE_MIN" in line
    assert "SIKKER_WITELIST is not a variable of SikkerGuard; the nearest is SIKKER_WHITELIST" in line
    assert ("scoreMinimum", "70") in guard.standin.record.requests[-1].query
    assert guard.lab.reaches(LISTED)
    assert not guard.lab.passes(IN_RANGE)

    file.unlink()
    reread(guard, "The new configuration is not used, the one before it stays")
    assert "there is no such file" in guard.logged("The new configuration is not used", times=2)
    assert guard.lab.reaches(LISTED)

    file.write_text("SIKKER_SCORE_MIN=74\nSIKKER_HEALTH_ADDRESS=127.0.0.1:9999\n")
    reread(guard)
    guard.logged("WARNING The new SIKKER_HEALTH_ADDRESS takes effect with the next start only")
    assert ("scoreMinimum", "74") in guard.standin.record.requests[-1].query
    wait_for("what is no longer allowed to be blocked again", lambda: not guard.lab.passes(LISTED))
    guard.stop()


def test_a_renewed_key_is_used_after_a_hangup(guard: Guard, tmp_path: Path) -> None:
    guard.expected_errors.append("does not know this key")
    file = tmp_path / "api-key"
    file.write_text("sk_free_old\n")
    del guard.environment["SIKKER_API_KEY"]
    put(guard, *LIST)
    guard.start(SIKKER_API_KEY_FILE=str(file))
    guard.logged("does not know this key")
    file.write_text(f"{DEMO_KEY}\n")
    reread(guard)
    guard.logged("Blocking 4 IPs")
    assert guard.standin.record.requests[-1].header("Authorization") == f"Bearer {DEMO_KEY}"
    assert not guard.lab.passes(LISTED)
    guard.stop()


def test_the_health_address_of_the_other_family_serves_too(guard: Guard) -> None:
    put(guard, *LIST)
    guard.environment["SIKKER_HEALTH_ADDRESS"] = "[::1]:8090"
    guard.start()
    guard.logged("Blocking 4 IPs")
    assert guard.cli("health").stdout == "OK\n"
    assert guard.status()["blockedIps"] == 4
    # Nobody outside can ask: the port is open on loopback alone.
    listening = guard.lab.host.run("ss", "-Hltn")
    assert [line.split()[3] for line in listening.splitlines()] == ["[::1]:8090"]
    with pytest.raises(ConnectionRefusedError):
        guard.lab.internet.inside(lambda: socket.create_connection((HOST, 8090), 2))
    guard.stop()
