"""From inside its container the service sees who the host must not be cut off from, and follows when that changes."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from scripts.laboratory.network import GATEWAY, HOST, RESOLVER
from scripts.laboratory.tools import wait_for
from tests.docker.host import LISTED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.docker.host import DockerHost

# Each is on the list, and is something to the host.
RESOLVER_BEFORE, RESOLVER_AFTER, NEW_GATEWAY, LOGGED_IN, GUESSING = LISTED[:5]
STRANGER = LISTED[5]
SSH_PORT = 2222


def replace(path: Path, text: str) -> None:
    """Write a file as those of the host are: by another one that is renamed."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text)
    fresh.replace(path)


def test_gateways_and_resolvers_are_never_blocked(host: DockerHost) -> None:
    resolve = host.files / "run/systemd/resolve"
    resolve.mkdir(parents=True)
    replace(resolve / "resolv.conf", f"nameserver {RESOLVER_BEFORE}\n")
    host.up(*LISTED, GATEWAY, RESOLVER)
    assert not host.lab.passes(STRANGER)
    for address in (GATEWAY, RESOLVER, RESOLVER_BEFORE):
        assert host.lab.reaches(address), address

    assert not host.lab.passes(RESOLVER_AFTER)
    replace(resolve / "resolv.conf", f"nameserver {RESOLVER_AFTER}\n")
    wait_for("the new resolver", lambda: host.lab.passes(RESOLVER_AFTER), 3)
    wait_for("the block of the old one", lambda: not host.lab.passes(RESOLVER_BEFORE), 5)

    assert not host.lab.passes(NEW_GATEWAY)
    host.lab.host.run("ip", "route", "add", "default", "via", NEW_GATEWAY, "dev", "wan", "onlink", "metric", "900")
    wait_for("the new gateway", lambda: host.lab.passes(NEW_GATEWAY), 3)


NO_RECORDS = "SSH sessions have no records of logind's here: a connection to port "


def test_who_is_logged_in_by_ssh_is_not_cut_off(host: DockerHost) -> None:
    sessions = host.files / "run/systemd/sessions"
    seats = host.files / "run/systemd/seats"
    for directory in (sessions, seats):
        directory.mkdir(parents=True)
    # What logind makes at its start, and again and again.
    replace(seats / "seat0", "# This is private data. Do not parse.\nCAN_GRAPHICAL=0\n")
    with listening(host) as at, connected(host, LOGGED_IN, at), connected(host, GUESSING, at):
        host.up(*LISTED)
        # Nobody is logged in, and that is an answer.
        for address in (LOGGED_IN, GUESSING, STRANGER):
            assert not host.lab.passes(address), address
        record = f"ACTIVE=1\nSTATE=active\nREMOTE=1\nREMOTE_HOST={LOGGED_IN}\nSERVICE=sshd\nTYPE=tty\n"
        replace(sessions / "7", record)
        wait_for("who logged in", lambda: host.lab.passes(LOGGED_IN), 3)
        assert not host.lab.passes(GUESSING)
        (sessions / "7").unlink()
        wait_for("the block of who left", lambda: not host.lab.passes(LOGGED_IN), 5)
        assert NO_RECORDS not in host.log()


def test_directories_that_docker_made_are_no_word_of_logind(host: DockerHost) -> None:
    (host.files / "etc/ssh").mkdir()
    (host.files / "etc/ssh/sshd_config").write_text(f"Port {SSH_PORT}\n")
    host.variables["SSHD_CONFIG"] = "/etc/ssh/sshd_config"
    host.configure(SIKKER_SSH_PORTS="2022")
    with listening(host) as at, connected(host, GUESSING, at):
        host.up(*LISTED)
        for name in ("sessions", "seats"):
            assert list((host.files / "run/systemd" / name).iterdir()) == []
        host.logged(f"{NO_RECORDS}22, 2022, {SSH_PORT} counts as one once it has stood for 120 s")
        # One that was just made, and is listed, proves nothing.
        assert not host.lab.passes(GUESSING)
    # The list's own, and nobody else, is kept out for that.
    standing = "203.0.113.240"
    with listening(host) as at, connected(host, standing, at):
        wait_for("that it stands for two minutes", lambda: " (SSH session)" in host.command("check", standing), 140)
        host.serve(*LISTED, standing)
        host.command("pull")
        assert host.lab.reaches(standing)
        assert not host.lab.passes(STRANGER)


@contextlib.contextmanager
def listening(host: DockerHost) -> Iterator[socket.socket]:
    """What sshd listens by."""
    with host.lab.host.inside(lambda: socket.create_server((HOST, SSH_PORT))) as made:
        yield made


@contextlib.contextmanager
def connected(host: DockerHost, source: str, at: socket.socket) -> Iterator[None]:
    """An established connection of this source."""
    host.lab.own(source)
    with host.lab.internet.inside(lambda: socket.create_connection((HOST, SSH_PORT), 2, (source, 0))), at.accept()[0]:
        yield
