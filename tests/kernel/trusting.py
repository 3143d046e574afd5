"""`sikkerguard run` that takes a connection to sshd for a session after three seconds instead of two minutes."""

from __future__ import annotations

import os
import sys

from sikkerguard import config, running
from sikkerguard.core import sessions
from sikkerguard.edges import sessions as edge


def main() -> int:
    """Run until a signal says stop."""

    def reread() -> config.Config:
        return config.load(os.environ)

    sessions.STANDING_SECONDS = 3.0
    vars(edge)["STANDING_SECONDS"] = 3.0  # what it says
    return running.run(reread(), reread)


if __name__ == "__main__":
    sys.exit(main())
