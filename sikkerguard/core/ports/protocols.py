"""IP protocols by IANA's number: their names, and what stands in the place of a port."""

from __future__ import annotations

from sikkerguard.core.net.family import Family

TCP, UDP = 6, 17
ICMP = {Family.V4: 1, Family.V6: 58}
# IP in IP, IPv6 in IP, GRE, ESP, AH: what goes out by these goes to the far end of a tunnel.
TUNNELS = (4, 41, 47, 50, 51)
# Those without ports too. Names are as the product prints them.
PROTOCOLS = {1: "ICMP", 2: "IGMP", TCP: "TCP", UDP: "UDP", 33: "DCCP", 41: "IPv6", 47: "GRE", 50: "ESP", 51: "AH"}
PROTOCOLS |= {58: "ICMPv6", 89: "OSPF", 132: "SCTP", 136: "UDPLite"}
# As the kernel's sets have them, which know of no port in DCCP: get_port of net/netfilter/ipset/ip_set_getport.c.
WITH_PORTS = frozenset({TCP, UDP, 132, 136})
# What has a type and a code in the place of a port.
WITH_TYPES = frozenset(ICMP.values())
# A number of our own, which no IP protocol can have: TCP that its sender did not begin, or can't be shown to have. In
# the place of the port aimed at stands the port that it came from.
REPLY = 256 + TCP
