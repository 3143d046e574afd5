"""`sikkerguard run` and `sikkerguard restore`, the commands that block; their wiring is read when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sikkerguard.cli.command import Command, Outcome, settings_reader

if TYPE_CHECKING:
    import argparse


def _run(options: argparse.Namespace) -> Outcome:
    from sikkerguard.cli import wiring
    from sikkerguard.edges.storage import last_good

    reader = settings_reader(options)
    wiring.run(reader.load_or_last_good(last_good.load), reader)
    return Outcome.FINE


def _restore(options: argparse.Namespace) -> Outcome:
    from sikkerguard.cli import wiring
    from sikkerguard.edges.storage import last_good

    reader = settings_reader(options)
    wiring.restore(reader.load_or_last_good(last_good.load, need_key=False), reader)
    return Outcome.FINE


RUN = Command("run", "protect this host until stopped", _run)
RESTORE = Command(
    "restore", "load the cached list and exit; systemd runs this at boot, before the network is up", _restore
)
