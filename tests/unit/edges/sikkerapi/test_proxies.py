"""Which proxy is used, by the environment: one decision, for any text that may stand there."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sikkerguard.core.lists.allowlist import API, PROXY
from sikkerguard.core.sikkerapi.endpoint import Endpoint
from sikkerguard.edges.sikkerapi.proxies import Proxy, endpoint_of, proxy_of
from sikkerguard.errors import SettingsRefused

URL = "https://api.example.net"
SECRET = "p%40ss-secret"
MIXED = "fd00::/8,[::1],::1/128,10.0.0.0/8,*.example,[fe80::1%eth0],1::/129,[::1,::1],["


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://192.0.2.1:3128"}, Proxy("http", "192.0.2.1", 3128)),
        ({"https_proxy": "http://192.0.2.1:3128"}, Proxy("http", "192.0.2.1", 3128)),
        ({"HTTPS_PROXY": "http://192.0.2.1", "https_proxy": "http://192.0.2.2"}, Proxy("http", "192.0.2.2", 80)),
        ({"HTTPS_PROXY": "http://192.0.2.1", "https_proxy": ""}, None),
        ({"HTTP_PROXY": "http://192.0.2.1:3128"}, None),
        ({"ALL_PROXY": "proxy.example.net:8080"}, Proxy("http", "proxy.example.net", 8080)),
        ({"ALL_PROXY": "http://192.0.2.1", "HTTPS_PROXY": "http://192.0.2.2"}, Proxy("http", "192.0.2.2", 80)),
        ({"ALL_PROXY": "http://[2001:db8::1]:3128/"}, Proxy("http", "2001:db8::1", 3128)),
        ({"ALL_PROXY": " https://proxy.example.net "}, Proxy("https", "proxy.example.net", 443)),
        ({"ALL_PROXY": "socks5h://192.0.2.1"}, Proxy("socks5", "192.0.2.1", 1080)),
        (
            {"ALL_PROXY": f"http://some%20one:{SECRET}@192.0.2.1"},
            Proxy("http", "192.0.2.1", 80, ("some one", "p@ss-secret")),
        ),
    ],
)
def test_the_environment_names_the_proxy(environment: dict[str, str], expected: Proxy | None) -> None:
    assert proxy_of(URL, environment) == expected


def test_another_scheme_has_another_proxy() -> None:
    environment = {"HTTP_PROXY": "http://192.0.2.1", "HTTPS_PROXY": "http://192.0.2.2"}
    found = proxy_of("http://api.example.net", environment)
    assert found is not None
    assert found.host == "192.0.2.1"


@pytest.mark.parametrize(
    ("host", "exceptions", "excepted"),
    [
        ("api.example.net", "", False),
        ("api.example.net", "*", True),
        ("api.example.net", "api.example.net", True),
        ("api.example.net", "API.Example.NET.", True),
        ("api.example.net", "example.net", True),
        ("api.example.net", ".example.net", True),
        ("api.example.net", "*.example.net", True),
        ("api.example.net", "xample.net", False),
        ("api.example.net", "other.example.net, net", True),
        ("api.example.net", "example.org example.net", True),
        ("api.example.net", "api.example.net:443", True),
        ("api.example.net", "api.example.net:8443", False),
        ("api.example.net", "192.0.2.0/24,2001:db8::/32,[2001:db8::]/32,::junk::,:,/,[,]", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.0/24", True),
        ("192.0.2.7", "192.0.2.1/24", True),
        ("192.0.2.7", "192.0.3.0/24", False),
        ("192.0.2.7", "192.0.2.7:443", True),
        ("192.0.2.7", "192.0.2.7:80", False),
        ("192.0.2.7", "2.7", False),
        ("192.0.2.7", "2001:db8::/32", False),
        ("[2001:db8::7]", "2001:db8::7", True),
        ("[2001:db8::7]", "2001:DB8:0::7", True),
        ("[2001:db8::7]", "[2001:db8::7]", True),
        ("[2001:db8::7]", "[2001:db8::7]:443", True),
        ("[2001:db8::7]", "[2001:db8::7]:80", False),
        ("[2001:db8::7]", "2001:db8::/32", True),
        ("[2001:db8::7]", "[2001:db8::]/32", True),
        ("[2001:db8::7]", "2001:db8:1::/48", False),
        ("[2001:db8::7]", "2001:db8::7:443", False),
        # As Docker, Kubernetes and corporate hosts have it.
        ("[fd00::7]", MIXED, True),
        ("[FD12:3456::7]", MIXED, True),
        ("[::1]", "[::1]", True),
        ("[::1]", "::1/128", True),
        ("[::1]", "[::1]/128", True),
        ("[::1]", "[::1/128]", True),
        ("[::1]", "localhost,127.0.0.1,::1", True),
        ("[0:0:0:0:0:0:0:1]", "::1", True),
        ("[::1]", "localhost,127.0.0.0/8", False),
        ("[2001:db8::7]", MIXED, False),
        ("[2001:db8::7]", "::/0", True),
        ("[2001:db8::7]", "0.0.0.0/0", False),
        ("[2001:db8::7]", "[2001:db8::/32]:443", True),
        ("[2001:db8::7]", "[2001:db8::/32]:80", False),
        ("[::ffff:192.0.2.7]", "192.0.2.7", False),
        ("10.1.2.3", MIXED, True),
        ("192.0.2.7", MIXED, False),
        ("192.0.2.7", "::/0", False),
        ("api.example", MIXED, True),
        ("api.example.net", MIXED, False),
        ("api.example.net", "::/0,0.0.0.0/0", False),
    ],
)
def test_no_proxy_excepts_names_and_addresses(host: str, exceptions: str, excepted: bool) -> None:
    environment = {"HTTPS_PROXY": "http://192.0.2.1:3128", "NO_PROXY": exceptions}
    assert (proxy_of(f"https://{host}", environment) is None) is excepted


@given(st.text(max_size=40), st.sampled_from(["api.example.net", "192.0.2.7", "[2001:db8::7]"]))
def test_whatever_no_proxy_says_it_is_read(exceptions: str, host: str) -> None:
    proxy_of(f"https://{host}", {"HTTPS_PROXY": "http://192.0.2.1", "NO_PROXY": exceptions})


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 32))
def test_a_range_excepts_what_it_covers(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address,
    first: ipaddress.IPv4Address | ipaddress.IPv6Address,
    length: int,
) -> None:
    network = ipaddress.ip_network((first, length), strict=False)
    url = f"https://[{host}]" if host.version == 6 else f"https://{host}"
    environment = {"HTTPS_PROXY": "http://192.0.2.1", "NO_PROXY": f"a.example.org,{network}"}
    assert (proxy_of(url, environment) is None) is (host in network)


@pytest.mark.parametrize(
    "text",
    [
        f"ftp://someone:{SECRET}@192.0.2.1",
        f"http://someone:{SECRET}@",
        f"http://someone:{SECRET}@192.0.2.1:99999",
        f"http://someone:{SECRET}@192.0.2.1:0",
        f"http://someone:{SECRET}@[192.0.2.1",
        f"http://someone:{SECRET}@192.0.2.1:port",
        f"http://someone:{SECRET}@{'long' * 16}.example.net",
    ],
)
def test_what_can_be_no_proxy_is_an_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(SettingsRefused) as caught:
        proxy_of(URL, {"HTTPS_PROXY": text})
    assert "the environment's proxy can't be used (HTTPS_PROXY: " in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    # Until somebody wants to use it, it is SikkerAPI that matters.
    assert endpoint_of(URL, {"HTTPS_PROXY": text}) == Endpoint(API, "https", "api.example.net", 443)


@given(st.text(max_size=30))
def test_whatever_is_named_as_a_proxy_is_one_or_a_sentence(text: str) -> None:
    try:
        found = proxy_of(URL, {"HTTPS_PROXY": text})
    except SettingsRefused:
        return
    assert found is None or (found.host and 0 < found.port < 65536)


def test_a_proxy_is_shown_without_its_password() -> None:
    proxy = proxy_of(URL, {"HTTPS_PROXY": f"http://someone:{SECRET}@192.0.2.1"})
    assert "secret" not in repr(proxy)
    assert "someone" not in repr(proxy)


def test_the_way_is_the_proxy_or_the_api() -> None:
    assert endpoint_of("https://api.example.net/path", {}) == Endpoint(API, "https", "api.example.net", 443)
    assert endpoint_of("http://[2001:db8::7]:8080", {}) == Endpoint(API, "http", "2001:db8::7", 8080)
    assert endpoint_of(URL, {"HTTPS_PROXY": "http://192.0.2.1:3128"}) == Endpoint(PROXY, "http", "192.0.2.1", 3128)
