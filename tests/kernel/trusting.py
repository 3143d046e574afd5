"""`sikkerguard run` that takes a connection to sshd for a session after three seconds instead of two minutes."""

from __future__ import annotations

import os
import sys

from sikkerguard.cli import wiring
from sikkerguard.config.settings import SettingsReader
from sikkerguard.core.host import ssh_sessions
from sikkerguard.edges.host import ssh_sessions as edge


def main() -> int:
    """Run until a signal says stop."""
    ssh_sessions.STANDING_SECONDS = 3.0
    vars(edge)["STANDING_SECONDS"] = 3.0  # what it says
    reader = SettingsReader(os.environ)
    wiring.run(reader.load(), reader)
    return 0


if __name__ == "__main__":
    sys.exit(main())
