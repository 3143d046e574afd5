"""Ports: the table is sound and says what it is meant to say, and maps and sources are judged by it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.ports.lookup import (
    PORT_SCAN_THRESHOLD,
    SERVICE_NAMES,
    Service,
    category_of_source,
    doubtful_labels,
    parse_port_map,
    service_of,
    write_port_map,
)
from sikkerguard.core.ports.port_table import SERVICES
from tests.standin.reports import CATEGORIES


def known(name: str, category: str) -> Service:
    """A service that is reported by the name that it is shown with."""
    return Service(name, category, name)


def test_table_is_sound() -> None:
    assert {protocol for protocol, _, _, _ in SERVICES} == {"TCP", "UDP"}
    assert {category for _, category, _, _ in SERVICES} <= set(CATEGORIES)
    ports = Counter((protocol, port) for protocol, _, _, ports in SERVICES for port in ports)
    assert [key for key, count in ports.items() if count > 1] == []
    assert all(1 <= port <= 65535 for _, port in ports)
    names = Counter((protocol, name) for protocol, _, name, _ in SERVICES)
    assert [key for key, count in names.items() if count > 1] == []
    assert len({name for _, name in names}) >= 200
    assert [name for _, name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > 32] == []
    assert "unknown" not in {name for _, name in names}


def test_every_port_of_the_table_is_found_with_its_name_and_category() -> None:
    for protocol, category, name, ports in SERVICES:
        for port in ports:
            assert service_of(protocol, port) == known(name, category)


def test_only_udp_is_reflected() -> None:
    assert {protocol for protocol, category, _, _ in SERVICES if category == "ddos"} == {"UDP"}


@pytest.mark.parametrize(
    ("protocol", "port", "name", "category"),
    [
        ("TCP", 21, "ftp", "brute_force"),
        ("TCP", 22, "ssh", "brute_force"),
        ("TCP", 23, "telnet", "iot_targeted"),
        ("TCP", 25, "smtp", "spam"),
        ("TCP", 80, "http", "web_exploit"),
        ("TCP", 102, "s7", "iot_targeted"),
        ("TCP", 110, "pop3", "brute_force"),
        ("TCP", 139, "netbios-ssn", "brute_force"),
        ("TCP", 143, "imap", "brute_force"),
        ("TCP", 443, "https", "web_exploit"),
        ("TCP", 445, "smb", "brute_force"),
        ("TCP", 465, "smtps", "brute_force"),
        ("TCP", 502, "modbus", "iot_targeted"),
        ("TCP", 554, "rtsp", "iot_targeted"),
        ("TCP", 587, "submission", "brute_force"),
        ("TCP", 636, "ldaps", "brute_force"),
        ("TCP", 873, "rsync", "brute_force"),
        ("TCP", 993, "imaps", "brute_force"),
        ("TCP", 995, "pop3s", "brute_force"),
        ("TCP", 1080, "socks", "port_scan"),
        ("TCP", 1433, "mssql", "brute_force"),
        ("TCP", 1521, "oracle", "brute_force"),
        ("TCP", 1723, "pptp", "brute_force"),
        ("TCP", 1883, "mqtt", "iot_targeted"),
        ("TCP", 2181, "zookeeper", "brute_force"),
        ("TCP", 2375, "docker", "web_exploit"),
        ("TCP", 2379, "etcd", "web_exploit"),
        ("TCP", 3306, "mysql", "brute_force"),
        ("TCP", 3389, "rdp", "brute_force"),
        ("TCP", 5432, "postgresql", "brute_force"),
        ("TCP", 5555, "adb", "iot_targeted"),
        ("TCP", 5672, "amqp", "brute_force"),
        ("TCP", 5900, "vnc", "brute_force"),
        ("TCP", 5985, "winrm", "brute_force"),
        ("TCP", 6379, "redis", "brute_force"),
        ("TCP", 6443, "kubernetes", "web_exploit"),
        ("TCP", 6667, "irc", "port_scan"),
        ("TCP", 7547, "cwmp", "iot_targeted"),
        ("TCP", 9200, "elasticsearch", "web_exploit"),
        ("TCP", 10250, "kubelet", "web_exploit"),
        ("TCP", 27017, "mongodb", "brute_force"),
        ("TCP", 37777, "dahua", "iot_targeted"),
        ("UDP", 69, "tftp", "ddos"),
        ("UDP", 500, "ipsec", "port_scan"),
        ("UDP", 623, "ipmi", "brute_force"),
        ("UDP", 1812, "radius", "brute_force"),
        ("UDP", 1900, "ssdp", "ddos"),
        ("UDP", 5353, "mdns", "ddos"),
        ("UDP", 5683, "coap", "iot_targeted"),
        ("UDP", 47808, "bacnet", "iot_targeted"),
        ("UDP", 51820, "wireguard", "port_scan"),
        # The same number, told apart by the protocol
        ("TCP", 53, "dns", "dns_abuse"),
        ("UDP", 53, "dns", "dns_abuse"),
        ("TCP", 123, "unknown", "port_scan"),
        ("UDP", 123, "ntp", "ddos"),
        ("TCP", 161, "unknown", "port_scan"),
        ("UDP", 161, "snmp", "ddos"),
        ("TCP", 389, "ldap", "brute_force"),
        ("UDP", 389, "ldap", "ddos"),
        ("TCP", 5060, "sip", "brute_force"),
        ("UDP", 5060, "sip", "brute_force"),
        ("TCP", 11211, "memcached", "brute_force"),
        ("UDP", 11211, "memcached", "ddos"),
        ("UDP", 22, "unknown", "port_scan"),
        # No service at all
        ("TCP", 49152, "unknown", "port_scan"),
        ("TCP", 0, "unknown", "port_scan"),
        ("SCTP", 22, "unknown", "port_scan"),
        ("ICMP", 53, "icmp", "port_scan"),
        ("ICMPv6", 0, "icmpv6", "port_scan"),
    ],
)
def test_service_of(protocol: str, port: int, name: str, category: str) -> None:
    expected = known(name, category)
    assert service_of(protocol, port) == expected
    assert service_of(protocol.lower(), port) == expected
    assert service_of(protocol.upper(), port) == expected


def test_a_service_stays_as_it_is() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        service_of("TCP", 22).name = "telnet"  # type: ignore[misc]


def test_port_map_goes_before_the_table() -> None:
    port_map = {8443: "ssh", 40000: "https", 22: "mysql"}
    assert service_of("TCP", 8443, port_map) == known("ssh", "brute_force")
    assert service_of("TCP", 40000, port_map) == known("https", "web_exploit")
    assert service_of("TCP", 22, port_map) == known("mysql", "brute_force")
    assert service_of("TCP", 80, port_map) == known("http", "web_exploit")
    assert service_of("ICMP", 22, port_map) == known("icmp", "port_scan")


def test_a_mapped_name_has_the_category_of_its_protocol() -> None:
    assert service_of("TCP", 3890, {3890: "ldap"}) == known("ldap", "brute_force")
    assert service_of("UDP", 3890, {3890: "ldap"}) == known("ldap", "ddos")
    assert service_of("UDP", 2222, {2222: "ssh"}) == known("ssh", "brute_force")
    assert service_of("TCP", 1230, {1230: "ntp"}) == known("ntp", "ddos")
    assert service_of("TCP", 8080, {8080: "jenkins"}) == known("jenkins", "web_exploit")


def test_a_mapped_name_that_the_table_lacks_is_kept() -> None:
    assert service_of("TCP", 4711, {4711: "house-protocol"}) == Service("house-protocol", "port_scan", "unknown")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8443=https,2222=ssh", {8443: "https", 2222: "ssh"}),
        (" 8443 = HTTPS ,\n2222=Ssh,", {8443: "https", 2222: "ssh"}),
        ("1=ssh,65535=ssh,0080=http", {1: "ssh", 65535: "ssh", 80: "http"}),
        ("", {}),
        (" , ,", {}),
        # As SIKKER_WHITELIST has it.
        ("2222=SSH 8443=https\t80 = web", {2222: "ssh", 8443: "https", 80: "web"}),
        ("8000-8002=myapp", {8000: "myapp", 8001: "myapp", 8002: "myapp"}),
        ("22-22=ssh", {22: "ssh"}),
        ("2222=MySSH : SSH", {2222: "myssh:ssh"}),
        ("8000-8001=web-1:https,1=unknown", {8000: "web-1:https", 8001: "web-1:https", 1: "unknown"}),
        # Everyday labels that are no known service.
        (
            "1=myssh 2=my-app 3=syncthing 4=homeassistant 5=node-exporter 6=mumble 7=steam",
            dict(
                enumerate(
                    ("myssh", "my-app", "syncthing", "homeassistant", "node-exporter", "mumble", "steam"), start=1
                )
            ),
        ),
    ],
)
def test_parse_port_map(text: str, expected: dict[int, str]) -> None:
    assert parse_port_map(text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("8443", "'8443' is not of the form PORT=NAME"),
        ("8443:https", "'8443:https' is not of the form PORT=NAME"),
        ("8443=", "'8443=' is not of the form PORT=NAME"),
        ("=https", "'=https' is not of the form PORT=NAME"),
        ("0=https", "port 0 is outside 1-65535"),
        ("000=https", "port 000 is outside 1-65535"),
        ("65536=https", "port 65536 is outside 1-65535"),
        ("100000=https", "port 100000 is outside 1-65535"),
        ("ssh=22", "port 'ssh' is not a number in the digits 0-9"),
        ("-1=https", "port '-1' is not a number in the digits 0-9"),
        ("+80=https", "port '+80' is not a number in the digits 0-9"),
        ("8_0=https", "port '8_0' is not a number in the digits 0-9"),
        ("8 0=https", "'8' is not of the form PORT=NAME"),
        ("8010-8000=myapp", "the ports 8010-8000 are in the wrong order"),
        ("8000-=myapp", "port '' is not a number in the digits 0-9"),
        ("8000-65536=myapp", "port 65536 is outside 1-65535"),
        ("1-2-3=myapp", "port '2-3' is not a number in the digits 0-9"),
        ("80-90=http,85=web", "port 85 is given twice"),
        ("\N{FULLWIDTH DIGIT EIGHT}0=https", "is not a number in the digits 0-9"),
        ("8\N{SUPERSCRIPT TWO}=https", "is not a number in the digits 0-9"),
        ("8443=web:htps", "service 'htps' is unknown, the nearest known one is 'https'"),
        ("22=mine:shh", "service 'shh' is unknown, the nearest known one is 'ssh'"),
        ("22=mine:brute_force", "service 'brute_force' is unknown"),
        ("22=mine:", "service '' is unknown"),
        ("22=:ssh", "'' is no name"),
        ("80=my_app", "'my_app' is no name: letters a-z, digits and hyphens, at most 32"),
        ("80=" + "a" * 33, "is no name"),
        ("80=\N{LATIN SMALL LETTER E WITH ACUTE}", "is no name"),
        ("80=http=https", "'http=https' is no name"),
        ("80=http,80=https", "port 80 is given twice"),
        ("80=http,080=http", "port 80 is given twice"),
        ("80=htpt,80=http", "port 80 is given twice"),
    ],
)
def test_a_fault_in_a_port_map_is_named(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        parse_port_map(text)


def test_all_faults_of_a_port_map_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse_port_map("22=ssh,x=web:htps,70000=http,8443,22=https,443=https")
    assert str(raised.value).split("; ") == [
        "service 'htps' is unknown, the nearest known one is 'https'",
        "port 'x' is not a number in the digits 0-9",
        "port 70000 is outside 1-65535",
        "'8443' is not of the form PORT=NAME, such as 8443=https or 8000-8010=myapp",
        "port 22 is given twice",
    ]


def test_a_number_too_long_for_int_is_a_fault_like_any_other() -> None:
    with pytest.raises(ValueError, match=r"9 is outside 1-65535$"):
        parse_port_map("9" * 5000 + "=https")


def test_a_label_stays_at_home_and_may_name_its_service() -> None:
    port_map = {2222: "myssh:ssh", 3890: "books:ldap", 4711: "secret-project"}
    assert service_of("TCP", 2222, port_map) == Service("myssh", "brute_force", "ssh")
    assert service_of("TCP", 3890, port_map) == Service("books", "brute_force", "ldap")
    assert service_of("UDP", 3890, port_map) == Service("books", "ddos", "ldap")
    assert service_of("TCP", 4711, port_map) == Service("secret-project", "port_scan", "unknown")
    assert category_of_source({("TCP", 2222): 1}, port_map) == "brute_force"


names = st.one_of(
    st.sampled_from(sorted(SERVICE_NAMES)),
    st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True),
    st.from_regex(r"[a-z0-9-]{1,32}:(ssh|https|ldap)", fullmatch=True),
)


@given(st.dictionaries(st.one_of(st.integers(1, 65535), st.integers(8000, 8010)), names, max_size=20))
def test_what_is_written_as_a_port_map_is_read_back(port_map: dict[int, str]) -> None:
    for text in (",".join(f"{port}={name}" for port, name in port_map.items()), write_port_map(port_map)):
        assert parse_port_map(text) == port_map
    for port, name in port_map.items():
        assert service_of("TCP", port, port_map).name == name.partition(":")[0]


def test_neighbours_of_one_name_are_written_as_a_range() -> None:
    port_map = {8443: "https", 8001: "myapp", 8000: "myapp", 8002: "myapp:https", 8003: "myapp"}
    assert write_port_map(port_map) == "8000-8001=myapp,8002=myapp:https,8003=myapp,8443=https"
    assert write_port_map({}) == ""
    assert write_port_map(parse_port_map("1-65535=all")) == "1-65535=all"


@given(
    st.one_of(
        st.text(alphabet="0123456789=:, -+_shtp\N{ARABIC-INDIC DIGIT TWO}\N{SUPERSCRIPT TWO}", max_size=30),
        st.from_regex(r"( ?[0-9]{1,6}(-[0-9]{1,6})? ?= ?(ssh|web:https|http) ?,){0,4}", fullmatch=True),
    )
)
def test_any_text_is_a_sound_port_map_or_a_fault(text: str) -> None:
    said = ""
    found: dict[int, str] = {}
    try:
        found = parse_port_map(text)
    except ValueError as fault:
        said = str(fault)
    # Which fault it is the cases above say; here, that it is one of them.
    assert re.search("^$|form PORT=NAME|digits 0-9|outside 1-65535|is unknown|no name|twice|wrong order", said)
    assert all(1 <= port <= 65535 for port in found)
    assert all(re.fullmatch("[a-z0-9-]{1,32}(:[a-z0-9-]+)?", name) for name in found.values())
    assert parse_port_map(write_port_map(found)) == found


def test_a_source_is_reported_for_what_it_sent_most_to() -> None:
    assert category_of_source({("TCP", 22): 5, ("TCP", 80): 6}) == "web_exploit"
    assert category_of_source({("TCP", 22): 6, ("TCP", 80): 5}) == "brute_force"
    assert category_of_source({("UDP", 389): 1, ("TCP", 389): 2}) == "brute_force"
    assert category_of_source({("UDP", 389): 2, ("TCP", 389): 1}) == "ddos"
    assert category_of_source({("ICMP", 0): 9, ("TCP", 22): 1}) == "port_scan"


def test_of_equals_the_lowest_port_decides_then_the_protocol() -> None:
    assert category_of_source({("TCP", 80): 1, ("TCP", 22): 1}) == "brute_force"
    assert category_of_source({("tcp", 80): 1, ("UDP", 22): 1}) == "port_scan"
    assert category_of_source({("UDP", 389): 1, ("TCP", 389): 1}) == "brute_force"
    assert category_of_source({("UDP", 389): 1, ("tcp", 389): 1}) == "brute_force"


@given(st.dictionaries(st.tuples(st.sampled_from(["TCP", "UDP"]), st.integers(1, 200)), st.integers(1, 3), min_size=1))
def test_the_order_of_ports_does_not_matter(packets: dict[tuple[str, int], int]) -> None:
    assert category_of_source(packets) == category_of_source(dict(reversed(packets.items())))


def test_many_ports_are_a_port_scan() -> None:
    # All of them logins, so that only their number can make a scan of them.
    port_map = {10022 + step: "ssh" for step in range(PORT_SCAN_THRESHOLD)}
    packets = {("TCP", port): 1 for port in port_map}
    assert category_of_source(packets, port_map) == "port_scan"
    packets.popitem()
    assert category_of_source(packets, port_map) == "brute_force"


def test_only_distinct_ports_that_received_something_make_a_scan() -> None:
    port_map = {10022 + step: "ssh" for step in range(PORT_SCAN_THRESHOLD - 1)}
    packets = {("TCP", port): 9 for port in port_map}
    packets |= {("UDP", port): 9 for port in port_map}
    packets |= {("ICMP", 1): 1, ("ICMPv6", 2): 1, ("TCP", 50): 0}
    assert category_of_source(packets, port_map) == "brute_force"
    packets["TCP", 50] = 1
    assert category_of_source(packets, port_map) == "port_scan"


def test_one_purpose_is_no_scan() -> None:
    mail = {("TCP", port): 1 for port in (25, 110, 143, 465, 587, 993, 995)} | {("TCP", 143): 2}
    assert category_of_source(mail) == "brute_force"
    web = {("TCP", port): 1 for port in (80, 81, 443, 3000, 5000, 8000, 8008, 8080, 8081, 8443, 8888, 9090)}
    assert category_of_source(web) == "web_exploit"


@pytest.mark.parametrize("packets", [{}, {("TCP", 22): 0}])
def test_a_source_that_sent_nothing_is_not_reported(packets: dict[tuple[str, int], int]) -> None:
    with pytest.raises(ValueError, match="no packet"):
        category_of_source(packets)


@pytest.mark.parametrize(
    ("label", "known"),
    [("htps", "https"), ("mysq", "mysql"), ("myssh", "ssh"), ("my-app", None), ("homeassistant", None), ("ssh", None)],
)
def test_a_label_that_may_be_a_known_name_mistyped_is_found(label: str, known: str | None) -> None:
    assert doubtful_labels({2222: label, 80: "http"}) == ({label: known} if known else {})
    # Whoever names the service behind it means the label.
    assert doubtful_labels({2222: f"{label}:ssh"}) == {}
