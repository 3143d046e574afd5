"""What holds for every tier."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that does other things too.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With NO_SKIPS=1 a skipped test fails the run: what hides behind a skip was not seen to work."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NO_SKIPS") == "1" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
