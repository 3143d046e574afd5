"""Who answers for the service, and whom it hears: the control socket, the page, and others in their places."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.laboratory.tools import wait_for
from tests.kernel.conftest import SIKKERGUARD
from tests.kernel.test_commands import INNOCENT, LISTED, LISTED_V6, NOBODY, complaints, outcome
from tests.standin.entries import Entry
from tests.standin.faults import Delay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Guard

BLOCKING = r"Blocking \d+ IPs$"
WORDS = (("health",), ("status",), ("status", "--json"), ("check", INNOCENT), ("pull",))
ESCAPES = "\\x1b]0;owned\\x07\\x1b[2Jowned"
# Whatever it is asked, it answers as the service would, and writes on the terminal of whoever believes it.
IMPOSTOR = f"""\
import http.server
class Page(http.server.BaseHTTPRequestHandler):
    server_version, sys_version = "SikkerGuard/9", ""
    def do_GET(self):
        body = b"{ESCAPES}\\n"
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8080), Page).serve_forever()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="sikkerguard-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def impostor(guard: Guard) -> Iterator[None]:
    """Somebody's program on the port of the page."""
    process = guard.lab.host.start([*NOBODY, SIKKERGUARD[0], "-c", IMPOSTOR], guard.environment)
    try:
        wait_for("the other program", lambda: guard.lab.host.run("ss", "-Hltn", "sport", "=", "8080"))
        yield
    finally:
        process.kill()
        process.wait(10)


def begin(guard: Guard, *words: str, **variables: str) -> None:
    guard.standin.replace(map(Entry, (LISTED, LISTED_V6)))
    guard.start(*words, **variables)
    guard.logged(BLOCKING)


def protects(guard: Guard) -> None:
    assert not guard.lab.passes(LISTED)
    assert not guard.lab.passes(LISTED_V6)
    assert guard.lab.reaches(INNOCENT)


def page(guard: Guard, path: str) -> tuple[int, bytes]:
    """What the page on port 8080 answers within the host."""

    def ask() -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", 8080, timeout=5)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    return guard.lab.host.inside(ask)


def hang_up(guard: Guard) -> None:
    assert guard.process is not None
    guard.process.send_signal(signal.SIGHUP)


def test_a_taken_port_keeps_nothing_from_working_and_nobody_there_is_believed(guard: Guard) -> None:
    guard.expected_errors.append("127.0.0.1 port 8080 can't be listened on")
    with impostor(guard):
        begin(guard)
        protects(guard)
        assert guard.cli("health").stdout == "OK\n"
        found = guard.cli("status", "--json")
        assert found.returncode == 1
        status = json.loads(found.stdout)
        (reason,) = status["reasons"]
        assert status["status"] == "degraded"
        assert "port 8080 can't be listened on (Address already in use)" in reason
        assert guard.cli("pull").returncode == 0
        assert guard.cli("check", LISTED).returncode == 3
        for words in WORDS:
            done = guard.cli(*words)
            assert "owned" not in done.stdout + done.stderr
            assert "\x1b" not in done.stdout + done.stderr
        assert page(guard, "/healthz")[1].endswith(b"owned\n")
    # Told to look again, it has the port as soon as that is free.
    hang_up(guard)
    wait_for("the page", lambda: guard.status()["status"] == "active")
    assert page(guard, "/healthz") == (200, b"OK\n")
    assert json.loads(page(guard, "/status")[1])["status"] == "active"
    assert guard.log().count("can't be listened on") == 1
    guard.stop()


def test_nobody_on_the_port_is_believed_where_no_service_runs(guard: Guard) -> None:
    with impostor(guard):
        for words in (("health",), ("status",), ("status", "--json"), ("pull",)):
            done = guard.cli(*words)
            assert (done.returncode, done.stdout) == (1, "")
            (sentence,) = complaints(done)
            assert sentence.startswith("no sikkerguard answers at ")


def test_forty_idle_connections_are_no_outage(guard: Guard) -> None:
    begin(guard)
    with contextlib.ExitStack() as held:

        def crowd() -> None:
            for _ in range(40):
                held.enter_context(socket.create_connection(("127.0.0.1", 8080), 5))

        guard.lab.host.inside(crowd)
        for _ in range(40):
            idle = held.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(str(guard.state / "control.sock"))
        for _ in range(5):
            assert guard.cli("health").stdout == "OK\n"
            assert page(guard, "/healthz") == (200, b"OK\n")
    guard.stop()


def test_who_may_ask_is_the_kernel_s_word(guard: Guard, place: Path) -> None:
    runtime = place / "run"
    runtime.mkdir(mode=0o755)
    group = 4242
    begin(guard, "setpriv", f"--regid={group}", "--clear-groups", *SIKKERGUARD, "run", RUNTIME_DIRECTORY=str(runtime))
    control = runtime / "control.sock"
    assert (control.stat().st_mode & 0o777, control.stat().st_gid) == (0o660, group)
    assert not (guard.state / "control.sock").exists()
    asking = {"RUNTIME_DIRECTORY": str(runtime), "SIKKER_STATE_DIR": str(place / "none")}
    member = ("setpriv", "--reuid=65534", "--regid=65534", f"--groups=65534,{group}")
    primary = ("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups")

    assert outcome(guard, *SIKKERGUARD, "health", **asking).stdout == "OK\n"
    pulled = outcome(guard, *SIKKERGUARD, "pull", **asking)
    assert (pulled.returncode, pulled.stdout) == (0, "Blocking 2 IPs\n")
    pulls = json.loads(outcome(guard, *SIKKERGUARD, "status", "--json", **asking).stdout)["pulls"]
    for user in (member, primary):
        assert outcome(guard, *user, *SIKKERGUARD, "health", **asking).stdout == "OK\n"
        done = outcome(guard, *user, *SIKKERGUARD, "pull", "--accept", **asking)
        assert (done.returncode, done.stdout) == (1, "")
        assert complaints(done) == ["Only root may change something: run it as root (sudo)."]
    for mode, said in ((0o660, "run it as root (sudo)"), (0o666, "Only root and the service's group may ask.")):
        control.chmod(mode)
        for words in (("status",), ("pull",)):
            done = outcome(guard, *NOBODY, *SIKKERGUARD, *words, **asking)
            assert (done.returncode, done.stdout) == (1, "")
            (sentence,) = complaints(done)
            assert sentence.endswith(said)
    assert json.loads(outcome(guard, *SIKKERGUARD, "status", "--json", **asking).stdout)["pulls"] == pulls
    guard.stop()
    assert not control.exists()


@pytest.mark.parametrize(("above", "owner", "believed"), [(0, 0o755, True), (0, 0o777, False), (65534, 0o755, False)])
def test_a_server_is_believed_where_root_gave_its_user_the_place(
    guard: Guard, place: Path, above: int, owner: int, believed: bool
) -> None:
    runtime = place / "run"
    runtime.mkdir(mode=0o750)
    for directory, user in ((runtime, 65534), (place, above)):
        directory.chmod(0o750)
        guard.lab.host.run("chown", f"{user}:{user}", str(directory))
    place.chmod(owner)
    asking = {"RUNTIME_DIRECTORY": str(runtime), "SIKKER_STATE_DIR": str(place / "none")}
    guard.lab.host.run("sysctl", "-qw", "net.ipv4.ping_group_range=1 0")
    guard.standin.replace([Entry(LISTED)])
    guard.start(*NOBODY, *SIKKERGUARD, "run", SIKKER_DRY_RUN="true", **asking)
    guard.logged(r"would be blocking")
    done = outcome(guard, *SIKKERGUARD, "health", **asking)
    if believed:
        assert (done.returncode, done.stdout) == (0, "OK\n")
    else:
        assert (done.returncode, done.stdout) == (1, "")
        (sentence,) = complaints(done)
        assert "(user 65534) is neither root nor the service's user; nothing of it is believed" in sentence
    # Its own user believes it.
    assert outcome(guard, *NOBODY, *SIKKERGUARD, "health", **asking).stdout == "OK\n"
    guard.stop()


def test_a_kill_leaves_a_socket_that_the_next_start_replaces(guard: Guard) -> None:
    begin(guard)
    control = guard.state / "control.sock"
    guard.kill()
    assert control.is_socket()
    done = guard.cli("health")
    assert (done.returncode, done.stdout) == (1, "")
    assert complaints(done)[0].startswith("no sikkerguard answers at ")
    guard.start()
    guard.logged(BLOCKING, times=2)
    assert guard.cli("health").stdout == "OK\n"
    protects(guard)
    guard.stop()
    assert not control.exists()


def test_a_state_directory_with_a_long_name_works(guard: Guard) -> None:
    directory = guard.directory / ("long" * 40) / "state"
    guard.environment["SIKKER_STATE_DIR"] = str(directory)
    assert len(str(directory / "control.sock")) > 108
    begin(guard)
    assert guard.cli("health").stdout == "OK\n"
    assert guard.cli("pull").stdout == "Blocking 2 IPs\n"
    guard.stop()


def test_a_socket_that_can_not_be_made_is_a_trouble_and_no_end(guard: Guard) -> None:
    guard.expected_errors.append("The control socket can't be made")
    (guard.state / "control.sock").mkdir(parents=True)
    begin(guard)
    protects(guard)

    def found() -> dict[str, Any]:
        status: dict[str, Any] = json.loads(page(guard, "/status")[1])
        return status

    wait_for("the trouble", lambda: found()["status"] == "degraded")
    (reason,) = found()["reasons"]
    assert reason.startswith(
        f"The control socket can't be made: {guard.state}/control.sock (it is there, and no socket)"
    )
    assert page(guard, "/healthz") == (200, b"OK\n")
    (guard.state / "control.sock").rmdir()
    hang_up(guard)
    wait_for("the socket", lambda: guard.cli("status").returncode == 0)
    guard.stop()


def test_a_pull_shows_what_it_waits_for(guard: Guard) -> None:
    begin(guard)
    guard.standin.fault("blacklist", Delay(3), 1)
    done = guard.cli("pull")
    assert (done.returncode, done.stdout) == (0, "Blocking 2 IPs\n")
    lines = done.stderr.splitlines()
    assert lines[0] == "sikkerguard: waiting for SikkerAPI's list ..."
    assert len(lines) == len(set(lines))
    guard.stop()


def test_cleanup_beside_a_service_is_refused_without_force(guard: Guard) -> None:
    begin(guard)
    before = guard.lab.everything()
    wrong = {"SIKKER_SCORE_MIN": "abc", "SIKKER_NONE": "1"}
    # The third is the unit's word, by hand: systemd would say that the service has ended.
    for words, variables in (((), {}), ((), wrong), (("--after-stop",), {})):
        done = guard.cli("cleanup", *words, **variables)
        assert (done.returncode, done.stdout) == (1, "")
        (sentence,) = complaints(done)
        assert sentence.startswith("the service runs, and would put back within seconds what is removed")
        assert "--force" in sentence
    assert guard.lab.sets()
    assert guard.lab.rules().count("SIKKERGUARD") == before.count("SIKKERGUARD")
    # One whose socket is away is known by its lock.
    (guard.state / "control.sock").rename(guard.state / "elsewhere")
    assert "(process " in complaints(guard.cli("cleanup"))[0]
    guard.expected_errors.append("Another program changed our rules")
    done = guard.cli("cleanup", "--force", **wrong)
    assert (done.returncode, done.stdout) == (0, "Nothing of SikkerGuard is left in the kernel.\n")
    assert "runs and will put it back; stop that instead." in done.stderr
    wait_for("the repair", partial(lambda: not guard.lab.passes(LISTED)))
    guard.stop()
    assert guard.lab.sets() == ""
    assert guard.cli("cleanup").returncode == 0
