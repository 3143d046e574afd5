"""The kernel's modules that nothing else has loaded, where we have the right to ask for them; and to let go of it.

On kernels whose tables come as modules, those of iptables are loaded by who runs iptables-legacy, or not at all. A
container has neither the program nor the host's modules. The kernel finds them by itself when a network interface of
such a name is asked for, by who has CAP_SYS_MODULE (net/core/dev_ioctl.c, dev_load); everything else follows by itself.
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
    """Load what is missing if we may, and from then on be without this right, which is far too great to be kept."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets):
        log.debug("our capabilities are not known: %s", os.strerror(ctypes.get_errno()))
        return
    bit = 1 << _CAP_SYS_MODULE
    if not sets[0] & bit:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for module in _MODULES:
            # There is no such interface: that is the answer also where the module was loaded.
            with suppress(OSError):
                fcntl.ioctl(asking, _SIOCGIFINDEX, struct.pack(_INTERFACE, module.encode()))
    for word in range(3):
        sets[word] &= ~bit
    if libc.capset(header, sets):
        log.warning("CAP_SYS_MODULE could not be given up: %s.", os.strerror(ctypes.get_errno()))
