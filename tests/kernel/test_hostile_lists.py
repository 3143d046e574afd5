"""Lists that would hurt the host, and sources that fail: listed sources stay blocked, innocent ones are served."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from scripts.laboratory.tools import wait_for
from tests.kernel.conftest import SIKKERGUARD
from tests.standin.faults import Canned, Delay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kernel.conftest import Guard

LISTED, LISTED_V6 = "203.0.113.7", "2001:db8:7::7"
INNOCENT, INNOCENT_V6 = "192.0.2.77", "2001:db8:9::9"
OWN_LISTED, OWN_NEW = "203.0.113.201", "203.0.113.202"
# Real enough: 2,500 single addresses of networks that no test uses.
CROWD = [f"45.{number >> 8}.{number & 255}.9" for number in range(2500)]
LIST = [LISTED, LISTED_V6, *CROWD]
EIGHTHS = [f"{first}.0.0.0/8" for first in range(1, 224)]
# The same as ranges that SikkerAPI may name: no longer than a /16, but all of them.
SIXTEENTHS = [f"{first}.{second}.0.0/16" for first in range(1, 224) for second in range(256)]
# 3% of the /64s that there are.
MANY_V6 = "".join(f"2{number:03x}::/16\n" for number in range(0, 500, 2))


def pull(guard: Guard, *words: str) -> str:
    """`sikkerguard pull`: what it prints of its outcome, on either stream."""
    done = guard.cli("pull", *words)
    return done.stdout + "".join(line for line in done.stderr.splitlines(True) if "waiting for" not in line)


def serve(guard: Guard, lines: Sequence[str]) -> None:
    """Have the stand-in answer with this list from now on."""
    guard.serve(*lines)


def start(guard: Guard, lines: Sequence[str] = tuple(LIST), **variables: str) -> None:
    """Have the service commit a first list."""
    serve(guard, lines)
    guard.start(**variables)
    guard.logged(r"Blocking \d+ IPs$", seconds=30)


def assert_protected(guard: Guard) -> None:
    """Who is listed is dropped, and who is not is served."""
    for listed in (LISTED, LISTED_V6):
        assert not guard.lab.passes(listed), listed
    for innocent in (INNOCENT, INNOCENT_V6):
        assert guard.lab.reaches(innocent), innocent


def test_a_list_of_the_whole_internet_is_refused(guard: Guard) -> None:
    guard.expected_errors.append(" ERROR .*stays in force; next try in")
    start(guard)
    assert_protected(guard)
    before = guard.status()
    assert before["coverage"] == {"v4": pytest.approx(100 * 2501 / 2**32, rel=0.01), "v6": pytest.approx(0, abs=1e-12)}
    assert "Covered:" in guard.cli("status").stdout

    serve(guard, [*LIST, *EIGHTHS])
    assert "entries of SikkerAPI's list are wider ranges than it may block" in pull(guard)
    serve(guard, [*LIST, *SIXTEENTHS])
    assert "of IPv4, more than the 2% that are allowed" in pull(guard)
    assert_protected(guard)
    # As many entries as before, which cover a hundred thousand times as much.
    serve(guard, [LISTED, LISTED_V6, *(f"45.{number}.0.0/16" for number in range(200)), *CROWD[:2300]])
    assert "grew from less than 0.001% of IPv4 to 0.305% of IPv4" in pull(guard)
    assert_protected(guard)
    found = guard.status()
    assert (found["blockedIps"], found["coverage"]["v4"]) == (2502, before["coverage"]["v4"])
    assert guard.blocked() == {*LIST}

    # Whoever means it says so once.
    serve(guard, [*LIST, "9.0.0.0/16", *(f"45.{number}.0.0/16" for number in range(200))])
    assert pull(guard).startswith("sikkerguard: the pull failed: SikkerAPI's list grew from")
    assert pull(guard, "--accept").startswith("Blocking ")
    assert not guard.lab.passes(LISTED)
    assert guard.lab.reaches(INNOCENT)
    assert guard.status()["coverage"]["v4"] == pytest.approx(100 * 201 / 65536, rel=0.01)


def test_a_first_list_of_the_whole_internet_is_refused_too(guard: Guard) -> None:
    guard.expected_errors.append(" ERROR .*no list is in force yet; next try in")
    guard.lab.own(INNOCENT)
    serve(guard, [*LIST, *SIXTEENTHS])
    guard.start()
    guard.logged("ERROR SikkerAPI's list covers .* of IPv4, more than the 2%")
    assert guard.blocked() == set()
    assert guard.lab.reaches(INNOCENT)
    serve(guard, LIST)
    assert pull(guard) == "Blocking 2502 IPs\n"
    assert_protected(guard)


def test_some_wide_ranges_are_left_out_and_counted(guard: Guard) -> None:
    start(guard, [*LIST, "192.0.0.0/8", "10.0.0.0/8", "198.51.0.0/15"])
    assert "2 wider than /16 skipped" in guard.logged("WARNING SikkerAPI's list: ")
    assert "1 private" in guard.logged("Left out of the list: ")
    assert_protected(guard)
    assert guard.blocked() == {*LIST}


def test_after_one_short_list_the_real_one_is_taken(guard: Guard) -> None:
    guard.expected_errors.append(" ERROR .*stays in force; next try in 1[0-5]m")
    start(guard)
    serve(guard, [LISTED, LISTED_V6, *CROWD[:598]])
    assert "shrank from 2502 to 600 entries, to less than a half" in pull(guard)
    assert guard.status()["blockedIps"] == 2502
    assert pull(guard) == "Blocking 600 IPs\n"
    serve(guard, LIST)
    assert pull(guard) == "Blocking 2502 IPs\n"
    assert_protected(guard)


# The local file


@pytest.fixture
def custom(guard: Guard) -> str:
    """The local file, with one address."""
    path = guard.directory / "mine.txt"
    path.write_text(f"# mine\n{OWN_LISTED}\n")
    guard.environment["SIKKER_CUSTOM_BLACKLIST"] = str(path)
    return str(path)


def wait_for_both(guard: Guard) -> None:
    """Both lists are in force. The log tells: who lists sets meanwhile keeps the kernel from swapping them."""
    guard.logged("Blocking 2503 IPs")
    assert guard.blocked() == {*LIST, OWN_LISTED}


def write(path: str, text: str) -> None:
    """Have the file hold this."""
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - as an editor does it
        file.write(text)


def test_a_changed_file_is_in_force_within_seconds_whatever_sikkerapi_does(guard: Guard, custom: str) -> None:
    lab = guard.lab
    start(guard)
    wait_for_both(guard)
    pulls = guard.status()["pulls"]
    for fault in (Canned(status=429, body=b'{"error": "quota"}'), Canned(status=503, body=b"")):
        guard.standin.clear_faults()
        guard.standin.fault("blacklist", fault, 1000)
        write(custom, f"{OWN_LISTED}\n{OWN_NEW}\n")
        wait_for("the new address blocked", lambda: not lab.passes(OWN_NEW), 6)
        write(custom, f"{OWN_LISTED}\n")
        wait_for("it let in again", lambda: lab.passes(OWN_NEW), 6)
        assert not lab.passes(OWN_LISTED)
        assert_protected(guard)
    assert guard.status()["pulls"] == pulls


def test_the_file_protects_where_sikkerapi_never_answered(guard: Guard, custom: str) -> None:
    guard.expected_errors.append(" ERROR SikkerAPI answered 503")
    guard.standin.fault("blacklist", Canned(status=503, body=b""), 1000)
    guard.start()
    guard.logged("Blocking 1 IPs")
    guard.logged("ERROR SikkerAPI answered 503")
    assert not guard.lab.passes(OWN_LISTED)
    assert guard.lab.reaches(LISTED)
    found = guard.status()
    assert found["status"] == "degraded"
    assert "SikkerAPI" in " ".join(found["reasons"])
    serve(guard, LIST)
    assert pull(guard) == "Blocking 2503 IPs\n"
    assert guard.status()["reasons"] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("<html><body>502 Bad Gateway</body></html>\n", "othing in .* can be read"),
        ("45.9.0.0/7\n" * 30, "othing in .* can be read"),
    ],
    ids=["zero bytes", "an error page", "wide ranges"],
)
def test_a_file_that_went_wrong_keeps_its_last_good_version(
    guard: Guard, custom: str, content: str, words: str
) -> None:
    guard.expected_errors.append(" ERROR ")
    start(guard)
    wait_for_both(guard)
    write(custom, content)
    line = guard.logged(f" ERROR .*{words}")
    assert "its version of" in line
    assert "(1 entry) stays in force; it is read again when it has changed" in line
    found = {source["name"]: source for source in guard.status()["lists"]}
    assert found["SIKKER_CUSTOM_BLACKLIST"]["entries"] == 1
    assert found["SIKKER_CUSTOM_BLACKLIST"]["trouble"]
    assert found["SikkerAPI"]["trouble"] is None
    assert "List trouble:" in guard.cli("status").stdout
    # Neither a pull nor a restart changes that.
    assert pull(guard) == "Blocking 2503 IPs\n"
    assert not guard.lab.passes(OWN_LISTED)
    guard.kill()
    guard.start()
    guard.logged(r"Blocking 2503 IPs \(from the cache")
    assert not guard.lab.passes(OWN_LISTED)
    guard.logged(f" ERROR .*{words}", times=2)

    write(custom, "# nobody\n")
    wait_for("its end", lambda: guard.lab.passes(OWN_LISTED))
    assert guard.blocked() == {*LIST}
    assert_protected(guard)
    assert all(source["trouble"] is None for source in guard.status()["lists"])


def test_a_file_that_covers_too_much_is_refused(guard: Guard, custom: str) -> None:
    guard.expected_errors.append(" ERROR ")
    start(guard)
    wait_for_both(guard)
    write(custom, f"{OWN_LISTED}\n{MANY_V6}")
    assert "3.05% of IPv6, more than the 2% that are allowed" in guard.logged(" ERROR .*SIKKER_CUSTOM_BLACKLIST covers")
    write(custom, f"{OWN_LISTED}\n" + "".join(f"{first}.0.0.0/8\n" for first in range(20, 30)))
    assert "3.91% of IPv4" in guard.logged(" ERROR .*SIKKER_CUSTOM_BLACKLIST covers", times=2)
    assert guard.blocked() == {*LIST, OWN_LISTED}
    assert_protected(guard)
    assert pull(guard, "--accept") == "Blocking 2506 IPs\n"
    assert guard.blocked() >= {OWN_LISTED, "20.0.0.0/6", "24.0.0.0/6", "28.0.0.0/7"}
    assert not guard.lab.passes(LISTED)


def test_a_setting_that_is_taken_out_ends_the_file(guard: Guard, custom: str) -> None:
    settings = guard.directory / "settings.env"
    settings.write_text(f"SIKKER_CUSTOM_BLACKLIST={guard.environment.pop('SIKKER_CUSTOM_BLACKLIST')}\n")
    serve(guard, LIST)
    guard.start(*SIKKERGUARD, "--config", str(settings), "run")
    wait_for_both(guard)
    settings.write_text("# none\n")
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)
    wait_for("its end", lambda: guard.lab.passes(OWN_LISTED))
    assert guard.blocked() == {*LIST}
    assert [source["name"] for source in guard.status()["lists"]] == ["SikkerAPI"]


def test_an_edited_file_switches_off_no_guard_of_sikkerapi_s_list(guard: Guard, custom: str) -> None:
    guard.expected_errors.append(" ERROR .*stays in force; next try in")
    start(guard)
    wait_for_both(guard)
    write(custom, f"{OWN_LISTED}\n{OWN_NEW}\n")
    wait_for("the new address blocked", lambda: not guard.lab.passes(OWN_NEW), 6)
    serve(guard, [*LIST, *(f"46.{number >> 8}.{number & 255}.9" for number in range(40_000))])
    assert "grew from 2502 to 42502 entries" in pull(guard)
    serve(guard, [LISTED, LISTED_V6])
    assert "shrank from 2502 to 2 entries, to less than a tenth" in pull(guard)
    assert guard.blocked() == {*LIST, OWN_LISTED, OWN_NEW}
    assert_protected(guard)


# What an update may leave behind


def test_a_start_that_finds_an_unfinished_pull_waits(guard: Guard) -> None:
    start(guard)
    guard.standin.clear_faults()
    guard.standin.fault("blacklist", Delay(60), 1000)
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)
    wait_for("the pull", lambda: guard.status()["pulling"])
    wait_for("the mark", lambda: json.loads((guard.state / "pulls.json").read_text())["unfinished"] == 1)
    guard.kill()
    asked = guard.standin.record.requests_total
    guard.start()
    guard.logged(r"Blocking 2502 IPs \(from the cache")
    line = guard.logged("WARNING The last run ended in the middle of an update; the next one begins in ")
    assert line.endswith(("s.", "m."))
    assert_protected(guard)
    assert guard.standin.record.requests_total == asked
    # Whoever asks for it gets it at once, and nothing is remembered of a pull that ended.
    serve(guard, LIST)
    assert pull(guard) == "Blocking 2502 IPs\n"
    assert json.loads((guard.state / "pulls.json").read_text())["unfinished"] == 0
    guard.stop()
