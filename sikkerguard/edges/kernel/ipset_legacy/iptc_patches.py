"""Patches python-iptables so that it fits the installed iptables, and is safe in a process that runs for months.

Each `patch_...` works around one defect of python-iptables 1.0.1 to 1.2.0; `apply_patches` calls all of them. They have
to be called before the first rule is built or read, and may be called again.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

from sikkerguard.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

_WORD = ctypes.sizeof(ctypes.c_void_p)
# 128 bytes on 64 bits: more than an entry of options has ever taken (48 bytes, then 56), so that the second entry of
# the table that is measured is among the words that are filled in.
_FILLED_WORDS = 16
_REMEDY = "no rule was changed; install iptables and python-iptables from one release of the distribution"


def apply_patches() -> None:
    """Work around every known defect.

    Raises:
        KernelError: python-iptables can't be made to fit this iptables.
    """
    patch_option_stride()
    patch_scratch_memory()
    patch_refusal()
    patch_table_lookup()
    patch_interface_mask()


def patch_option_stride() -> None:
    """Make python-iptables step from option to option as the loaded libxtables does. Raises `KernelError` where neither
    of the two known layouts is the one of this iptables.

    An extension's options are an array of `struct xt_option_entry`, which ends in `min, max` up to iptables 1.8.9 and
    in `min, max, base` in 1.8.11 (include/xtables.h), while the library's version stayed 12. python-iptables knows the
    former, so that with the latter it finds an extension's first option and no other: `LOG: no such parameter
    log-prefix`. The other structures that it mirrors have one layout in both.
    """
    import iptc.xtables

    mirror = iptc.xtables
    stride = measured_stride(mirror)
    known = ctypes.sizeof(mirror.xt_option_entry)
    if stride == known:
        return
    grown = _with_base(mirror.xt_option_entry)
    if stride != ctypes.sizeof(grown):
        raise KernelError(
            f"the options of this iptables' extensions lie {stride or 'an unknown number of'} bytes apart, and only "
            f"{known} and {ctypes.sizeof(grown)} are known: python-iptables can't be used with it; {_REMEDY}"
        )
    _walk_with(mirror, grown)


def measured_stride(mirror: Any) -> int:
    """The bytes from one option to the next, as the loaded libxtables steps; 0 where that can't be found out.

    Its `xtables_options_xfrm` (libxtables/xtoptions.c) makes a table for getopt out of a table of options, by copying
    one name after the other until one is NULL. It is given a table in which each word is its own address, so that the
    second name shows how far it stepped. No extension is loaded, and no memory is read but what was allocated for this.
    """
    table = (ctypes.c_void_p * (4 * _FILLED_WORDS))()
    start = ctypes.addressof(table)
    for word in range(_FILLED_WORDS):
        table[word] = start + word * _WORD
    getopt_table = _made_for_getopt(mirror, table)
    second_name = ctypes.c_void_p.from_address(getopt_table + ctypes.sizeof(mirror.option)).value
    _free(getopt_table)
    return second_name - start if second_name else 0


def _made_for_getopt(mirror: Any, table: ctypes.Array[ctypes.c_void_p]) -> int:
    """The address of the getopt table made of this one; it ends in an empty option, and the caller is to free it."""
    try:
        make = ctypes.CDLL(mirror._lib_xtables._name).xtables_options_xfrm
    except AttributeError as error:
        raise KernelError(
            f"this iptables does not tell how its extensions' options are laid out ({error}): python-iptables can't "
            f"be used with it; {_REMEDY}"
        ) from error
    make.restype = ctypes.c_void_p
    no_options, offset = mirror.option(), ctypes.c_uint()
    made = make(ctypes.byref(no_options), None, table, ctypes.byref(offset))
    if not made:
        raise KernelError("libxtables got no memory for a table of options; no rule was changed")
    return int(made)


def _free(address: int) -> None:
    free = ctypes.CDLL(None).free
    free.restype = None
    free(ctypes.c_void_p(address))


def _with_base(entry: Any) -> Any:
    """`struct xt_option_entry` with `unsigned int base` at its end, as in iptables 1.8.11."""
    return type(entry)("xt_option_entry", (entry,), {"_fields_": [("base", ctypes.c_uint)]})


def _walk_with(mirror: Any, grown: Any) -> None:
    """Make the two functions of python-iptables that walk an array of options see it as one of `grown`.

    The pointers to it in the other structures can keep their type: they are as long as before, and ctypes does not let
    a structure change once another refers to it.
    """
    known, walker, to_grown = mirror.xt_option_entry, mirror.xtables, ctypes.POINTER(grown)
    look_up, check = walker._option_lookup, walker._options_fcheck

    def option_lookup(self: Any, entries: Any, name: bytes) -> Any:
        found = look_up(self, ctypes.cast(entries, to_grown), name)
        # The caller stores a pointer to it, of the type that it knows.
        return None if found is None else known.from_address(ctypes.addressof(found))

    def options_fcheck(self: Any, name: bytes, given: int, entries: Any) -> None:
        check(self, name, given, ctypes.cast(entries, to_grown))

    walker._option_lookup, walker._options_fcheck = option_lookup, options_fcheck
    # Only a second call reads this name: to find that all fits.
    mirror.xt_option_entry = grown


def patch_scratch_memory() -> None:
    """Keep the memory that a match's extension writes to while its options are read.

    An extension with a `udata_size` (hashlimit; include/xtables.h: "per-extension private scratch area") gets the
    address of a buffer that python-iptables drops on the spot, so that each `--hashlimit-upto` writes four bytes into
    whatever Python object came to lie there. Here each extension has one buffer, for good.
    """
    import iptc

    if hasattr(iptc.Match.reset, "__wrapped__"):
        return
    buffers: dict[int, ctypes.Array[ctypes.c_ubyte]] = {}
    drop_buffer = iptc.Match.reset

    @functools.wraps(drop_buffer)
    def reset(match: Any) -> None:
        drop_buffer(match)
        extension = match._module
        if not extension.udata_size:
            return
        buffer = buffers.setdefault(ctypes.addressof(extension), (ctypes.c_ubyte * extension.udata_size)())
        ctypes.memset(buffer, 0, extension.udata_size)
        extension.udata = ctypes.cast(buffer, ctypes.c_void_p)

    iptc.Match.reset = reset


def patch_refusal() -> None:
    """Let an extension that refuses an option (a set that does not exist) return without passing through Python.

    libxtables has such a refusal end in `exit_err`, which must not return. python-iptables does that with a `longjmp`
    out of a Python function. The interpreter goes on counting that function as running, so that the thread ends in a
    `RecursionError` after some hundred refusals. The C function that jumps works as well without it.
    """
    import iptc.xtables

    mirror = iptc.xtables
    mirror._xt_globals.exit_err = ctypes.cast(mirror._throw, type(mirror._xt_globals.exit_err))


def patch_table_lookup() -> None:
    """Let a rule look for the chain that it jumps to in the tables that are open, and open no other.

    python-iptables asks every table there is whether it has a chain of the target's name: 1.0.1 whenever a rule is
    read, 1.2.0 when a jump is built. To be asked, filter, nat, mangle and security are opened, which makes the kernel
    create them and lead packets through them (findings/python-iptables-opens-tables.sh).
    """
    import iptc

    iptc.Rule.tables = _opened(iptc.Table)
    iptc.Rule6.tables = _opened(iptc.Table6)


def _opened(kind: Any) -> property:
    return property(lambda _: list(kind._cache.values()))


def patch_interface_mask() -> None:
    """Make an IPv6 rule compare the whole name of an interface.

    iptables sets each byte of the name's mask to 255 (libxtables/xtables.c, xtables_parse_interface), python-iptables
    to 1 in `Rule6`. The kernel compares under the mask (ifname_compare_aligned), so only the lowest bit of each letter
    counts: bond0, tun0, tap0, virbr0 and every veth pass for lo, and `! -i lo` does not take their packets.
    """
    import iptc

    kind = iptc.Rule6
    kind.in_interface = property(kind.get_in_interface, _with_whole_mask(kind.set_in_interface, "iniface_mask"))
    kind.out_interface = property(kind.get_out_interface, _with_whole_mask(kind.set_out_interface, "outiface_mask"))


def _with_whole_mask(set_interface: Callable[[Any, str], None], mask: str) -> Callable[[Any, str], None]:
    def set_with_whole_mask(rule: Any, name: str) -> None:
        set_interface(rule, name)
        packet = rule.entry.ipv6
        setattr(packet, mask, b"\xff" * len(getattr(packet, mask)))

    return set_with_whole_mask
