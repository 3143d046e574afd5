"""`sikkerguard run` with an empty allowlist, so that a test can have a list cut off the host's own gateway.

The ranges that are allowed on every host stay; nothing that was found out about this host does.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from sikkerguard import config, running


def main() -> int:
    """Run until a signal says stop."""

    def reread() -> config.Config:
        return config.load(os.environ)

    return running.run(
        reread(), reread, adjust=lambda edges: replace(edges, detect=lambda whitelist, addresses: tuple(whitelist))
    )


if __name__ == "__main__":
    sys.exit(main())
