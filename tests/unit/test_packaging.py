"""What is packed beside the program says what the program does: settings, commands, completion, lines of the log."""

from __future__ import annotations

import argparse
import ast
import logging
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sikkerguard.cli import parser
from sikkerguard.config.settings import Config, effective
from sikkerguard.config.variables import VARIABLES
from sikkerguard.core.durations import duration_text
from sikkerguard.core.lists.admission import admit, describe_removed
from sikkerguard.core.lists.allowlist import ALWAYS_ALLOWED, AllowEntry, Allowlist
from sikkerguard.core.lists.parse import (
    LARGEST_FILE,
    MOST_ENTRIES,
    MOST_OTHER_LINES,
    MOST_RANGES,
    MOST_REJECTED,
    MOST_V6,
    read_custom,
)
from sikkerguard.core.net.address import parse_prefix
from sikkerguard.core.ports.protocols import PROTOCOLS, REPLY
from sikkerguard.core.reports.sentences import rejected_line, reported_line
from sikkerguard.core.sikkerapi.body import LARGEST_BODY
from sikkerguard.core.traffic.log_window import WINDOW_SECONDS, Line, LogWindow, in_fields, in_words
from sikkerguard.core.traffic.sample import UNATTRIBUTED
from sikkerguard.edges.kernel.dry_run import DryRunBackend
from sikkerguard.version import VERSION
from tests.unit.config.reading import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sikkerguard.core.traffic.sample import FlowKey

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "packaging" / "debian"
PAGE, SETTINGS_PAGE = DEBIAN / "sikkerguard.8", DEBIAN / "sikkerguard.env.5"
SETTINGS, README = DEBIAN / "sikkerguard.env", ROOT / "README.md"
COMPLETION, LOGCHECK = DEBIAN / "sikkerguard.bash-completion", DEBIAN / "sikkerguard.logcheck.ignore.server"

KEY = "sk_free_0123456789abcdef"
TCP_KEY: FlowKey = (bytes([192, 0, 2, 7]), 6, 23)
HELP = {"-h", "--help"}


def section(page: Path, name: str) -> str:
    """The mdoc source of one section of a man page."""
    found = re.search(rf"^\.Sh {name}\n(.*?)(?=^\.Sh |\Z)", page.read_text("ascii"), re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no section {name}"
    return found[1]


# The sandbox


def test_the_sandbox_allows_the_kinds_of_sockets_that_are_opened() -> None:
    text = (ROOT / "packaging" / "systemd" / "10-least-privilege.conf").read_text("ascii")
    allowed = re.search(r"^RestrictAddressFamilies=(.*)$", text, re.MULTILINE)
    assert allowed
    opened: set[str] = set()
    for path in (ROOT / "sikkerguard" / "edges").rglob("*.py"):
        opened.update(re.findall(r"\bsocket\.(AF_[A-Z0-9]+)", path.read_text("utf-8")))
    assert {"AF_NETLINK", "AF_PACKET"} <= opened
    # The watch of a trial goes without where it is not allowed: it would cost 0.2 of systemd's exposure.
    assert set(allowed[1].split()) == opened - {"AF_PACKET"} | {"AF_UNIX"}


# Memory


def limit(path: str, pattern: str) -> int:
    """The MiB that the first group of the pattern says, which is in the file once."""
    (found,) = re.findall(pattern, (ROOT / path).read_text("utf-8"), re.MULTILINE)
    return int(found)


def test_every_way_to_run_it_has_the_same_limit_of_memory() -> None:
    limits = {
        limit("packaging/systemd/sikkerguard.service", r"^MemoryMax=(\d+)M$"),
        limit("packaging/podman/sikkerguard.container", r"^MemoryMax=(\d+)M$"),
        limit("docker-compose.yml", r"^    mem_limit: (\d+)m$"),
        limit("packaging/kubernetes/sikkerguard.yaml", r"^            limits:\n              memory: (\d+)Mi$"),
        limit("docs/safety.md", r"The limit of (\d+) MiB"),
    }
    assert len(limits) == 1


def test_the_limit_of_memory_is_more_than_the_largest_list_can_need() -> None:
    # In the kernel an entry takes at most that much on average, with the table of its hash (`ipset list -t`, Linux
    # 6.18): 50 to 55 bytes one of IPv4, 64 an address of IPv6, 70 a range of it. There may be three copies at once,
    # where a repair falls into a trial.
    sets = 3 * 64 * MOST_ENTRIES >> 20
    # Of bench/worst.py, for everything else.
    resident = 256
    assert limit("packaging/systemd/sikkerguard.service", r"^MemoryMax=(\d+)M$") > sets + resident


def test_the_documentation_has_the_ceilings() -> None:
    text = (ROOT / "docs/safety.md").read_text("utf-8")
    for number in (MOST_ENTRIES, MOST_V6, MOST_RANGES, MOST_OTHER_LINES, MOST_REJECTED):
        assert re.search(rf"\| .*\b{number:,}\b", text), number
    assert f"| {LARGEST_FILE >> 20} MiB, before and after unpacking |" in text
    assert LARGEST_FILE == LARGEST_BODY


# Settings


def of_file() -> list[tuple[str, str]]:
    return re.findall(r"^#(SIKKER_[A-Z_]+)=(.*)$", SETTINGS.read_text("ascii"), re.MULTILINE)


def of_page() -> list[tuple[str, str]]:
    text = section(SETTINGS_PAGE, "VARIABLES")
    return re.findall(r"^\.It Ev (SIKKER_[A-Z_]+)(?: Ns = Ns Li (\S+))?$", text, re.MULTILINE)


def of_readme() -> list[tuple[str, str]]:
    return re.findall(r"^\| `(SIKKER_[A-Z_]+)` \| (?:`([^`]*)`)? ?\|", README.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("documented", [of_file(), of_page(), of_readme()], ids=["file", "page", "readme"])
def test_every_setting_is_documented_once_with_its_default(documented: list[tuple[str, str]]) -> None:
    assert sorted(name for name, _ in documented) == sorted(VARIABLES)
    defaults = dict(effective(Config())) | {"SIKKER_API_KEY": ""}
    for name, value in documented:
        default = defaults.get(name, "")
        assert bool(value) == bool(default), name
        if value:
            # Compared as read: 24h and 1d are the same.
            assert dict(effective(load({"SIKKER_API_KEY": KEY, name: value})))[name] == default, name


def journal_fields() -> set[str]:
    """The fields of lines about blocked connections and replies."""
    keys = (TCP_KEY, (TCP_KEY[0], REPLY, 443))
    return {field for key in keys for field in in_fields(Line("", 1, key), {})}


def test_no_other_setting_is_spoken_of() -> None:
    known = VARIABLES.keys() | journal_fields()
    for path in (README, *(ROOT / "docs").glob("*.md"), PAGE, SETTINGS_PAGE, SETTINGS, COMPLETION):
        spoken_of = set(re.findall(r"\bSIKKER_[A-Z_]*[A-Z]\b", path.read_text("utf-8")))
        assert spoken_of <= known, path.name


def test_the_settings_file_sets_nothing_and_explains_everything() -> None:
    assert load({}, SETTINGS, need_key=False) == Config()
    assert of_file()[0][0] == "SIKKER_API_KEY"
    for paragraph in SETTINGS.read_text("ascii").split("\n\n"):
        lines = paragraph.splitlines()
        assert all(line.startswith("#") for line in lines)
        if any(re.match("#SIKKER_", line) for line in lines):
            assert 2 <= len(lines) <= 4, paragraph
            assert all(line.startswith("# ") for line in lines[:-1]), paragraph


@pytest.mark.parametrize("name", [*VARIABLES, "all"])
def test_every_line_of_the_settings_file_can_be_uncommented(name: str, tmp_path: Path) -> None:
    uncommented, count = re.subn(
        rf"^#({'SIKKER_[A-Z_]+' if name == 'all' else name}=)", r"\1", SETTINGS.read_text("ascii"), flags=re.MULTILINE
    )
    assert count == (len(VARIABLES) if name == "all" else 1)
    file = tmp_path / "sikkerguard.env"
    # The key has to be filled in.
    file.write_text(re.sub(r"^#?SIKKER_API_KEY=$", f"SIKKER_API_KEY={KEY}", uncommented, flags=re.MULTILINE), "ascii")
    assert load({}, file) == Config(api_key=KEY)


def test_the_example_of_the_settings_page_can_be_used(tmp_path: Path) -> None:
    block = re.search(r"^\.Bd .*?\n(.*?)^\.Ed$", section(SETTINGS_PAGE, "EXAMPLES"), re.MULTILINE | re.DOTALL)
    assert block
    (tmp_path / "blacklist").touch()
    (tmp_path / "example").write_text(block[1].replace("/etc/sikkerguard/blacklist", str(tmp_path / "blacklist")))
    found = load({"SIKKER_API_KEY": KEY}, tmp_path / "example")
    assert found.score_min == 75
    assert found.port_map == {8443: "https", 2222: "ssh"}
    assert len(found.whitelist) == 2


def test_the_page_names_the_fields_of_the_journal() -> None:
    fields = re.findall(r"^\.It Ev (SIKKER_[A-Z]+)$", section(PAGE, "SYSTEMD"), re.MULTILINE)
    assert sorted(fields) == sorted(journal_fields())


# Commands


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    for action in parser.make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command line has no commands")


OPTIONS = {name: options_of(parser) for name, parser in parsers().items()}


def options_in(text: str) -> set[str]:
    return {f"-{name}" for name in re.findall(r"\bFl (-?[A-Za-z][a-z-]*)", text)}


def test_the_page_has_every_command_with_its_options() -> None:
    parts = re.split(r"^\.It Cm (\S+)", section(PAGE, "COMMANDS"), flags=re.MULTILINE)
    described = dict(zip(parts[1::2], map(options_in, parts[2::2]), strict=True))
    assert len(described) == len(parts) // 2
    assert described == {name: options - HELP for name, options in OPTIONS.items()}
    # Of these alone there is one for all commands.
    assert options_in(parts[0]) == set()
    assert options_in(section(PAGE, "OPTIONS")) == options_of(parser.make_parser())


def test_the_synopsis_has_every_command_with_its_options() -> None:
    described, common = {}, set()
    for use in re.split(r"^\.Nm\n", section(PAGE, "SYNOPSIS"), flags=re.MULTILINE)[1:]:
        before, command, after = re.split(r"^\.Cm (\S+)\n", use, flags=re.MULTILINE)
        described[command] = options_in(after)
        common |= options_in(before)
    assert described == {name: options - HELP for name, options in OPTIONS.items()}
    # These stand for a command.
    assert common == options_of(parser.make_parser()) - HELP - {"-V", "--version"}


def test_the_readme_has_every_command_with_options_that_there_are() -> None:
    rows = re.findall(r"^\| (`sikkerguard .*?) \| ", README.read_text("utf-8").replace("\\|", ""), re.MULTILINE)
    uses = [use.split() for row in rows for use in re.findall("`sikkerguard (.*?)`", row)]
    assert sorted(words[0] for words in uses) == sorted(OPTIONS)
    for name, *words in uses:
        assert set(re.findall(r"--[a-z-]+", " ".join(words))) <= OPTIONS[name], name


def test_the_page_names_the_defaults_of_the_demo() -> None:
    defaults = parsers()["demo"].parse_args([])
    address, port = defaults.listen
    for default in (f"{address}:{port}", defaults.key):
        assert f"\n.Li {default} .\n" in section(PAGE, "COMMANDS")


@pytest.mark.parametrize("page", [PAGE, SETTINGS_PAGE], ids=lambda page: page.name)
def test_a_page_renders_without_a_warning(page: Path) -> None:
    words = ("groff", "-mandoc", "-ww", "-Tascii", "-P-cbou", str(page))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for title in re.findall(r"^\.Sh (.*)$", page.read_text("ascii"), re.MULTILINE):
        assert f"\n{title}\n" in done.stdout
    # What mdoc does not know as a macro it shows as text.
    assert not re.search(r"^ *(Ev|Fl|Li|Pa|Xr) ", done.stdout, re.MULTILINE)


# Completion


def completed(*words: str, directory: Path = ROOT) -> list[str]:
    """What the completion offers for the last of these words, with no program at hand but bash."""
    script = (
        'source "$1"; shift; complete -p sikkerguard >&2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_sikkerguard sikkerguard; ((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"; true'
    )
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        (bash, "--norc", "-uc", script, "bash", str(COMPLETION), "sikkerguard", *words),
        capture_output=True,
        text=True,
        check=True,
        cwd=directory,
        env={"PATH": "/nonexistent"},
    )
    assert done.stderr == "complete -F _sikkerguard sikkerguard\n"
    return sorted(done.stdout.splitlines())


def test_the_completion_offers_every_command_and_option() -> None:
    assert completed("") == sorted(OPTIONS)
    assert completed("-") == sorted(options_of(parser.make_parser()))
    for name, options in OPTIONS.items():
        assert completed(name, "-") == sorted(options), name
        assert completed("--config", "FILE", name, "-") == sorted(options), name
        assert completed("--config", "=", "FILE", name, "-") == sorted(options), name
        assert completed(name, "") == ([] if name != "help" else sorted(OPTIONS)), name


def test_the_completion_offers_what_fits() -> None:
    assert completed("re") == ["restore"]
    assert completed("cl") == ["cleanup"]
    assert completed("help", "cl") == ["cleanup"]
    assert completed("demo", "--lis") == ["--list", "--listen"]
    assert completed("check", "192.0.2.7", "--j") == ["--json"]
    assert completed("nonsense", "-") == []


def test_the_completion_offers_files_where_one_is_wanted(tmp_path: Path) -> None:
    for name in ("one file", "one*"):
        (tmp_path / name).touch()
    (tmp_path / "other").mkdir()
    every = ["one file", "one*", "other"]
    for words in (("--config",), ("--config", "=")):
        assert completed(*words, "o", directory=tmp_path) == every
        assert completed(*words, "one ", directory=tmp_path) == ["one file"]
    assert completed("--config", "=", directory=tmp_path) == every
    assert completed("demo", "--list", "o", directory=tmp_path) == every
    assert completed("demo", "--list", "=", "o", directory=tmp_path) == every
    for words in (("demo", "--key"), ("demo", "--listen"), ("check",), ("status",), ("run",)):
        assert completed(*words, "o", directory=tmp_path) == []


# logcheck

HEADS = (
    "Nov 25 08:00:00 web-1 ",
    "Dec  5 23:59:59 host_2.example.net ",
    "2026-11-25T08:00:00.123456+00:00 web-1 ",
    "2026-11-25T08:00:00.123456-03:30 web-1 ",
)


def logged(*levels: str) -> Iterator[tuple[str, str]]:
    """Each call of the program's log with one of these levels: its file and its format."""
    for path in sorted((ROOT / "sikkerguard").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[first, *_]):
                    if level in levels:
                        # A sentence that was made elsewhere is a format of its own, and nothing is known of it.
                        text = first.value if isinstance(first, ast.Constant) else "%s"
                        yield str(path.relative_to(ROOT / "sikkerguard")), str(text)


def with_heads(sender: str, messages: Iterable[str]) -> list[str]:
    return [f"{head}{sender}: {message}" for head, message in product(HEADS, messages)]


def patterns() -> list[str]:
    """As logcheck reads them: without comments and empty lines."""
    return [line for line in LOGCHECK.read_text("ascii").splitlines() if line.strip() and not line.startswith("#")]


def unmatched(lines: Sequence[str], by: Sequence[str]) -> list[str]:
    """Those lines that logcheck would mail."""
    words = ["grep", "-E", "--text", "-v", *(word for pattern in by for word in ("-e", pattern))]
    done = subprocess.run(words, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def blocked_lines() -> list[str]:
    v4, v6 = TCP_KEY[0], parse_prefix("2001:db8::7")[1].first.to_bytes(16, "big")
    lines = [
        in_words((address, protocol, 0x0800 if protocol in (1, 58) else 23), 47, {23: "mysql"})
        for address in (v4, v6)
        for protocol in (*PROTOCOLS, 99, UNATTRIBUTED, REPLY)
    ]
    lines.append(in_words((v4, REPLY, UNATTRIBUTED), 5, {}))
    ports: list[tuple[FlowKey, int]] = [((v4, 6, port), 1) for port in range(1, 61)]
    sources: list[tuple[FlowKey, int]] = [((bytes([198, 51, 100, last]), 6, 22), 1) for last in range(60)]
    for named, unnamed in ((ports, 0), (sources, 0), (sources[:41], 0), (sources, 5), ([], 5)):
        dropped = len(named) + unnamed
        window, first = LogWindow().take(named, dropped, 0.0, {})
        _, last = window.take([], dropped, WINDOW_SECONDS, {})
        lines += [line.text for line in first + last]
    assert len({line.partition(" x")[0] for line in lines if "source" in line}) == 5
    return lines


def removed() -> str:
    """A list of everything that is never blocked, in words."""
    special = b"10.0.0.0/8 127.0.0.1 169.254.1.1 224.0.0.1 240.0.0.1 0.0.0.0 fe80::1 fc00::1 ff02::1 ::1 :: 5f00::1"
    entry = AllowEntry(*parse_prefix("192.0.2.7"), "SIKKER_WHITELIST")
    parsed, _ = read_custom("list", special.replace(b" ", b"\n") + b"\n192.0.2.0/24\n")
    found = admit(parsed.content, Allowlist((entry,))).removed
    assert {"private", "loopback", "link-local", "multicast", "reserved", "allowlisted"} <= found.keys()
    return describe_removed(found)


def dry_run_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """As rsyslog writes them: the end of a line in a message is #012."""
    allowlist = Allowlist(ALWAYS_ALLOWED)
    blocklist = read_custom("list", b"192.0.2.7\n198.51.100.0/24\n2001:db8::/32\n")[0].content
    kernel = DryRunBackend()
    with caplog.at_level(logging.INFO):
        kernel.adopt(blocklist, allowlist)
        kernel.allow(allowlist)
        kernel.stage(blocklist)
        kernel.commit()
    assert len({record.msg for record in caplog.records}) == 4
    return [record.getMessage().replace("\n", "#012") for record in caplog.records]


def quiet(caplog: pytest.LogCaptureFixture) -> dict[tuple[str, str], list[str]]:
    """What the program says at level info, by file and format."""
    summary = Allowlist(ALWAYS_ALLOWED).summary()
    ages = [duration_text(seconds) for seconds in (1, 600, 7200, 864000)]
    found = {
        ("service/count_loop.py", "%s"): blocked_lines(),
        ("service/list_update.py", "Left out of the list: %s."): [
            f"Left out of the list: {removed()}.",
            "Left out of the list: 3 private.",
        ],
        ("service/allowlist_tracker.py", "Safety whitelist: %s"): [f"Safety whitelist: {summary}"],
        ("service/lifecycle.py", "Safety whitelist: %s"): [f"Safety whitelist: {summary}"],
        ("edges/host/probes.py", "Self-test: %s."): [
            "Self-test: default route by tun0 (v4) names no gateway that could be asked.",
            "Self-test: default route by br-lan.7 (v6) names no gateway that could be asked.",
        ],
        (
            "edges/host/ssh_sessions.py",
            "SSH sessions have no records of logind's here: a connection to port %s counts as one once it has stood "
            "for %d s.",
        ): [
            f"SSH sessions have no records of logind's here: a connection to port {ports} counts as one once it has "
            "stood for 120 s."
            for ports in ("22", "22, 2222, 60022")
        ],
        ("service/report_loop.py", "%s"): [
            reported_line({"ssh": 89}),
            reported_line({"ssh": 89, "icmp": 3, "47": 1, "http-alt": 1, "x11": 1}),
            reported_line({f"service-{number}": number for number in range(1, 14)}),
        ],
        ("service/lifecycle.py", "SikkerGuard %s"): [f"SikkerGuard {VERSION}"],
        ("service/lifecycle.py", "%s"): [
            Config(report_enabled=enabled, pull_interval=90.0).summary() for enabled in (True, False)
        ],
        ("service/update_runner.py", "%s"): [
            "Blocking 8774 IPs",
            *(f"Blocking 8774 IPs (from the cache, verified {age} ago)" for age in ages),
            "Blocking 3 IPs (found in the kernel, left by an earlier run)",
            "Dry run: would be blocking 8774 IPs",
        ],
    }
    dry = dry_run_lines(caplog)
    for file, text in logged("info"):
        if file == "edges/kernel/dry_run.py":
            found[file, text] = dry
        elif "%s" not in text:
            found[file, text] = [text.replace("%d", "3")]
    return found


def of_units() -> list[str]:
    """What systemd 252 to 257 says of our units on a day with a boot, a reload, a restart and a stop."""
    lines = []
    for unit in sorted((ROOT / "packaging" / "systemd").glob("sikkerguard*.[sp]*")):
        description = re.search(r"^Description=(.*)$", unit.read_text("utf-8"), re.MULTILINE)
        assert description
        for name in (f"{unit.name} - {description[1]}", description[1], unit.name):
            verbs = ["Starting", "Started", "Stopping", "Stopped"]
            if unit.name == "sikkerguard.service":
                verbs += ["Reloading", "Reloaded"]
            if unit.name == "sikkerguard-restore.service":
                verbs.append("Finished")
            lines += [f"{verb} {name}{'...' if verb.endswith('ing') else '.'}" for verb in verbs]
        lines.append(f"{unit.name}: Deactivated successfully.")
    assert len(lines) > 30
    return [
        *lines,
        "sikkerguard.service: Consumed 1.234s CPU time.",
        "sikkerguard.service: Consumed 1min 2.345s CPU time, 40.1M memory peak, 0B memory swap peak.",
        "sikkerguard.service: Consumed 1min 2.345s CPU time over 5h 2min wall clock time, 40.1M memory peak.",
    ]


KERNEL_LINES = (
    "SIKKERGUARD IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 SRC=192.0.2.7 DST=198.51.100.1 LEN=60 "
    "TOS=0x00 PREC=0x00 TTL=63 ID=1 DF PROTO=TCP SPT=40000 DPT=23 WINDOW=64240 RES=0x00 SYN URGP=0",
    "SIKKERGUARD IN=br-lan.7 OUT= PHYSIN=eth1 MAC= SRC=2001:0db8:0000:0000:0000:0000:0000:0007 "
    "DST=2001:0db8:0000:0000:0000:0000:0000:0001 LEN=64 TC=0 HOPLIMIT=63 FLOWLBL=0 PROTO=ICMPv6 TYPE=128 CODE=0 ID=1",
    "SIKKERGUARD IN=wg0 OUT= SRC=192.0.2.7 DST=198.51.100.1 LEN=60 TOS=0x00 PREC=0x00 TTL=63 ID=1 FRAG:185 PROTO=47",
)


@pytest.fixture
def quiet_day(caplog: pytest.LogCaptureFixture) -> list[str]:
    own = sorted({line for lines in quiet(caplog).values() for line in lines})
    return [
        *with_heads("sikkerguard[812]", own),
        *with_heads("systemd[1]", of_units()),
        *with_heads("kernel", KERNEL_LINES),
        *with_heads("kernel", (f"[ 1234.567890] {line}" for line in KERNEL_LINES)),
    ]


def test_a_hangup_waits_from_the_first_moment_of_a_start_on() -> None:
    unit = (ROOT / "packaging/systemd/sikkerguard.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.+) run$", unit, re.MULTILINE)
    assert command.endswith(" /usr/bin/sikkerguard")
    wrapper = command.split()[:-1]
    # What systemd starts has the signal held back before there is any code of ours.
    program = "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    done = subprocess.run([*wrapper, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_logcheck_mails_nothing_of_a_quiet_day(quiet_day: list[str]) -> None:
    assert len(quiet_day) > 300
    assert unmatched(quiet_day, patterns()) == []


def test_everything_said_at_level_info_was_thought_of(caplog: pytest.LogCaptureFixture) -> None:
    assert quiet(caplog).keys() == set(logged("info"))


def test_no_pattern_of_logcheck_is_idle(quiet_day: list[str]) -> None:
    for pattern in patterns():
        assert re.fullmatch(r"\^.*\$", pattern)
        assert len(unmatched(quiet_day, [pattern])) < len(quiet_day), pattern


def test_logcheck_mails_what_is_wrong() -> None:
    formats = [text for _, text in logged("warning", "error", "exception", "critical")]
    assert len(formats) > 20
    own = [re.sub("%[sdg]", "3", text) for text in formats]
    own += [
        rejected_line([("192.0.2.7", "invalid category")]),
        "192.0.2.1 (gateway) is on the list and stays allowed.",
        "SikkerAPI does not know this key (401); no list is in force yet; next try in 1h.",
        "The kernel's log can be read neither from journald (there is no journal that this user may read) nor from "
        "/dev/kmsg (Permission denied).",
        "Waiting for a key, and starting by itself once there is one: There is no key yet.",
        "sikkerguard: SIKKER_SCORE_MIN: '0' is not a number from 1 to 100.",
        "Traceback (most recent call last):",
        "Blocking 8774 IPs; Another program changed our rules (Blocking 8774 IPs); repaired.",
        "Stopped",
    ]
    unit = "sikkerguard.service"
    of_systemd = [
        f"Failed to start {unit} - SikkerGuard, which keeps known attackers out.",
        f"Dependency failed for {unit} - SikkerGuard, which keeps known attackers out.",
        f"{unit}: Failed with result 'exit-code'.",
        f"{unit}: Main process exited, code=exited, status=1/FAILURE",
        f"{unit}: Watchdog timeout (limit 30s)!",
        f"{unit}: Scheduled restart job, restart counter is at 1.",
        f"{unit}: Skipped due to 'exec-condition'.",
        f"/lib/systemd/system/{unit}:27: Failed to parse service type, ignoring: notify-reload",
        "Started cron.service - Regular background program processing daemon.",
        "cron.service: Deactivated successfully.",
    ]
    of_kernel = ["Out of memory: Killed process 812 (sikkerguard)", "SIKKERGUARD", KERNEL_LINES[0].lower()]
    lines = [
        *with_heads("sikkerguard[812]", own),
        *with_heads("systemd[1]", of_systemd),
        *with_heads("kernel", of_kernel),
        *with_heads("sshd[7]", ["Blocking 8774 IPs", KERNEL_LINES[0]]),
    ]
    assert unmatched(lines, patterns()) == lines
