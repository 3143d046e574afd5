"""The body of an answer as it arrives: unpacked piece by piece. An answer that is too large, comes too slowly, or in
more and smaller pieces than a server has a reason for, is refused."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from sikkerguard.core.text import printable
from sikkerguard.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LARGEST_BODY = 64 << 20
# Pieces handed on are about this large: enough to make each worth a thread's while, little enough to stay flat.
PIECE = 256 << 10
SLOWEST = 1024  # bytes a second, over ...
SLOW_SECONDS = 15.0  # ... this long
# A piece costs some 5 microseconds, whatever its size. A server may send each line of the largest list by itself.
MAX_PIECES = 300_000
SMALLEST_PIECES = 64  # bytes on average, beyond that many
# After so many pieces that were small on average, a rest lets the next ones gather in the socket. So a server that
# dribbles keeps us busy for a fifth of the time.
CRUMBS = 128
CRUMB = 512  # bytes
REST_SECONDS = 0.01
# A member of its own for each 64 KiB, as bgzip makes, are some thousand. Each costs as much as some thousand bytes.
MAX_MEMBERS = 4096


class Pace:
    """Watches the pieces of one body as they come from the network. Times are in seconds, on a clock that only goes
    forward."""

    def __init__(self) -> None:
        self._received = 0
        self._pieces = 0
        self._started: float | None = None
        self._received_at_rest = 0

    def take(self, size: int, now: float) -> float:
        """Count a piece of `size` bytes that has come at `now`, and return the seconds to wait before the next one.

        A time limit for one read alone would let a server that sends a byte now and then hold us for hours.

        Raises:
            Unreachable: it is too much, too slow, or too finely chopped.
        """
        # Paced from its first byte: a server may think for a while, within the limit for one read.
        self._started = now if self._started is None else self._started
        self._received += size
        self._pieces += 1
        if self._received > LARGEST_BODY:
            raise too_large()
        seconds = now - self._started
        if seconds > SLOW_SECONDS and self._received < seconds * SLOWEST:
            raise Unreachable(
                f"SikkerAPI sent {self._received} bytes in {seconds:.0f} s, which is too slow to wait for",
            )
        if self._pieces > MAX_PIECES + self._received // SMALLEST_PIECES:
            raise Unreachable(
                f"SikkerAPI sent {self._received} bytes in {self._pieces} pieces, too small to be worth the work",
            )
        if self._pieces % CRUMBS:
            return 0.0
        small = self._received - self._received_at_rest < CRUMBS * CRUMB
        self._received_at_rest = self._received
        return REST_SECONDS if small else 0.0


class Unpacker:
    """Undoes the content coding that these headers of an answer name: none, or gzip."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Begin to unpack.

        Raises:
            Unreachable: it is another coding than those that were asked for.
        """
        coding = headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            raise Unreachable(f"SikkerAPI's answer is packed as {printable(coding)!r}, which was not asked for")
        self._gzip: Any = None if coding == "identity" else _gunzip()
        self._members = 1

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Unpack a piece of the body. Yields at most `PIECE` bytes at once, so that a few packed bytes that unpack to
        gigabytes never fill the memory.

        Raises:
            Unreachable: it can't be unpacked.
        """
        if self._gzip is None:
            yield piece
            return
        left = piece
        while left:
            if self._gzip.eof:
                # A gzip file may consist of several members, one behind the other (RFC 1952, section 2.2).
                self._members += 1
                if self._members > MAX_MEMBERS:
                    raise Unreachable(
                        f"SikkerAPI's answer is packed in more than {MAX_MEMBERS} parts, too small to be worth the "
                        "work",
                    )
                self._gzip = _gunzip()
            try:
                unpacked = self._gzip.decompress(left, PIECE)
            except zlib.error as error:
                raise Unreachable(f"SikkerAPI's answer can't be unpacked ({printable(str(error))})") from error
            yield unpacked
            left = self._gzip.unused_data if self._gzip.eof else self._gzip.unconsumed_tail

    def finish(self) -> None:
        """Note that the body has ended.

        Raises:
            Unreachable: the end of the packed content is missing.
        """
        if self._gzip is not None and not self._gzip.eof:
            raise Unreachable("SikkerAPI's packed answer broke off before its end")


def too_large() -> Unreachable:
    """The error for a body of more than `LARGEST_BODY` bytes, packed or unpacked."""
    return Unreachable(f"SikkerAPI's answer is larger than {LARGEST_BODY >> 20} MiB")


def _gunzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
