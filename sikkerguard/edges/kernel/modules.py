"""Loads kernel modules that nothing else loads, where we have the right to, and gives that right up.

On kernels that have iptables' tables as modules, they are loaded by whoever runs iptables-legacy, or not at all. A
container has neither that program nor the host's modules. The kernel loads them by itself when someone with
CAP_SYS_MODULE asks for a network interface of that name (net/core/dev_ioctl.c, dev_load); all else follows by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import socket
import struct
from contextlib import suppress

log = logging.getLogger(__name__)

_MODULES = ("ip_tables", "ip6_tables")
_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_INTERFACE = "16s24x"  # struct ifreq
# linux/capability.h: three sets of 64 bits, each as two words.
_CAPABILITY_VERSION, _CAP_SYS_MODULE = 0x20080522, 16


def load_modules_and_drop_capability() -> None:
    """Load ip_tables and ip6_tables if CAP_SYS_MODULE is held, then drop it for good: it is too powerful to keep."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets):
        log.debug("our capabilities can't be read: %s", os.strerror(ctypes.get_errno()))
        return
    bit = 1 << _CAP_SYS_MODULE
    if not sets[0] & bit:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for module in _MODULES:
            # There is no such interface: that is the answer also where the module was loaded.
            with suppress(OSError):
                fcntl.ioctl(control, _SIOCGIFINDEX, struct.pack(_INTERFACE, module.encode()))
    for word in range(3):
        sets[word] &= ~bit
    if libc.capset(header, sets):
        log.warning("CAP_SYS_MODULE could not be given up: %s.", os.strerror(ctypes.get_errno()))
