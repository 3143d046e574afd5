"""`sikkerguard run` that tries again after a second where it otherwise waits for minutes."""

from __future__ import annotations

import os
import sys

from sikkerguard.cli import wiring
from sikkerguard.config.settings import SettingsReader
from sikkerguard.core import schedule
from sikkerguard.errors import SikkerGuardError


def main() -> int:
    """Run until a signal says stop."""
    # Attempts that failed here, by the self-test or in the kernel.
    schedule.PAUSES = {**schedule.PAUSES, SikkerGuardError: schedule.Pauses(1.0, 1.0)}
    reader = SettingsReader(os.environ)
    wiring.run(reader.load(), reader)
    return 0


if __name__ == "__main__":
    sys.exit(main())
