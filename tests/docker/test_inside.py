"""What the service may do in its container, and what it is given."""

from __future__ import annotations

import fcntl
import re
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from tests.docker.host import CONTAINER, LISTED
from tests.standin.server import DEMO_KEY

if TYPE_CHECKING:
    from tests.docker.host import DockerHost

# linux/capability.h
NET_ADMIN, NET_RAW, SYSLOG = 12, 13, 34


def test_it_has_the_least_of_rights(host: DockerHost) -> None:
    host.up(*LISTED)
    rights = 1 << NET_ADMIN | 1 << NET_RAW | 1 << SYSLOG
    status = dict(re.findall(r"^(\w+):\t(.*)$", host.docker("exec", CONTAINER, "cat", "/proc/1/status"), re.MULTILINE))
    # The one more that its container has, it has given up.
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == rights
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Name"].startswith(("sikkerguard", "python3"))
    mounts = host.docker("exec", CONTAINER, "cat", "/proc/mounts").splitlines()
    writable = {fields[1] for line in mounts if "rw" in (fields := line.split())[3].split(",")}
    # Docker's own are what every container has.
    docker_s = ("/dev", "/proc", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname")
    assert {place for place in writable if not place.startswith(docker_s)} == {
        "/var/lib/sikkerguard",
        "/run/sikkerguard",
    }


def test_its_commands_work_beside_it(host: DockerHost) -> None:
    host.up(*LISTED)
    assert host.command("health") == "OK\n"
    assert "is blocked" in host.command("check", LISTED[0], check=False)
    host.serve(LISTED[1])
    # A tenth of the list before.
    host.command("pull", "--accept")
    assert host.lab.reaches(LISTED[0])
    assert not host.lab.passes(LISTED[1])
    assert f"SIKKER_API_KEY={DEMO_KEY[:8]}" in host.command("config")


def test_the_key_can_be_a_secret_and_settings_a_file(host: DockerHost) -> None:
    key = host.project / "api-key"
    key.write_text(f"{DEMO_KEY}\n")
    key.chmod(0o600)
    host.variables = {"API_KEY_FILE": str(key)}
    host.configure(SIKKER_PORT_MAP="8088=https", SIKKER_HEALTH_ADDRESS="127.0.0.1:8099")
    host.up(*LISTED)
    assert DEMO_KEY not in host.state("{{json .Config}}")
    assert host.command("health") == "OK\n"
    assert not host.gets(LISTED[0], 8088)
    host.logged(rf"INFO BLOCKED {LISTED[0]}:8088 \(https\) ")


def test_without_a_key_nothing_begins_and_nothing_that_runs_is_replaced(host: DockerHost) -> None:
    key, host.variables = host.variables, {}
    sentence = "no key - put it into .env (cp .env.example .env)"
    assert sentence in host.compose("up", "-d", check=False)
    assert not host.docker("ps", "--quiet")
    host.compose("down")
    # As README once began it, and then an update in a new shell.
    host.variables = key
    host.up(*LISTED)
    running = host.state("{{.Id}} {{.State.StartedAt}}")
    host.variables = {}
    host.configure(SIKKER_SCORE_MIN="51")
    assert sentence in host.compose("up", "-d", check=False)
    assert host.state("{{.Id}} {{.State.StartedAt}}") == running
    assert not host.lab.passes(LISTED[0])
    # With the key in .env it stays there.
    host.configure(**key, SIKKER_SCORE_MIN="52")
    host.compose("up", "-d")
    wait_for("another container", lambda: host.state("{{.Id}} {{.State.StartedAt}}") != running, 30)
    host.logged(r"INFO Blocking \d+ IPs$")
    host.compose("down")


def test_it_waits_for_the_lock_that_the_hosts_iptables_takes(host: DockerHost) -> None:
    host.variables["XTABLES_LOCK"] = "/run/xtables.lock"
    with (host.files / "run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host.serve(*LISTED)
        host.compose("up", "-d")
        wait_for("the sets", lambda: "create sikkerguard-v4 " in host.lab.sets())
        rules = [host.lab.rules() for _ in range(20)]
        assert not [text for text in rules if "SIKKERGUARD" in text]
    host.logged(r"INFO Blocking \d+ IPs$")
    assert not host.lab.passes(LISTED[0])


def test_a_file_that_the_host_lacks_is_not_made(host: DockerHost) -> None:
    host.variables["XTABLES_LOCK"] = "/run/xtables.lock"
    assert "bind source path does not exist: /run/xtables.lock" in host.compose("up", "-d", check=False)
    assert not (host.files / "run/xtables.lock").exists()
    assert not host.docker("ps", "--all", "--quiet")


def test_nothing_of_python_is_compiled_at_a_start(host: DockerHost) -> None:
    host.configure(PYTHONVERBOSE="1")
    host.serve(*LISTED)
    host.compose("up", "-d")
    host.logged(r"INFO Blocking \d+ IPs$")
    loaded = re.findall(r"^# code object from '?(/usr/\S+?)'?$", host.log(), re.MULTILINE)
    assert len(loaded) > 100
    assert [path for path in loaded if not path.endswith(".pyc")] == []
