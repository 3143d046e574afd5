"""Who may import whom (design, section 2), read from the sources; and what a command leaves unread.

An import that only the type checker sees is an import all the same: what may not be known may not be named.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
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

# Where commands are wired to edges: whoever is not among these knows no edge, and none of these.
WIRING = frozenset({"__main__", "cli", "running", "asking", "checking"})
# What makes the settings of texts knows nothing of who uses them.
SETTINGS = frozenset({"config", "variables", "setting_files"})
# The only edges that know another one.
FRIENDS = {
    "kernel": ("ipset", "chains", "meter", "set_contents", "set_kinds", "trial_sets", "misfits", "removal"),
    "misfits": ("ipset", "chains", "references", "set_contents", "set_kinds"),
    "trial_sets": ("ipset", "set_kinds"),
    "removal": ("ipset", "chains", "references"),
    "set_contents": ("ipset",),
    "set_kinds": ("ipset",),
    "references": ("ipset", "xtables_abi", "xtables_library"),
    "meter": ("ipset", "chains"),
    "ipset": ("ipset_netlink",),
    "ipset_netlink": ("ipset_listing",),
    "chains": ("xtables_abi", "xtables_library"),
    "sikkerapi": ("apidoor", "failures"),
    "apidoor": ("failures", "proxies", "resolution"),
    "reportapi": ("failures", "sikkerapi"),
    "resolution": ("failures",),
    "outbox": ("database",),
    "counts": ("database",),
    "database": ("directory",),
    "logs": ("log_queue",),
    "store": ("directory", "last_good", "processes"),
    "lock": ("processes",),
    "kernlog": ("journal", "kmsg"),
    "flows": ("addresses", "netlink"),
    "outgoing": ("flows", "addresses"),
    "surroundings": ("addresses", "resolvers", "routes", "sessions", "watch"),
    "addresses": ("netlink",),
    "neighbours": ("netlink",),
    "routes": ("netlink",),
    "watch": ("addresses",),
    "web": ("pages",),
    "control": ("pages", "control_socket"),
    "probes": ("neighbours", "routes"),
}
# Libraries that are not Python's own, and the edges that may import each; None: every edge.
LIBRARIES: dict[str, tuple[str, ...] | None] = {
    "httpx": ("sikkerapi", "reportapi", "apidoor", "failures"),
    "h11": ("pages",),
    "iptc": ("xtables_abi", "xtables_library"),
    "pyroute2": None,
    "sdnotify": ("notify",),
    "systemd": ("journal", "logs"),
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
    place, _, rest = importer.removeprefix("sikkerguard.").partition(".")
    ours = tuple(f"sikkerguard.{name}" for name in ("core", "errors", "version"))
    if importer == "sikkerguard" or place in ("errors", "version"):
        return False
    if place == "core":
        return within(module, *ours)
    if place == "edges":
        return within(module, *ours, *(f"sikkerguard.edges.{friend}" for friend in FRIENDS.get(rest, ())))
    if place == "standin":
        return within(module, "sikkerguard.standin", "sikkerguard.errors", "sikkerguard.version")
    if place in SETTINGS:
        return within(module, "sikkerguard.core", "sikkerguard.errors", *(f"sikkerguard.{name}" for name in SETTINGS))
    if place in WIRING:
        return True
    # The service, the cycle and what else stands between the core and the command line.
    forbidden = ("edges", "standin", *WIRING)
    return not within(module, *(f"sikkerguard.{name}" for name in forbidden)) and module != "sikkerguard"


def may_read(importer: str, wanted: Import) -> bool:
    """Whether a module of ours may import from elsewhere."""
    place, _, rest = importer.removeprefix("sikkerguard.").partition(".")
    if wanted.root == "importlib":
        return False  # by which one could import anything, unseen by this
    if wanted.root not in sys.stdlib_module_names:
        owners = LIBRARIES.get(wanted.root, ())
        owned = place == "edges" and (owners is None or rest in owners)
        return owned and (wanted.in_function or wanted.root not in LAZY)
    if place == "core":
        if wanted.root == "socket":
            return not wanted.name or is_conversion(wanted.name)
        return wanted.root not in IMPURE
    if place in SETTINGS:
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
        if importer != "sikkerguard.edges.ipset" and names_ipset(node):
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


def test_the_modules_of_the_design_are_there() -> None:
    names = {name.removeprefix("sikkerguard.") for name in SOURCES}
    assert {"errors", "config", "service", "cycle", "cli", "__main__", "core.model", "core.plan"} <= names
    assert {"edges.kernel", "edges.sikkerapi", "edges.ipset", "edges.chains", "edges.notify"} <= names
    # Each owner of a library uses it, so that no rule above is one about nothing.
    pairs = (("sikkerapi", "httpx"), ("pages", "h11"), ("xtables_library", "iptc"), ("notify", "sdnotify"))
    for edge, library in pairs:
        importer = f"sikkerguard.edges.{edge}"
        assert library in {each.root for each in imports_of(importer, SOURCES[importer])}
    for edge, friends in FRIENDS.items():
        importer = f"sikkerguard.edges.{edge}"
        known = {each.module for each in imports_of(importer, SOURCES[importer])}
        assert {f"sikkerguard.edges.{friend}" for friend in friends} <= known


TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("core.model", "import os"),
        ("core.model", "import os.path"),
        ("core.model", "from pathlib import Path"),
        ("core.model", f"{TYPES_ONLY}from pathlib import Path"),
        ("core.model", "def late():\n    import time"),
        ("core.model", "import asyncio"),
        ("core.model", "import subprocess"),
        ("core.model", "import random"),
        ("core.model", "import httpx"),
        ("core.model", "from socket import create_connection"),
        ("core.model", "import socket\nsocket.socket()"),
        ("core.model", "import datetime\ndatetime.datetime.now()"),
        ("core.model", "open('x')"),
        ("core.model", "from sikkerguard import config"),
        ("core.model", "import sikkerguard.config"),
        ("core.model", "from .. import config"),
        ("core.model", "from ..edges.store import Store"),
        ("core.model", f"{TYPES_ONLY}from sikkerguard.edges.store import Store"),
        ("core.model", "from sikkerguard.service import Service"),
        ("edges.store", "from sikkerguard.edges import web"),
        ("edges.store", "from sikkerguard.edges.web import Web"),
        ("edges.store", "from . import web"),
        ("edges.store", "from .web import Web"),
        ("edges.store", f"{TYPES_ONLY}from sikkerguard.config import Config"),
        ("edges.store", "def late():\n    import httpx"),
        ("edges.store", f"{TYPES_ONLY}import httpx"),
        ("edges.store", "import iptc"),
        ("edges.store", "import systemd.journal"),
        ("edges.store", "from sdnotify import SystemdNotifier"),
        ("edges.store", "import requests"),
        ("edges.store", "import importlib"),
        ("edges.store", "__import__('httpx')"),
        ("edges.chains", "import iptc"),
        ("edges.chains", f"{TYPES_ONLY}import iptc"),
        ("edges.chains", "class Chains:\n    import iptc"),
        ("edges.chains", "from sikkerguard.edges.ipset import Sets"),
        ("edges.ipset", "from sikkerguard.edges.chains import Chains"),
        ("edges.kernel", "from sikkerguard.edges.store import Store"),
        ("edges.kernel", "from sikkerguard.edges.ipset_netlink import NetlinkSets"),
        ("edges.kernel", "from pyroute2 import IPSet"),
        ("edges.kernel", "from pyroute2.ipset import IPSet as Sets"),
        ("edges.kernel", "import pyroute2.ipset"),
        ("edges.kernel", "import pyroute2\npyroute2.IPSet()"),
        ("service", "from sikkerguard.edges.store import Store"),
        ("service", f"{TYPES_ONLY}from sikkerguard.edges.store import Store"),
        ("service", "def late():\n    from sikkerguard.edges import kernel"),
        ("service", "from sikkerguard import cli"),
        ("service", "import httpx"),
        ("cycle", "import sikkerguard.edges.kernel"),
        ("config", "import socket"),
        ("config", "import urllib.request"),
        ("config", "from http import client"),
        ("config", "import sys"),
        ("setting_files", "import socket"),
        ("variables", "from sikkerguard.edges import last_good"),
        ("config", "from sikkerguard.edges import ipset"),
        ("config", "from sikkerguard.service import Service"),
        ("standin.server", "from sikkerguard.core.model import Family"),
        ("standin.server", "from sikkerguard.config import Config"),
        ("standin.server", "import httpx"),
        ("errors", "from sikkerguard.version import VERSION"),
        ("cli", "import httpx"),
        ("cli", "import iptc"),
        ("running", "from pyroute2 import IPRoute"),
    ],
)
def test_what_is_forbidden_is_seen(importer: str, source: str) -> None:
    assert faults(f"sikkerguard.{importer}", source)


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("core.plan", "import re\nimport socket\nsocket.inet_pton(socket.AF_INET, 'x')"),
        ("core.plan", "from sikkerguard.core.model import Family\nfrom sikkerguard.errors import ListError"),
        ("edges.store", "import os\nfrom sikkerguard.core import model\nfrom sikkerguard.version import VERSION"),
        ("edges.kernel", "from sikkerguard.edges.ipset import Sets\nfrom sikkerguard.edges.chains import Chains"),
        ("edges.ipset", "def late():\n    from pyroute2.ipset import IPSet"),
        ("edges.xtables_library", "class Chains:\n    def late(self):\n        import iptc"),
        ("edges.journal", "import systemd.journal"),
        ("service", "import asyncio\nfrom sikkerguard.core import health\nfrom sikkerguard.config import Config"),
        ("config", "from urllib.parse import urlsplit\nfrom sikkerguard.core.model import parse_prefix"),
        ("cli", "from sikkerguard.edges.kernel import Kernel\nfrom sikkerguard import running"),
        ("standin.server", "import http.server\nfrom sikkerguard.standin.wire import Wire"),
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
        "import sikkerguard.cli",
        "import sikkerguard.config",
        "import sikkerguard.service",
        # A start from the cache blocks before it has read what only a pull needs.
        "import sikkerguard.running",
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
    assert not modules & (HEAVY | {"asyncio"})
    assert "sk_free_secret" not in output


def test_the_report_sees_what_was_read() -> None:
    assert "httpx" in read_by("import sikkerguard.edges.sikkerapi")[2]
