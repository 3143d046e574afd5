"""The body of an answer as it arrives: unpacked piece by piece, and no more of it, nor slower, nor in more crumbs than
a server has a reason for."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from sikkerguard.core.text import printable
from sikkerguard.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LARGEST_BODY = 64 << 20
# Pieces handed on are about this large: enough to make each worth a thread's while, little enough to stay flat.
PIECE = 256 << 10
SLOWEST = 1024  # bytes a second, over ...
SLOW_SECONDS = 15.0  # ... this long
# A piece costs some 5 microseconds, whatever its size. A server may send each line of the largest list by itself.
MOST_PIECES = 300_000
SMALLEST_PIECES = 64  # bytes on average, beyond that many
# After so many pieces that were small on average, a rest lets the next ones gather in the socket. So a server that
# dribbles keeps us busy for a fifth of the time.
CRUMBS = 128
CRUMB = 512  # bytes
REST_SECONDS = 0.01
# A member of its own for each 64 KiB, as bgzip makes, are some thousand. Each costs as much as some thousand bytes.
MOST_MEMBERS = 4096


class Pace:
    """Watches the pieces of one body as they come from the network. Times are in seconds, on a clock that only goes
    forward."""

    def __init__(self) -> None:
        self._received = 0
        self._pieces = 0
        self._started: float | None = None
        self._received_at_rest = 0

    def take(self, size: int, now: float) -> float:
        """A piece of so many bytes has come. Gives the seconds to wait before the next one is asked for.

        A limit for one read alone would let a server that sends a byte now and then hold us for hours.

        Raises:
            FetchError: it is too much, too slow, or too finely chopped.
        """
        # Paced from its first byte: a server may think for a while, within the limit for one read.
        self._started = now if self._started is None else self._started
        self._received += size
        self._pieces += 1
        if self._received > LARGEST_BODY:
            raise too_large()
        seconds = now - self._started
        if seconds > SLOW_SECONDS and self._received < seconds * SLOWEST:
            raise FetchError(
                f"SikkerAPI sent {self._received} bytes in {seconds:.0f} s, which is too slow to wait for",
                retryable=True,
            )
        if self._pieces > MOST_PIECES + self._received // SMALLEST_PIECES:
            raise FetchError(
                f"SikkerAPI sent {self._received} bytes in {self._pieces} pieces, too small to be worth the work",
                retryable=True,
            )
        if self._pieces % CRUMBS:
            return 0.0
        small = self._received - self._received_at_rest < CRUMBS * CRUMB
        self._received_at_rest = self._received
        return REST_SECONDS if small else 0.0


class Unpacker:
    """Takes the content coding that these headers name off a body."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Raises:
        FetchError: it was not asked for.
        """
        coding = headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            raise FetchError(
                f"SikkerAPI's answer is packed as {printable(coding)!r}, which was not asked for", retryable=True
            )
        self._gzip: Any = None if coding == "identity" else _gunzip()
        self._members = 1

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """What a piece of the body holds, unpacked never more of it at once than `PIECE`: a bomb goes off in small
        bangs.

        Raises:
            FetchError: it can't be unpacked.
        """
        if self._gzip is None:
            yield piece
            return
        left = piece
        while left:
            if self._gzip.eof:
                # A gzip file may consist of several members, one behind the other (RFC 1952, section 2.2).
                self._members += 1
                if self._members > MOST_MEMBERS:
                    raise FetchError(
                        f"SikkerAPI's answer is packed in more than {MOST_MEMBERS} parts, too small to be worth the "
                        "work",
                        retryable=True,
                    )
                self._gzip = _gunzip()
            try:
                unpacked = self._gzip.decompress(left, PIECE)
            except zlib.error as error:
                raise FetchError(
                    f"SikkerAPI's answer can't be unpacked ({printable(str(error))})", retryable=True
                ) from error
            yield unpacked
            left = self._gzip.unused_data if self._gzip.eof else self._gzip.unconsumed_tail

    def finish(self) -> None:
        """The body has ended.

        Raises:
            FetchError: its coding has not.
        """
        if self._gzip is not None and not self._gzip.eof:
            raise FetchError("SikkerAPI's packed answer broke off before its end", retryable=True)


def too_large() -> FetchError:
    """For a body of more than `LARGEST_BODY`, packed or unpacked."""
    return FetchError(f"SikkerAPI's answer is larger than {LARGEST_BODY >> 20} MiB", retryable=True)


def _gunzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
