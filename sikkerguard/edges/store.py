"""What survives on disk: the last verified list, what is known of earlier pulls, and the lock of the one service.

Every file is written beside its place, synced, and renamed into it, so that a reader sees the old or the new one and
never half of either. The list carries its checksum inside.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sikkerguard.core.model import (
    AllowEntry,
    Allowlist,
    Blocklist,
    Family,
    LeftOut,
    ListedSource,
    Networks,
    Ranges,
    VerifiedList,
    parse_prefix,
    to_text,
)
from sikkerguard.errors import ConfigError, ListError, SikkerGuardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIST, _ALLOW, _PULLS, _LOCK, _ACCEPT = "list.bin", "allowlist.json", "pulls.json", "service.lock", "accept-once"
_WAYS = "ways.json"
# The format's name and version; a list of another one is as unreadable as a damaged one, and is pulled anew.
_MAGIC = b"SIKKERGUARD LIST 1\n"
_DIGEST = hashlib.sha256
# Someone who asks whether a service runs holds the lock for a moment, too short to be taken for one.
_LOCK_SECONDS = 0.5


class _DamagedError(ListError):
    """The file is there and can be read, but is not what was written."""


class Store:
    """The state directory. Nothing is made or written before a method says so.

    Methods that write raise `OSError` when the disk refuses; the caller says what that means.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: int | None = None

    def prepare(self) -> None:
        """Make the directory, private to its owner, and take the lock that only one service may hold.

        Raises:
            ConfigError: the directory can't be used, or another service runs on it.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(handle):
            if time.monotonic() > deadline:
                os.close(handle)
                raise ConfigError([f"SIKKER_STATE_DIR: another sikkerguard runs on {self.directory}; stop it first."])
            time.sleep(0.02)
        self._lock = handle
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.close()
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            [f"SIKKER_STATE_DIR: {self.directory} can't be used ({error.strerror}); mend its rights, or make room."]
        )

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def service_pid(self) -> int | None:
        """The process that holds the lock, or None where no service runs.

        Raises:
            SikkerGuardError: the directory may not be read by this user.
        """
        try:
            handle = os.open(self.directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SikkerGuardError(
                f"{self.directory} can't be read ({error.strerror}); ask as root or as the service's user."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(handle, 32, 0).strip()
            return int(text) if text.isdigit() else None
        else:
            return None
        finally:
            os.close(handle)

    def has_list(self) -> bool:
        """Whether a list is kept, sound or not."""
        return (self.directory / _LIST).exists()

    def save_list(self, verified: VerifiedList) -> None:
        """Keep a list that passed its trial."""
        self._replace(_LIST, *_encoded(verified))

    def load_list(self) -> VerifiedList | None:
        """The last verified list, or None where there is none yet.

        Raises:
            ListError: the file is damaged; it was set aside, and nothing of it is used.
        """
        path = self.directory / _LIST
        try:
            return self.peek_list()
        except _DamagedError as error:
            aside = path.with_name(f"{_LIST}.damaged")
            with suppress(OSError):  # a disk that can't even rename is reported by the next write
                path.replace(aside)
            raise ListError(f"{error}; it is set aside as {aside} and not used, and a new one is pulled") from error

    def peek_list(self) -> VerifiedList | None:
        """The same for a reader that is not the service: a damaged file stays where it is.

        Raises:
            ListError: the file can't be read, or is damaged.
        """
        path = self.directory / _LIST
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ListError(f"the cached list {path} can't be read ({error.strerror})") from error
        try:
            return _decoded(content)
        except (ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"the cached list is damaged ({error})") from error

    def save_allowlist(self, allowlist: Allowlist) -> None:
        """Keep what is allowed and why, for `sikkerguard check` and for a start without network."""
        rows = [[to_text(entry.family, entry.prefix), entry.reason] for entry in allowlist.entries]
        self._replace(_ALLOW, json.dumps(rows).encode())

    def load_allowlist(self) -> Allowlist:
        """What was last allowed and why; empty where nothing readable is kept."""
        rows = self._json(_ALLOW, [])
        try:
            return Allowlist(tuple(AllowEntry(*parse_prefix(str(text)), str(reason)) for text, reason in rows))
        except (ValueError, TypeError):
            return Allowlist()

    def save_pulls(self, known: dict[str, Any]) -> None:
        """Keep what the next pull has to know of the last ones."""
        self._replace(_PULLS, json.dumps(known).encode())

    def load_pulls(self) -> dict[str, Any]:
        """What is known of earlier pulls; empty where nothing readable is kept."""
        known = self._json(_PULLS, {})
        return known if isinstance(known, dict) else {}

    def save_ways(self, known: dict[str, Any]) -> None:
        """Keep at which addresses SikkerAPI, or a proxy, proved to be there, and when."""
        self._replace(_WAYS, json.dumps(known).encode())

    def load_ways(self) -> dict[str, Any]:
        """What was last kept of them; empty where nothing readable is."""
        known = self._json(_WAYS, {})
        return known if isinstance(known, dict) else {}

    def request_acceptance(self) -> None:
        """Have the next pull take its list whatever its size."""
        self._replace(_ACCEPT, b"")

    def take_acceptance(self) -> bool:
        """Whether the next list is to be taken whatever its size; the wish is used up by asking."""
        try:
            (self.directory / _ACCEPT).unlink()
        except OSError:
            return False
        return True

    def _json(self, name: str, otherwise: Any) -> Any:
        try:
            return json.loads((self.directory / name).read_bytes())
        except (OSError, ValueError):
            return otherwise

    def _replace(self, name: str, *parts: bytes) -> None:
        path = self.directory / name
        temporary = path.with_name(f".{name}.new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parts(content: Blocklist) -> Iterator[tuple[Family, Networks]]:
    for family in Family:
        yield family, content.of(family)


def _encoded(verified: VerifiedList) -> list[bytes]:
    """The format: a line with its name and version, a line of JSON that describes what follows, then for each
    source and family the single addresses and the ranges (first address and one byte of prefix length), all packed;
    at the end the SHA-256 of everything before it. In parts, so that no list is there once more to be written."""
    parts: list[bytes] = []
    sources = []
    for source in verified.sources:
        counts = []
        for family, networks in _parts(source.content):
            parts += (networks.singles, networks.ranges.packed)
            counts.append([len(networks.singles) // family.size, len(networks.ranges)])
        sources.append({"name": source.name, "since": source.since, "counts": counts})
    description = {
        "verifiedAt": verified.verified_at,
        "sources": sources,
        "leftOut": [[str(each), each.test] for each in verified.left_out],
    }
    parts.insert(0, _MAGIC + json.dumps(description).encode() + b"\n")
    digest = _DIGEST()
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def _decoded(content: bytes) -> VerifiedList:
    if not content.startswith(_MAGIC):
        raise ValueError("it does not begin as a list of this version")
    end = len(content) - _DIGEST().digest_size
    with memoryview(content) as view:
        if _DIGEST(view[:end]).digest() != view[end:]:
            raise ValueError("its checksum is wrong")
    line_end = content.index(b"\n", len(_MAGIC))
    description = json.loads(content[len(_MAGIC) : line_end])
    offset = line_end + 1
    sources = []
    for source in description["sources"]:
        networks = {}
        for family, (singles, ranges) in zip(Family, source["counts"], strict=True):
            middle = offset + singles * family.size
            behind = middle + ranges * (family.size + 1)
            networks[family] = Networks(family, content[offset:middle], Ranges(family, content[middle:behind]))
            offset = behind
        content_of = Blocklist(networks[Family.V4], networks[Family.V6])
        sources.append(ListedSource(str(source["name"]), content_of, float(source["since"])))
    if offset != end:
        raise ValueError("it has not as many entries as it says")
    return VerifiedList(
        sources=tuple(sources),
        verified_at=float(description["verifiedAt"]),
        # Version 0.1.0 left nothing out.
        left_out=tuple(_left_out(str(address), str(test)) for address, test in description.get("leftOut", [])),
    )


def _left_out(text: str, test: str) -> LeftOut:
    family, prefix = parse_prefix(text)
    return LeftOut(family, prefix.first, test)
