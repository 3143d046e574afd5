"""Docker's own networks: what they carry is protected or as before, and what Docker does with them changes nothing."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from scripts.laboratory.tools import wait_for
from tests.docker.host import CONTAINER, INNOCENT, LISTED
from tests.kernel.traffic import Traffic

if TYPE_CHECKING:
    from tests.docker.host import DockerHost

PORT, OTHER_PORT = 8088, 8089
# Where servers on the internet answer.
FAR_PORT = 7
CALL = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).recv(9).decode())"


def test_a_network_of_its_own_is_protected_too(host: DockerHost) -> None:
    host.up(*LISTED)
    before = host.rules_of_others()
    host.docker("network", "create", "--subnet=172.31.0.0/24", "extra")
    host.publish("web", OTHER_PORT, "--network=extra")
    assert not host.gets(LISTED[0], OTHER_PORT)
    host.logged(rf"INFO BLOCKED {LISTED[0]}:{OTHER_PORT} ")
    assert host.gets(INNOCENT, OTHER_PORT)

    host.docker("rm", "--force", "web")
    host.docker("network", "rm", "extra")
    assert host.rules_of_others() == before
    assert not host.lab.passes(LISTED[0])
    assert host.status()["repairs"] == 0


def test_a_restart_of_the_daemon_is_survived(host: DockerHost) -> None:
    host.publish("web", PORT)
    host.up(*LISTED)
    before = host.rules_of_others()
    host.daemon.stop()
    host.daemon.start()
    # Docker starts it again by itself.
    host.logged(r"INFO Blocking \d+ IPs \(from the cache", seconds=20)
    wait_for("the web server", lambda: host.gets(INNOCENT, PORT), 20)
    assert not host.gets(LISTED[0], PORT)
    assert not host.lab.passes(LISTED[1])
    assert host.rules_of_others() == before


def test_with_live_restore_a_restart_of_the_daemon_lets_nothing_through(host: DockerHost) -> None:
    host.daemon.stop()
    host.daemon.settings = {**host.daemon.settings, "live-restore": True}
    host.daemon.start()
    host.up(*LISTED)
    process = host.state("{{.State.Pid}}")
    with Traffic(host.lab, innocent=[INNOCENT], listed=LISTED[:2]) as traffic:
        host.daemon.stop()
        host.daemon.start()
        assert host.state("{{.State.Pid}}") == process
        traffic.check()
    assert host.status()["repairs"] == 0
    host.compose("down")
    assert CONTAINER not in host.docker("ps", "--all")


def test_what_containers_ask_for_is_answered_as_before_but_by_the_listed(host: DockerHost) -> None:
    far = (INNOCENT, LISTED[0])
    with Answering(host, far):
        assert [calls(host, address) for address in far] == [True, True]
        host.up(*LISTED)
        assert [calls(host, address) for address in far] == [True, False]
        host.compose("down")
        assert [calls(host, address) for address in far] == [True, True]


def calls(host: DockerHost, address: str) -> bool:
    """Whether a container on Docker's bridge gets an answer of this address on the internet."""
    words = ("run", "--rm", "--entrypoint=python3", host.image(), "-c", CALL, address, str(FAR_PORT))
    return host.docker(*words, check=False) == "here\n"


class Answering:
    """A server on the internet at each of these addresses."""

    def __init__(self, host: DockerHost, addresses: tuple[str, ...]) -> None:
        self._sockets = [self._listening(host, address) for address in addresses]
        self._threads = [threading.Thread(target=self._answer, args=(listening,)) for listening in self._sockets]

    @staticmethod
    def _listening(host: DockerHost, address: str) -> socket.socket:
        host.lab.own(address)
        return host.lab.internet.inside(lambda: socket.create_server((address, FAR_PORT)))

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        for listening in self._sockets:
            listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for listening in self._sockets:
            listening.close()

    @staticmethod
    def _answer(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"here")
