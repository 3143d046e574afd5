"""What stands in front of the stand-in: servers at many addresses, of which some are SikkerAPI and others pretend to
be, with certificates of an authority of our own; and a proxy.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING

from scripts.laboratory.tools import command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import Self

LIE = b"<html><body>Welcome. Nothing is here yet.</body></html>"


class Authority:
    """An authority for certificates; `file` is what SSL_CERT_FILE must name for others to trust it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.file = directory / "authority.pem"
        self._key = directory / "authority.key"
        command(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=authority of the laboratory", "-keyout", str(self._key)),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
            *("-out", str(self.file)),
        )

    def context(self, name: str) -> ssl.SSLContext:
        """A server's settings, with a certificate for this name."""
        key, request, certificate = (self._directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self._directory / f"{name}.cnf"
        extensions.write_text(f"subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n")
        command(
            *("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)),
        )
        command(
            *("openssl", "x509", "-req", "-days", "2", "-in", str(request), "-CA", str(self.file)),
            *("-CAkey", str(self._key), "-CAcreateserial", "-extfile", str(extensions), "-out", str(certificate)),
        )
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(certificate, key)
        return made


class Server(ABC):
    """Serves connections, each in a thread, until it is stopped. `inside` calls something where its sockets are to be,
    such as `Namespace.inside`."""

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], object]], object]) -> None:
        self._inside = inside
        self._stopped = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket

        def listen() -> None:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._listener = socket.create_server(
                (address, port), family=family, backlog=128, dualstack_ipv6=address == "::"
            )

        inside(listen)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @abstractmethod
    def serve(self, connection: socket.socket) -> None:
        """One connection, until it ends."""

    def relay(self, connection: socket.socket, target: tuple[str, int], first: bytes = b"") -> None:
        """Pass on what either end says, until one is through."""

        def connect() -> socket.socket:
            return socket.create_connection(target, 5)

        made: list[socket.socket] = []
        self._inside(lambda: made.append(connect()))
        with made[0] as other:
            other.settimeout(None)
            other.sendall(first)
            back = threading.Thread(target=_pass_on, args=(other, connection), daemon=True)
            back.start()
            _pass_on(connection, other)
            back.join()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                continue
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.serve(connection)
        with self._lock:
            self._open.discard(connection)


class Front(Server):
    """A server at every address of a namespace. At those in `genuine` it passes on to the stand-in; at others it lies:
    by a certificate for another name, or by a page. With `silent` it takes connections and says nothing anywhere.

    `tried` counts the connections by the address that they were made to. `tls` has the settings for a genuine address
    and for another one; without, plain HTTP is spoken.
    """

    def __init__(
        self,
        inside: Callable[[Callable[[], object]], object],
        target: tuple[str, int],
        genuine: Iterable[str],
        *,
        address: str = "::",
        port: int = 0,
        tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    ) -> None:
        super().__init__(address, port, inside)
        self._target = target
        self._tls = tls
        self.genuine = set(genuine)
        self.silent = False
        self.tried: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def serve(self, connection: socket.socket) -> None:
        """A handshake where there is to be one, and the truth or a lie."""
        address = str(connection.getsockname()[0]).removeprefix("::ffff:")
        self.tried[address] += 1
        if self.silent:
            connection.recv(1 << 16)
            while connection.recv(1 << 16):
                pass
            return
        true = address in self.genuine
        if self._tls is not None:
            connection = self._tls[0 if true else 1].wrap_socket(connection, server_side=True)
        with connection:
            first = connection.recv(1 << 16)
            if not first:
                return
            self.asked[address] += 1
            if true:
                self.relay(connection, self._target, first)
            else:
                head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(LIE)}\r\n\r\n"
                connection.sendall(head.encode() + LIE)


class ProxyServer(Server):
    """A proxy for HTTP: CONNECT, and requests for absolute addresses; whatever is asked for, it is had from `target`.
    `asked` has the first line of each request, `headers` what came with it."""

    def __init__(
        self,
        inside: Callable[[Callable[[], object]], object],
        target: tuple[str, int],
        *,
        address: str,
        port: int = 0,
    ) -> None:
        super().__init__(address, port, inside)
        self._target = target
        self.asked: list[str] = []
        self.headers: list[str] = []

    def serve(self, connection: socket.socket) -> None:
        """One request, or one tunnel."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            head += piece
        line, _, headers = head.decode("latin-1").partition("\r\n")
        self.asked.append(line)
        self.headers.append(headers)
        if line.startswith("CONNECT "):
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.relay(connection, self._target, head.partition(b"\r\n\r\n")[2])
        else:
            path = re.sub(r"^(\w+) http://[^/ ]+", r"\1 ", line)
            self.relay(connection, self._target, f"{path}\r\n{headers}".encode("latin-1"))


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
