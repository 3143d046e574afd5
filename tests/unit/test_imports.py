"""Who may import whom, read from the sources; and what a command leaves unread.

The rules, by the first folder of the importer:

    core             core, errors, version; of the standard library only what computes
    config           core, config, errors; nothing that talks to a network
    edges/ROOM       core, errors, version, and its own room; the libraries that are this room's
    service          core, config, service, errors, version
    cli, __main__    everything
    errors, version  nothing

An import that only the type checker sees is an import all the same: what may not be known may not be named.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sikkerguard
from sikkerguard.version import VERSION

PACKAGE = Path(sikkerguard.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGES = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
SOURCES = {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}

# Libraries that are not Python's own, and the rooms of `edges` that may import each.
LIBRARIES = {
    "httpx": ("sikkerapi",),
    "h11": ("http",),
    "iptc": ("kernel",),
    "pyroute2": ("kernel",),
    "sdnotify": ("systemd",),
    "systemd": ("kernel_log", "log_output"),
}
# Reading iptc runs modprobe: never as a side effect of another import.
LAZY = frozenset({"iptc"})
# What is, or does, input and output, keeps time or throws dice.
IMPURE = set(
    """
    os io pathlib shutil tempfile glob fileinput mmap fcntl select selectors signal subprocess multiprocessing threading
    concurrent asyncio socketserver ssl http urllib ftplib smtplib sqlite3 dbm shelve pickle marshal ctypes resource pty
    tty termios time sched random secrets uuid logging syslog getpass pwd grp platform sys importlib runpy webbrowser
    gzip bz2 lzma zipfile tarfile
    """.split()  # noqa: SIM905
)
NETWORK = {"socket", "ssl", "http", "socketserver", "asyncio", "select", "selectors", "subprocess", "ctypes", "fcntl"}
# Of socket the core may use what turns addresses into bytes and back.
CONVERSIONS = frozenset({"inet_pton", "inet_ntop"})
EFFECTS = frozenset({"open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__"})
CLOCKS = frozenset({"now", "today", "utcnow"})


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is the module that is read for it, `name` what is taken from it, or empty."""

    module: str
    name: str
    in_function: bool

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]


def imports_of(importer: str, source: str) -> list[Import]:
    """Every import of a module, wherever it stands."""
    package = importer if importer in PACKAGES else importer.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, "", in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append(
                    Import(inner, "", in_function) if inner in SOURCES else Import(base, alias.name, in_function)
                )
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def within(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def may_know(importer: str, module: str) -> bool:
    """Whether one module of ours may import another."""
    place, *rest = importer.split(".")[1:] or [""]
    always = ("sikkerguard.core", "sikkerguard.errors", "sikkerguard.version")
    match place:
        case "core":
            return within(module, *always)
        case "config":
            return within(module, "sikkerguard.core", "sikkerguard.errors", "sikkerguard.config")
        case "edges":
            return within(module, *always, f"sikkerguard.edges.{rest[0]}")
        case "service":
            return within(module, *always, "sikkerguard.config", "sikkerguard.service")
        case "cli" | "__main__":
            return True
    return False


def may_read(importer: str, wanted: Import) -> bool:
    """Whether a module of ours may import from elsewhere."""
    place, *rest = importer.split(".")[1:] or [""]
    if wanted.root == "importlib":
        return False  # by which one could import anything, unseen by this
    if wanted.root not in sys.stdlib_module_names:
        owned = place == "edges" and rest[0] in LIBRARIES.get(wanted.root, ())
        return owned and (wanted.in_function or wanted.root not in LAZY)
    if place == "core":
        if wanted.root == "socket":
            return not wanted.name or is_conversion(wanted.name)
        return wanted.root not in IMPURE
    if place == "config":
        # Nor does it know exit codes.
        return wanted.root not in NETWORK | {"sys", "urllib"} or wanted.module == "urllib.parse"
    return True


def faults(importer: str, source: str) -> list[str]:
    """Everything in a module that the design forbids it."""
    found = []
    for each in imports_of(importer, source):
        allowed = may_know(importer, each.module) if each.root == "sikkerguard" else may_read(importer, each)
        if not allowed:
            found.append(f"{importer} imports {each.module} {each.name}".strip())
    for node in ast.walk(ast.parse(source)):
        if importer != "sikkerguard.edges.kernel.ipset_legacy.sets" and names_ipset(node):
            found.append(f"{importer} names pyroute2's IPSet")
        if isinstance(node, ast.Name) and node.id == "__import__":
            found.append(f"{importer} imports by __import__")
        if within(importer, "sikkerguard.core"):
            found += impurities(importer, node)
    return found


def names_ipset(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name):
            return name in ("IPSet", "pyroute2.ipset")
    return False


def is_conversion(name: str) -> bool:
    return name in CONVERSIONS or name.startswith("AF_")


def impurities(importer: str, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "socket" and not is_conversion(node.attr):
            return [f"{importer} uses socket.{node.attr}"]
        if node.attr in CLOCKS:
            return [f"{importer} asks the clock by {node.attr}"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EFFECTS:
        return [f"{importer} calls {node.func.id}"]
    return []


@pytest.mark.parametrize("module", SOURCES)
def test_each_module_knows_only_what_it_may(module: str) -> None:
    assert faults(module, SOURCES[module]) == []


def test_each_room_that_owns_a_library_uses_it() -> None:
    """So that no rule above is one about nothing."""
    for library, rooms in LIBRARIES.items():
        for room in rooms:
            modules = [name for name in SOURCES if within(name, f"sikkerguard.edges.{room}")]
            used = {each.root for name in modules for each in imports_of(name, SOURCES[name])}
            assert library in used, f"{room} does not use {library}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {each.module for each in imports_of(name, source) if each.module in SOURCES.keys() - PACKAGES}
        for name, source in SOURCES.items()
    }
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_a_newcomer_can_name_each_room_at_sight() -> None:
    beside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(beside) <= 5
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert not {name: length for name, length in lengths.items() if length > 400}
    assert not {
        name: length for name, length in lengths.items() if within(name, "sikkerguard.service") and length > 250
    }


def test_what_loops_are_given_has_a_type() -> None:
    """Neither `Any`, nor `cast`, nor a callable of whatever arguments, in the service and in what it asks for."""
    found = []
    for name, source in SOURCES.items():
        if within(name, "sikkerguard.service", "sikkerguard.core.interfaces"):
            for node in ast.walk(ast.parse(source)):
                match node:
                    case ast.Name(id="Any" | "cast" as word):
                        found.append(f"{name}:{node.lineno} {word}")
                    case ast.Subscript(value=ast.Name(id="Callable"), slice=ast.Tuple(elts=[ast.Constant(), *_])):
                        found.append(f"{name}:{node.lineno} Callable[..., ]")
    assert found == []


TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("core.state", "import os"),
        ("core.state", "import os.path"),
        ("core.state", "from pathlib import Path"),
        ("core.state", f"{TYPES_ONLY}from pathlib import Path"),
        ("core.state", "def late():\n    import time"),
        ("core.state", "import asyncio"),
        ("core.state", "import subprocess"),
        ("core.state", "import random"),
        ("core.state", "import httpx"),
        ("core.state", "from socket import create_connection"),
        ("core.state", "import socket\nsocket.socket()"),
        ("core.state", "import datetime\ndatetime.datetime.now()"),
        ("core.state", "open('x')"),
        ("core.state", "from sikkerguard import config"),
        ("core.state", "import sikkerguard.config"),
        ("core.state", "from .. import config"),
        ("core.state", "from ..edges.storage.store import Store"),
        ("core.state", f"{TYPES_ONLY}from sikkerguard.edges.storage.store import Store"),
        ("core.state", "from sikkerguard.service.lifecycle import Service"),
        ("edges.storage.store", "from sikkerguard.edges.http import page"),
        ("edges.storage.store", "from sikkerguard.edges.http.page import Page"),
        ("edges.storage.store", "from .. import http"),
        ("edges.storage.store", "from ..http.page import Page"),
        ("edges.storage.store", f"{TYPES_ONLY}from sikkerguard.config.settings import Config"),
        ("edges.storage.store", "def late():\n    import httpx"),
        ("edges.storage.store", f"{TYPES_ONLY}import httpx"),
        ("edges.storage.store", "import iptc"),
        ("edges.storage.store", "import systemd.journal"),
        ("edges.storage.store", "from sdnotify import SystemdNotifier"),
        ("edges.storage.store", "import requests"),
        ("edges.storage.store", "import importlib"),
        ("edges.storage.store", "__import__('httpx')"),
        ("edges.kernel.ipset_legacy.chains", "import iptc"),
        ("edges.kernel.ipset_legacy.chains", f"{TYPES_ONLY}import iptc"),
        ("edges.kernel.ipset_legacy.chains", "class Chains:\n    import iptc"),
        ("edges.kernel.dry_run", "from sikkerguard.edges.host.routes import Routes"),
        ("edges.host.routes", "from sikkerguard.edges.kernel.ipset_legacy.chains import Chains"),
        ("edges.kernel.ipset_legacy.backend", "from sikkerguard.edges.storage.store import Store"),
        ("edges.kernel.ipset_legacy.backend", "from pyroute2 import IPSet"),
        ("edges.kernel.ipset_legacy.backend", "from pyroute2.ipset import IPSet as Sets"),
        ("edges.kernel.ipset_legacy.backend", "import pyroute2.ipset"),
        ("edges.kernel.ipset_legacy.backend", "import pyroute2\npyroute2.IPSet()"),
        ("service.lifecycle", "from sikkerguard.edges.storage.store import Store"),
        ("service.lifecycle", f"{TYPES_ONLY}from sikkerguard.edges.storage.store import Store"),
        ("service.lifecycle", "def late():\n    from sikkerguard.edges import kernel"),
        ("service.lifecycle", "from sikkerguard import cli"),
        ("service.lifecycle", "import httpx"),
        ("service.list_update", "import sikkerguard.edges.kernel"),
        ("config.settings", "import socket"),
        ("config.settings", "import urllib.request"),
        ("config.settings", "from http import client"),
        ("config.settings", "import sys"),
        ("config.files", "import socket"),
        ("config.readers", "from sikkerguard.edges.storage import last_good"),
        ("config.settings", "from sikkerguard.edges import ipset"),
        ("config.settings", "from sikkerguard.service.lifecycle import Service"),
        ("errors", "from sikkerguard.version import VERSION"),
        ("cli.parser", "import httpx"),
        ("cli.parser", "import iptc"),
        ("cli.wiring", "from pyroute2 import IPRoute"),
    ],
)
def test_what_is_forbidden_is_seen(importer: str, source: str) -> None:
    assert faults(f"sikkerguard.{importer}", source)


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("core.firewall.diff", "import re\nimport socket\nsocket.inet_pton(socket.AF_INET, 'x')"),
        (
            "core.firewall.diff",
            "from sikkerguard.core.net.family import Family\nfrom sikkerguard.errors import ListError",
        ),
        (
            "edges.storage.store",
            "import os\nfrom sikkerguard.core import health\nfrom sikkerguard.version import VERSION",
        ),
        ("edges.kernel.ipset_legacy.backend", "from sikkerguard.edges.kernel.ipset_legacy.sets import Sets"),
        ("edges.kernel.ipset_legacy.sets", "def late():\n    from pyroute2.ipset import IPSet"),
        ("edges.kernel.ipset_legacy.iptc_library", "class Chains:\n    def late(self):\n        import iptc"),
        ("edges.kernel_log.journal", "import systemd.journal"),
        (
            "service.lifecycle",
            "import asyncio\nfrom sikkerguard.core import health\nfrom sikkerguard.config.settings import Config",
        ),
        ("config.settings", "from urllib.parse import urlsplit\nfrom sikkerguard.core.net.address import parse_prefix"),
        ("cli.parser", "from sikkerguard.edges.kernel import dry_run\nfrom sikkerguard.cli import wiring"),
    ],
)
def test_what_is_allowed_is_let_through(importer: str, source: str) -> None:
    assert faults(f"sikkerguard.{importer}", source) == []


# What is read when a command runs: by a fresh interpreter, since this one has read everything by now.

HEAVY = frozenset({"pyroute2", "iptc", "httpx", "h11"})
REPORT = """
import sys
try:
    {program}
finally:
    print("MODULES", *sys.modules, file=sys.stderr)
"""


def read_by(program: str, *arguments: str) -> tuple[int, str, set[str]]:
    """The exit code, what was printed, and the libraries that were read."""
    # PYTHONDONTWRITEBYTECODE: nothing is to be left behind. No variable of ours from outside.
    environment = {"PATH": os.environ["PATH"], "SIKKER_API_KEY": "sk_free_secret", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(program=program), *arguments],
        cwd=PACKAGE.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    _, _, modules = done.stderr.rpartition("MODULES")
    assert "sikkerguard.errors" in modules.split()
    return done.returncode, done.stdout, {name.partition(".")[0] for name in modules.split()}


COMMAND = "from sikkerguard.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize(
    "program",
    [
        "import sikkerguard.cli.parser",
        "import sikkerguard.config.settings",
        "import sikkerguard.service.lifecycle",
        # A start from the cache blocks before it has read what only a pull needs.
        "import sikkerguard.cli.wiring",
    ],
)
def test_to_be_imported_reads_no_library(program: str) -> None:
    code, _, modules = read_by(program)
    assert code == 0
    assert not modules & HEAVY


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--help"], "usage: sikkerguard"),
        (["run", "--help"], "protect this host"),
        (["version"], f"sikkerguard {VERSION}\n"),
        (["config"], "SIKKER_API_KEY=sk_free_********\n"),
    ],
)
def test_these_commands_touch_nothing(arguments: list[str], printed: str, tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text("SIKKER_SCORE_MIN=70\n")
    code, output, modules = read_by(COMMAND, "--config", str(settings), *arguments)
    assert code == 0
    assert printed in output
    assert not modules & (HEAVY | {"asyncio", "http"})
    assert "sk_free_secret" not in output


def test_the_report_sees_what_was_read() -> None:
    assert "httpx" in read_by("import sikkerguard.edges.sikkerapi.client")[2]
