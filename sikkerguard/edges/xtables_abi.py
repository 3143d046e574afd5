"""Makes python-iptables fit the iptables that is installed.

python-iptables (1.0.1 to 1.2.0) mirrors the C structures of libxtables. One of them grew: `struct xt_option_entry`
got a last member `base` between iptables 1.8.9 and 1.8.11 (include/xtables.h), while the library's version stayed 12.
An extension's options are an array of it, so against the newer iptables python-iptables finds an extension's first
option and no further one: `LOG: no such parameter log-prefix`. The other structures that it mirrors (xtables_match,
xtables_target, xtables_globals, xt_option_call, xt_fcheck_call) are laid out alike in both.
"""

from __future__ import annotations

import ctypes
from typing import Any

from sikkerguard.errors import KernelError

_WORD = ctypes.sizeof(ctypes.c_void_p)
# Wider than any entry yet (48 and 56 bytes on 64 bits), so that the second entry lies in the part with pointers.
_PROBE_WORDS = 16


def mend_option_stride() -> None:
    """Make python-iptables step from option to option as the loaded libxtables does.

    To be called before the first rule is built or read; another call, or one with an older iptables, changes nothing.
    Raises `KernelError` when the two fit neither as they are nor mended.
    """
    import iptc.xtables

    mirror = iptc.xtables
    stride = measured_stride(mirror)
    if stride == ctypes.sizeof(mirror.xt_option_entry):
        return
    grown = _with_base(mirror.xt_option_entry)
    if stride != ctypes.sizeof(grown):
        raise KernelError(
            f"the options of this iptables' extensions lie {stride or 'an unknown number of'} bytes apart, where "
            f"{ctypes.sizeof(mirror.xt_option_entry)} or {ctypes.sizeof(grown)} are known, so that python-iptables "
            "can't be used with it; no rule was changed; install the iptables and python-iptables of one release"
        )
    _walk_with(mirror, grown)


def measured_stride(mirror: Any) -> int:
    """The bytes from one option to the next, as the loaded libxtables counts them; 0 where it can't be told.

    libxtables turns a table of options into one for getopt (`xtables_options_xfrm`) by taking name after name until
    one is NULL. It is given a table each of whose words points at itself, so the second name that it takes tells how
    far it stepped. It takes the names as they are, and were they followed, each points into the table.
    """
    table = (ctypes.c_void_p * (4 * _PROBE_WORDS))()
    start = ctypes.addressof(table)
    for word in range(_PROBE_WORDS):
        table[word] = start + word * _WORD
    turned = _turned_for_getopt(mirror, table)
    try:
        second = ctypes.c_void_p.from_address(turned + ctypes.sizeof(mirror.option)).value
    finally:
        _free(turned)
    return second - start if second else 0


def _turned_for_getopt(mirror: Any, table: ctypes.Array[ctypes.c_void_p]) -> int:
    """The address of the getopt table made of this one; it ends in an empty option and is the caller's to free."""
    try:
        turn = ctypes.CDLL(mirror._lib_xtables._name).xtables_options_xfrm
    except AttributeError as error:
        raise KernelError(
            f"this iptables does not tell how its extensions' options are laid out ({error}), so that python-iptables "
            "can't be used with it; no rule was changed; install the iptables and python-iptables of one release"
        ) from error
    turn.restype = ctypes.c_void_p
    no_options = mirror.option()
    offset = ctypes.c_uint()
    turned = turn(ctypes.byref(no_options), None, table, ctypes.byref(offset))
    if not turned:
        raise KernelError("libxtables had no memory for a table of options; no rule was changed")
    return int(turned)


def _free(address: int) -> None:
    free = ctypes.CDLL(None).free
    free.restype = None
    free(ctypes.c_void_p(address))


def _with_base(entry: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """`struct xt_option_entry` of iptables 1.8.11, which ends in `unsigned int min, max, base`."""

    class Grown(entry):  # type: ignore[valid-type, misc]
        _fields_ = (("base", ctypes.c_uint),)

    return Grown


def _walk_with(mirror: Any, grown: type[ctypes.Structure]) -> None:
    """Have the two functions of python-iptables that walk an array of options see it as one of `grown`.

    The pointers to it in the other structures keep their type: their size does not depend on it, and ctypes does not
    let a structure that is in use be changed.
    """
    known = mirror.xt_option_entry
    owner = mirror.xtables
    look_up, check = owner._option_lookup, owner._options_fcheck
    to_grown = ctypes.POINTER(grown)

    def option_lookup(self: Any, entries: Any, name: bytes) -> Any:
        found = look_up(self, ctypes.cast(entries, to_grown), name)
        # The caller stores it as a pointer to the structure that it knows.
        return None if found is None else known.from_address(ctypes.addressof(found))

    def options_fcheck(self: Any, name: bytes, given: int, entries: Any) -> None:
        check(self, name, given, ctypes.cast(entries, to_grown))

    owner._option_lookup = option_lookup
    owner._options_fcheck = options_fcheck
    # Nothing reads this name again but `mend_option_stride`, which finds that all fits.
    mirror.xt_option_entry = grown
