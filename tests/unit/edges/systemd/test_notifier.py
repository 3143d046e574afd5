"""Word to systemd, as it arrives at the socket that systemd would listen on; and what systemd is asked."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from sikkerguard.edges.systemd.notifier import Notifier, unit_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(name="manager")
def _manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("INVOCATION_ID", "9a7d2c8a0f5e4b3c8d1e6f7a8b9c0d1e")
        yield listening


@pytest.fixture(name="make")
def _make(manager: socket.socket) -> Iterator[Callable[..., Notifier]]:
    """Makes notifiers; their sockets, which live as long as a process, are closed at the end."""
    made: list[Notifier] = []

    def make(**options: object) -> Notifier:
        made.append(Notifier(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for notifier in made:
        notifier.close()


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_each_word_arrives_in_the_form_of_sd_notify(manager: socket.socket, make: Callable[..., Notifier]) -> None:
    notifier = make()
    notifier.ready("Blocking 2 addresses")
    assert heard(manager) == ["READY=1"]
    assert heard(manager) == ["STATUS=Blocking 2 addresses"]
    notifier.status("Blocking 3 addresses")
    assert heard(manager) == ["STATUS=Blocking 3 addresses"]
    notifier.ping_watchdog()
    assert heard(manager) == ["WATCHDOG=1"]
    notifier.extend_timeout(1.5)
    assert heard(manager) == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1"]


@pytest.mark.parametrize(
    ("sentence", "arrives"),
    [
        (
            "No list yet: /etc/gr\u00fcn/\u2026/\u043a\u043b\u044e\u0447",
            "No list yet: /etc/gr\u00fcn/\u2026/\u043a\u043b\u044e\u0447",
        ),
        ("a surrogate \udc80 of a path", "a surrogate ? of a path"),
        ("two\nWATCHDOG=trigger\r lines", "two WATCHDOG=trigger lines"),
    ],
    ids=["letters", "bytes", "lines"],
)
def test_no_sentence_keeps_ready_from_arriving(
    sentence: str, arrives: str, manager: socket.socket, make: Callable[..., Notifier]
) -> None:
    make().ready(sentence)
    assert heard(manager) == ["READY=1"]
    assert heard(manager) == [f"STATUS={arrives}"]


def test_a_manager_that_does_not_read_holds_nothing_up_and_misses_nothing_that_is_still_true(
    manager: socket.socket, make: Callable[..., Notifier]
) -> None:
    notifier = make()
    began = time.monotonic()
    for number in range(2000):  # more than the kernel queues for a socket (net.unix.max_dgram_qlen)
        notifier.status(f"{number}")
        notifier.ping_watchdog()
    notifier.ready("ready")
    assert time.monotonic() - began < 2
    manager.setblocking(False)
    said = []
    while True:
        try:
            said.append(heard(manager)[0])
        except BlockingIOError:
            break
    assert "READY=1" not in said
    # The next word takes along what was left unsaid, each in its newest form.
    notifier.ping_watchdog()
    assert sorted(heard(manager)[0] for _ in range(3)) == ["READY=1", "STATUS=ready", "WATCHDOG=1"]


def test_a_manager_that_is_away_for_a_moment_hears_it_later(
    tmp_path: Path, manager: socket.socket, make: Callable[..., Notifier]
) -> None:
    notifier = make()
    manager.close()
    notifier.ready("ready")
    (tmp_path / "notify").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "notify"))
        again.settimeout(5)
        notifier.ping_watchdog()  # finds that the one it knew has gone
        notifier.ping_watchdog()
        assert [heard(again)[0] for _ in range(3)] == ["READY=1", "STATUS=ready", "WATCHDOG=1"]


def test_a_reload_has_its_moment_by_systemds_clock(manager: socket.socket, make: Callable[..., Notifier]) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    make().reloading()
    word, moment = heard(manager)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert word == "RELOADING=1"
    found = re.fullmatch(r"MONOTONIC_USEC=(\d+)", moment)
    assert found is not None
    assert before <= int(found[1]) <= after


def test_where_nobody_listens_nothing_is_said_or_asked(tmp_path: Path) -> None:
    notifier = Notifier({}, jobs=("touch", str(tmp_path / "asked")))
    for tell in (notifier.ping_watchdog, notifier.reloading, notifier.stopping):
        tell()
    assert notifier.pending_job() == ""
    assert not (tmp_path / "asked").exists()


GROUPS = {
    "version 2": "0::/system.slice/sikkerguard.service\n",
    "both versions": "12:pids:/system.slice/sikkerguard.service\n1:name=systemd:/system.slice/sikkerguard.service\n"
    "0::/system.slice/sikkerguard.service\n",
    "a control process": "0::/system.slice/sikkerguard.service/.control\n",
    "a container": "0::/docker/1dde5f23/system.slice/sikkerguard.service\n",
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("job", ["restart", "stop", "start"])
def test_the_job_of_our_own_unit_is_told(groups: str, job: str, make: Callable[..., Notifier], tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(groups)
    # As `systemctl list-jobs` prints it.
    lines = (
        f" 4711 sikkerguard.service {job} running\n 4712 sikkerguard.path stop waiting\n 4713 b.service start running"
    )
    assert make(groups=tmp_path / "cgroup", jobs=("printf", "%s\n", lines)).pending_job() == job


@pytest.mark.parametrize(
    "target", ["shutdown.target", "reboot.target", "poweroff.target", "halt.target", "kexec.target"]
)
def test_a_machine_that_goes_down_is_told_from_a_stop(
    target: str, make: Callable[..., Notifier], tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(GROUPS["version 2"])
    ours = " 4711 sikkerguard.service stop running\n"
    down = make(groups=tmp_path / "cgroup", jobs=("printf", "%s", f"{ours} 4712 {target} start waiting\n"))
    assert down.pending_job() == "shutdown"
    other = make(groups=tmp_path / "cgroup", jobs=("printf", "%s", f"{ours} 4712 {target} stop waiting\n"))
    assert other.pending_job() == "stop"


@pytest.mark.parametrize(
    ("groups", "program"),
    [
        pytest.param(
            "0::/user.slice/user-0.slice/session-3.scope\n", "echo 1 other.service restart running", id="none"
        ),
        pytest.param("0::/system.slice/sikkerguard.service\n", "true", id="no job"),
        pytest.param(
            "0::/system.slice/sikkerguard.service\n", "echo 1 sikkerguard.service restart; exit 1", id="failed"
        ),
        pytest.param("0::/system.slice/sikkerguard.service\n", "exec /nowhere", id="no such program"),
    ],
)
def test_what_can_not_be_found_out_is_no_job(
    groups: str, program: str, make: Callable[..., Notifier], tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    assert make(groups=tmp_path / "cgroup", jobs=("sh", "-c", program, "sh")).pending_job() == ""
    assert make(groups=tmp_path / "nothing").pending_job() == ""


def test_what_systemd_says_is_read_and_its_absence_is_nothing(tmp_path: Path) -> None:
    text = "LoadState=loaded\nActiveState=active\nStatusText=a=b\n"
    assert unit_properties(tmp_path, ("printf", "%s", text)) == {
        "LoadState": "loaded",
        "ActiveState": "active",
        "StatusText": "a=b",
    }
    assert unit_properties(tmp_path, ("false",)) == {}
    assert unit_properties(tmp_path, (str(tmp_path / "none"),)) == {}
    assert unit_properties(tmp_path / "none", ("printf", "%s", text)) == {}
