"""The proxy for requests, from the environment, read as other programs read it. Nothing else chooses a proxy.

HTTPS_PROXY or HTTP_PROXY, by the scheme of the requested address, else ALL_PROXY; NO_PROXY names hosts that are asked
without a proxy. Each is read in lower case too, which takes precedence, and switches the other off if it is empty.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sikkerguard.core.lists.allowlist import API, PROXY
from sikkerguard.core.sikkerapi.endpoint import Endpoint
from sikkerguard.errors import SettingsRefused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

# By scheme: the port where none is given. As httpx has it for the first two; RFC 1928 for the last.
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. Its user and password are for the proxy alone, and are shown nowhere."""

    scheme: str
    host: str
    port: int
    auth: tuple[str, str] | None = field(default=None, repr=False)


def proxy_of(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for requests to this address, or None.

    Raises:
        SettingsRefused: the environment names one that can't be one. The message does not repeat its address, which may
            hold a password.
    """
    parts = urlsplit(url)
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        text = _variable(environment, name).strip()
        if text:
            break
    else:
        return None
    if _is_excepted(parts, _variable(environment, "no_proxy")):
        return None
    try:
        return _parsed(text if "://" in text else f"http://{text}")
    except ValueError as error:
        raise SettingsRefused(
            f"the environment's proxy can't be used ({name.upper()}: {error}); check ALL_PROXY, HTTPS_PROXY and "
            "HTTP_PROXY",
        ) from None


def endpoint_of(url: str, environment: Mapping[str, str]) -> Endpoint:
    """The host that requests to this address connect to: SikkerAPI's, or a proxy. An invalid proxy counts as none here;
    `proxy_of` raises the error when a request is to be made."""
    try:
        proxy = proxy_of(url, environment)
    except SettingsRefused:
        proxy = None
    if proxy is not None:
        return Endpoint(PROXY, proxy.scheme, proxy.host, proxy.port)
    parts = urlsplit(url)
    return Endpoint(API, parts.scheme, parts.hostname or "", _port(parts))


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment[name] if name in environment else environment.get(name.upper(), "")


def _parsed(text: str) -> Proxy:
    """Raises `ValueError` with a few words that repeat nothing of the text."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("it is no address of a proxy") from None
    if parts.scheme not in _PORTS:
        raise ValueError("it must begin with http://, https:// or socks5://")
    if not parts.hostname or port == 0 or not parts.hostname.isprintable() or " " in parts.hostname:
        raise ValueError("it is no address of a proxy")
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError("it is no address of a proxy") from None
    auth = None
    if parts.username or parts.password:
        auth = unquote(parts.username or ""), unquote(parts.password or "")
    return Proxy("socks5" if parts.scheme == "socks5h" else parts.scheme, parts.hostname, _port(parts), auth)


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _is_excepted(parts: SplitResult, exceptions: str) -> bool:
    """Whether NO_PROXY has this host: by `*`, by its name or a parent domain, by its address, or by a range that covers
    it; with or without a port. Anything else is ignored."""
    host, port = (parts.hostname or "").rstrip("."), _port(parts)
    return any(_covers(entry.lower(), host, port) for entry in exceptions.replace(",", " ").split())


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, colon, number = entry.rpartition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if colon and number.isascii() and number.isdigit():
            if int(number[:6]) != port:
                return False
            entry = name
        suffix = entry.removeprefix("*").strip(".")
        return bool(suffix) and (host == suffix or host.endswith(f".{suffix}"))
    # With brackets it is clear where an address of IPv6 ends and its port begins.
    with_port = colon and number == str(port) and (":" not in name or name.endswith("]"))
    for text in (entry, *(name,) * bool(with_port)):
        with suppress(ValueError):  # what is no range is ignored
            if address in ipaddress.ip_network(_unbracketed(text), strict=False):
                return True
    return False


def _unbracketed(text: str) -> str:
    """Without the brackets of `[2001:db8::1]`, or of `[2001:db8::]/32`."""
    return text.replace("[", "", 1).replace("]", "", 1) if text.startswith("[") else text
