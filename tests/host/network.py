"""How a guest configures its own network, on the links that the laboratory plugs in: by files, as a server does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.laboratory.network import GATEWAY, GATEWAY_V6, HOST, HOST_LAN, HOST_LAN_V6, HOST_V6
from scripts.laboratory.tools import command

if TYPE_CHECKING:
    from pathlib import Path

_FILES = {
    "etc/systemd/network/wan.network": f"""\
[Match]
Name=wan

[Network]
IPv6AcceptRA=no

[Address]
Address={HOST}/24

[Address]
Address={HOST_V6}/64

[Route]
Gateway={GATEWAY}

[Route]
Gateway={GATEWAY_V6}
""",
    "etc/systemd/network/lan.network": f"""\
[Match]
Name=lan

[Network]
IPv6AcceptRA=no

[Address]
Address={HOST_LAN}/24

[Address]
Address={HOST_LAN_V6}/64
""",
    # Addresses, also those of links, can be used at once: nobody else has them here.
    "etc/sysctl.d/laboratory.conf": """\
net.ipv4.ip_forward=1
net.ipv6.conf.all.forwarding=1
net.ipv6.conf.*.accept_dad=0
""",
}


def configure(root: Path) -> None:
    """Have the Debian in this directory configure `wan` and `lan` by systemd-networkd, and forward between them."""
    for name, text in _FILES.items():
        (root / name).write_text(text)
    command("chroot", str(root), "systemctl", "--quiet", "enable", "systemd-networkd")
