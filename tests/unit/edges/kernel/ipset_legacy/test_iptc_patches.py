"""python-iptables against whichever iptables is installed. Loads extensions, and touches no table."""

from __future__ import annotations

import ctypes
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from sikkerguard.edges.kernel.ipset_legacy.iptc_patches import apply_patches, measured_stride, patch_option_stride
from sikkerguard.errors import KernelError

# Options of each that iptables 1.8.9 and 1.8.11 both have (extensions/libxt_*.c), from all over its table.
MATCHES = {
    "limit": ["limit", "limit-burst"],
    "hashlimit": [
        "hashlimit-upto",
        "hashlimit-burst",
        "hashlimit-htable-size",
        "hashlimit-htable-max",
        "hashlimit-htable-expire",
        "hashlimit-mode",
        "hashlimit-name",
        "hashlimit-rate-interval",
    ],
    "conntrack": ["ctstate", "ctproto", "ctdir"],
}
TARGETS = {
    "LOG": ["log-level", "log-prefix", "log-tcp-sequence", "log-tcp-options", "log-ip-options", "log-uid"],
    "CT": ["notrack", "helper", "zone"],
}


@pytest.fixture(name="mirror")
def _mirror() -> Any:
    with warnings.catch_warnings():
        # Its own sources cause some, on the first import.
        warnings.simplefilter("ignore")
        import iptc.xtables

    apply_patches()
    return iptc.xtables


def extensions(mirror: Any) -> list[tuple[Any, Any, list[str]]]:
    """The library's object for a family, an extension loaded by it, and that one's options."""
    found = []
    for family in (mirror.NFPROTO_IPV4, mirror.NFPROTO_IPV6):
        loader = mirror.xtables(family)
        found += [(loader, loader.find_match(name)[0], options) for name, options in MATCHES.items()]
        found += [(loader, loader.find_target(name)[0], options) for name, options in TARGETS.items()]
    return found


def entry_of_size(mirror: Any, size: int) -> type[ctypes.Structure]:
    """A stand-in for the library's class for one option, that long."""

    class Entry(ctypes.Structure):
        _fields_ = (("name", ctypes.c_char_p), ("rest", ctypes.c_ubyte * (size - ctypes.sizeof(ctypes.c_char_p))))

    return Entry


def test_what_was_measured_is_what_is_walked(mirror: Any) -> None:
    assert ctypes.sizeof(mirror.xt_option_entry) == measured_stride(mirror)


def test_every_option_is_found_and_nothing_else(mirror: Any) -> None:
    for loader, extension, options in extensions(mirror):
        for option in options:
            assert loader._option_lookup(extension.x6_options, option.encode()).name == option.encode()
        assert loader._option_lookup(extension.x6_options, b"no-such-option") is None


def test_every_name_of_a_table_is_readable(mirror: Any) -> None:
    stride = measured_stride(mirror)
    for _, extension, options in extensions(mirror):
        names: list[str] = []
        address = ctypes.addressof(extension.x6_options[0])
        while name := ctypes.c_char_p.from_address(address + len(names) * stride).value:
            names.append(name.decode())
        assert set(options) <= set(names)
        assert all(name.replace("-", "").isalnum() for name in names)


def test_options_are_taken_and_given_back(mirror: Any) -> None:
    import iptc

    match = iptc.Rule().create_match("hashlimit")
    for name, value in (
        ("hashlimit-upto", "1/sec"),
        ("hashlimit-burst", "3"),
        ("hashlimit-mode", "srcip,dstport"),
        ("hashlimit-name", "sikkerguard"),
        ("hashlimit-htable-expire", "10000"),
    ):
        match.set_parameter(name, [value])
    match.final_check()
    assert match.get_all_parameters() == {
        "hashlimit-upto": ["1/sec"],
        "hashlimit-burst": ["3"],
        "hashlimit-mode": ["srcip,dstport"],
        "hashlimit-name": ["sikkerguard"],
        "hashlimit-htable-expire": ["10000"],
    }


def test_a_missing_mandatory_option_is_noticed(mirror: Any) -> None:
    import iptc

    match = iptc.Rule().create_match("hashlimit")
    match.set_parameter("hashlimit-upto", ["1/sec"])
    with pytest.raises(iptc.XTablesError, match=r"hashlimit-name.*must be specified"):
        mirror.xtables(mirror.NFPROTO_IPV4).final_check_match(match._module)


def test_a_second_call_changes_nothing(mirror: Any) -> None:
    import iptc

    def state() -> tuple[Any, ...]:
        walkers = mirror.xtables._option_lookup, mirror.xtables._options_fcheck, iptc.Match.reset
        return (*walkers, mirror.xt_option_entry, ctypes.cast(mirror._xt_globals.exit_err, ctypes.c_void_p).value)

    before = state()
    apply_patches()
    assert state() == before


def test_nothing_is_done_where_the_library_fits(mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    walkers = mirror.xtables._option_lookup, mirror.xtables._options_fcheck
    fitting = entry_of_size(mirror, measured_stride(mirror))
    monkeypatch.setattr(mirror, "xt_option_entry", fitting)
    patch_option_stride()
    assert mirror.xt_option_entry is fitting
    assert (mirror.xtables._option_lookup, mirror.xtables._options_fcheck) == walkers


def test_a_stride_that_is_not_known_is_refused(mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    walkers = mirror.xtables._option_lookup, mirror.xtables._options_fcheck
    for size in (measured_stride(mirror) - 16, measured_stride(mirror) + 8):
        monkeypatch.setattr(mirror, "xt_option_entry", entry_of_size(mirror, size))
        with pytest.raises(KernelError, match=f"lie {measured_stride(mirror)} bytes apart, and only {size} and "):
            patch_option_stride()
    assert (mirror.xtables._option_lookup, mirror.xtables._options_fcheck) == walkers


def test_a_library_that_does_not_tell_is_refused(mirror: Any) -> None:
    libc = SimpleNamespace(_lib_xtables=SimpleNamespace(_name="libc.so.6"))
    with pytest.raises(KernelError, match=r"does not tell .*xtables_options_xfrm.*no rule was changed"):
        measured_stride(libc)


def test_the_memory_that_hashlimit_writes_to_is_not_given_to_others(mirror: Any) -> None:
    import iptc

    match = iptc.Rule().create_match("hashlimit")
    extension = match._module
    others = [(ctypes.c_ubyte * extension.udata_size)() for _ in range(10_000)]
    match.set_parameter("hashlimit-upto", ["5/min"])
    # It notes how many seconds the unit of time has (extensions/libxt_hashlimit.c, parse_rate).
    assert ctypes.c_uint32.from_address(extension.udata).value == 60
    assert extension.udata not in {ctypes.addressof(other) for other in others}
    match.reset()
    assert ctypes.c_uint32.from_address(extension.udata).value == 0


def test_refusals_leave_nothing_behind(mirror: Any) -> None:
    import iptc

    match = iptc.Rule().create_match("hashlimit")

    def refuse_often() -> None:
        for _ in range(2 * sys.getrecursionlimit()):
            with pytest.raises(iptc.XTablesError):
                match.set_parameter("hashlimit-upto", ["rubbish"])

    # In a thread of its own, since it is the thread that would be out of stack afterwards.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(refuse_often).result()


def test_no_table_is_opened_to_make_a_target(mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import iptc

    def refuse(table: Any) -> None:
        raise AssertionError(f"{table.name} was opened")

    for rule, table in ((iptc.Rule, iptc.Table), (iptc.Rule6, iptc.Table6)):
        monkeypatch.setattr(table, "refresh", refuse)
        assert rule().create_target("SET").name == "SET"


@pytest.mark.parametrize(("name", "compared"), [("lo", 3), ("!lo", 3), ("veth+", 4), ("a-name-of-15-ch", 16)])
def test_the_whole_name_of_an_interface_is_compared_in_both_families(mirror: Any, name: str, compared: int) -> None:
    import iptc

    old, new = iptc.Rule(), iptc.Rule6()
    for rule, packet in ((old, old.entry.ip), (new, new.entry.ipv6)):
        rule.in_interface = rule.out_interface = name
        assert packet.iniface_mask == packet.outiface_mask == b"\xff" * compared
        assert packet.iniface == packet.outiface == name.strip("!+").encode()
