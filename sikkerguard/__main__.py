"""Where the process begins, and the one place where its exit code is decided: 0 fine, 1 failed, 2 wrong use or
configuration, 3 the address is blocked."""

from __future__ import annotations

import errno
import os
import signal
import sys

from sikkerguard.errors import ConfigError, SikkerGuardError

FINE, FAILED, WRONG_USE, BLOCKED = range(4)
# What a write of the output fails with where its disk is full or gone.
_UNWRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _fill_standard_streams() -> None:
    """Have all three open, if only to nowhere: else a socket or the database would get the number of one, and with it
    what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _abandon_output() -> None:
    """Have what is left of the output go nowhere: the end of the process would try to write it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> int:
    """Run the command that the command line names, and return the exit code. Every error is a sentence on standard
    error."""
    if "run" in sys.argv[1:]:
        # The first process of a container gets no signal that it has no handler for: a stop in the first moments would
        # be lost. Held back, it waits until there is one.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    _fill_standard_streams()
    from sikkerguard.cli import parser
    from sikkerguard.cli.command import Outcome
    from sikkerguard.edges.log_output.handlers import complain

    codes = {
        Outcome.FINE: FINE,
        Outcome.FAILED: FAILED,
        Outcome.WRONG_USE: WRONG_USE,
        Outcome.BLOCKED: BLOCKED,
    }
    try:
        try:
            return codes[parser.run_command(sys.argv[1:])]
        finally:
            sys.stdout.flush()
    except ConfigError as error:
        for complaint in error.complaints:
            complain(complaint)
        return WRONG_USE
    except SikkerGuardError as error:
        complain(str(error))
        return FAILED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: nothing more is to be printed on any stream.
        sys.stderr.close()
        _abandon_output()
        return FAILED
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            raise
        complain(f"the output is not complete, since it can't be written: {error.strerror}")
        _abandon_output()
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
