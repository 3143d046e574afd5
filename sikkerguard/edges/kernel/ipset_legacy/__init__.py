"""The backend `ipset-legacy`: ipset sets through netlink and pyroute2, iptables-legacy rules through python-iptables.

`backend` is its front. What it is made of, from above: `repair`, `loader`, `trial`, `inspection`, `counters`,
`removal`; `set_contents`; `sets` (with `set_kinds`, `set_netlink`, `set_listing`) and
`chains` (with `references`, `iptc_library`, `iptc_patches`).
"""
