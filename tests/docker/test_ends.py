"""What a stop, a kill and an update leave in the kernel, and let through."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from tests.docker.host import CONTAINER, INNOCENT, LISTED
from tests.kernel.traffic import Traffic

if TYPE_CHECKING:
    from tests.docker.host import DockerHost

# What a stop may take. One that is not heard ends by a kill, 30 seconds later.
SECONDS = 10.0


def test_a_stop_leaves_nothing(host: DockerHost) -> None:
    before = host.everything()
    host.up(*LISTED)
    began = time.monotonic()
    host.docker("stop", CONTAINER)
    assert time.monotonic() - began < SECONDS
    assert host.everything() == before
    assert host.state("{{.State.ExitCode}}") == "0"
    host.logged("INFO Stopped: nothing of ours is left in the kernel.")

    # What it knows outlives its container.
    host.compose("down")
    host.compose("up", "-d")
    host.logged(r"INFO Blocking \d+ IPs \(from the cache")


def test_a_stop_in_the_first_moment_is_heard(host: DockerHost) -> None:
    before = host.everything()
    host.up(*LISTED)
    # What a killed run has left is to go by the same stop.
    host.compose("kill")
    assert not host.lab.passes(LISTED[0])
    host.compose("up", "-d")
    began = time.monotonic()
    host.compose("down")
    assert time.monotonic() - began < SECONDS
    assert host.everything() == before


def test_a_kill_leaves_the_list_in_force_and_the_next_start_takes_it_over(host: DockerHost) -> None:
    before = host.everything()
    host.up(*LISTED)
    with Traffic(host.lab, innocent=[INNOCENT], listed=LISTED[:2]) as traffic:
        host.docker("kill", CONTAINER)
        wait_for("the end", lambda: host.state("{{.State.Status}}") == "exited")
        traffic.check()
        host.compose("up", "-d")
        host.logged(r"INFO Blocking \d+ IPs \(from the cache", seconds=20)
        traffic.check()
        host.logged(r"INFO Blocking \d+ IPs$", times=2)
        traffic.check()
    host.compose("down")
    assert host.everything() == before


def test_what_a_kill_leaves_can_be_taken_away(host: DockerHost) -> None:
    before = host.everything()
    host.up(*LISTED)
    host.compose("kill")
    assert not host.lab.passes(LISTED[0])
    assert "Nothing of SikkerGuard is left in the kernel." in host.compose("run", "--rm", "sikkerguard", "cleanup")
    assert host.everything() == before


def test_an_update_of_the_image_lets_nothing_through(host: DockerHost) -> None:
    host.up(*LISTED)
    container, image = host.state("{{.Id}}"), host.state("{{.Image}}")
    name = host.image()
    try:
        host.daemon.engine.docker("build", "--tag", name, "-", text=f"FROM {name}\nLABEL another=one\n")
        with Traffic(host.lab, innocent=[INNOCENT], listed=LISTED[:2]) as traffic:
            host.compose("kill")
            host.compose("up", "-d")
            host.logged(r"INFO Blocking \d+ IPs$")
            traffic.check()
        assert host.state("{{.Id}}") != container
        assert host.state("{{.Image}}") != image
        assert not host.gets(LISTED[0], 80)
    finally:
        host.docker("tag", image, name)
