"""What survives on disk: the last verified list, what is known of earlier pulls, and the lock of the one service.

Every file is written beside its place, synced, and renamed into it, so that a reader sees the old or the new one and
never half of either. The list carries its checksum inside, and the one before it is kept beside it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sikkerguard.core.lists.allowlist import AllowEntry, Allowlist
from sikkerguard.core.lists.pull_memory import PullMemory
from sikkerguard.core.lists.pull_memory import from_json as pull_memory_from_json
from sikkerguard.core.lists.sources import LeftOut, ListedSource, VerifiedList
from sikkerguard.core.net.address import parse_prefix, to_text
from sikkerguard.core.net.family import Family
from sikkerguard.core.net.networks import Blocklist, Networks
from sikkerguard.core.net.packed import Ranges
from sikkerguard.core.sikkerapi.endpoint import EndpointMemory
from sikkerguard.core.sikkerapi.endpoint import memory_from_json as endpoint_memory_from_json
from sikkerguard.edges.storage import last_good
from sikkerguard.edges.storage.directory import Directory
from sikkerguard.edges.storage.processes import is_dying, owner_of
from sikkerguard.errors import ConfigError, ListError, SikkerGuardError, as_sentence

if TYPE_CHECKING:
    from pathlib import Path

    from sikkerguard.core.interfaces import Saved

log = logging.getLogger(__name__)

_Json = TypeVar("_Json", dict[str, Any], list[Any])

_LIST, _ALLOW, _PULLS, _LOCK = "list.bin", "allowlist.json", "pulls.json", "service.lock"
_BEFORE, _DAMAGED, _ENDPOINT = "list.bin.1", "list.bin.damaged", "ways.json"
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
        self._files = Directory(directory)
        self._lock: int | None = None
        self._named = self._damaged = False

    def prepare(self) -> None:
        """Take the lock that only one service may hold, where the disk has one to offer. Nothing is written where the
        lock is there already, and a disk that refuses is no reason not to go on: `claim` tells of it.

        Raises:
            ConfigError: another service runs on this directory.
        """
        try:
            self._take_lock(_LOCK_SECONDS)
        except BlockingIOError as error:
            holder = ""
            with suppress(SikkerGuardError):
                if (process := self.service_pid()) is not None:
                    holder = f" (process {process})"
            raise ConfigError([f"another sikkerguard runs on {self.directory}{holder}; stop it first."]) from error
        except OSError as error:
            log.debug("the lock in %s can't be had: %s", self.directory, error)

    def claim(self) -> bool:
        """Have the directory, the lock in it and the number of this process in that, as far as they are not there;
        says whether the directory, or its lock, had to be made again.

        Raises:
            OSError: the disk refuses, or would refuse the next write.
        """
        anew = False
        if self._lock is not None and not self._is_in_place(self._lock):
            self.close()
            anew = True
        if self._lock is None:
            self._take_lock(0.0)
        if not self._named:
            self._files.overwrite(_LOCK, f"{os.getpid()}\n".encode())
            self._named = True
        _check_room(self.directory)
        return anew

    def _take_lock(self, seconds: float) -> None:
        handle = self._files.open_or_make(_LOCK)
        deadline = time.monotonic() + seconds
        try:
            while not _locked(handle):
                # A process that has ended but for a thread in the hands of a hung disk does nothing any more.
                if time.monotonic() > deadline:
                    holder = _holder(handle)
                    if holder is None or not is_dying(holder):
                        raise BlockingIOError(errno.EAGAIN, "another sikkerguard has its lock")
                    os.close(handle)
                    return
                time.sleep(0.02)
        except OSError:
            os.close(handle)
            raise
        self._lock, self._named = handle, False

    def _is_in_place(self, handle: int) -> bool:
        try:
            found = (self.directory / _LOCK).lstat()
        except FileNotFoundError:
            return False
        held = os.fstat(handle)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock, self._named = None, False

    def service_pid(self) -> int | None:
        """The process that holds the lock, or None where no service runs, or none that can be told for certain.

        Raises:
            SikkerGuardError: the directory may not be read by this user.
        """
        try:
            handle = self._files.open(_LOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SikkerGuardError(
                f"{self.directory} can't be read ({error.strerror}); ask as root or as the service's user."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(handle)
        else:
            return None
        finally:
            os.close(handle)

    def has_list(self) -> bool:
        """Whether a list is kept, sound or not."""
        return self._files.has(_LIST) or self._files.has(_BEFORE)

    def save(self, value: Saved) -> None:
        """Keep this in place of what was kept of its kind. Of a list the one before stays beside it, but for one that
        was found to be damaged, which is set aside; settings are written only where they differ."""
        match value:
            case VerifiedList():
                if self._damaged:
                    with suppress(FileNotFoundError):
                        self._files.move(_LIST, _DAMAGED)
                    self._damaged = False
                self._files.replace(_LIST, *_encoded(value), before=_BEFORE)
            case Allowlist():
                rows = [[to_text(entry.family, entry.prefix), entry.reason] for entry in value.entries]
                self._files.replace(_ALLOW, json.dumps(rows).encode())
            case PullMemory():
                self._files.replace(_PULLS, json.dumps(value.as_json()).encode())
            case EndpointMemory():
                self._files.replace(_ENDPOINT, json.dumps(value.as_json()).encode())
            case _:
                if last_good.load(self.directory) != dict(value):
                    self._files.replace(last_good.NAME, json.dumps(value, indent=1, sort_keys=True).encode())

    def load_list(self) -> VerifiedList | None:
        """The last verified list, or the one before it where that is damaged, or None where there is none yet. Nothing
        is written: a damaged file is set aside when the next list is kept.

        Raises:
            ListError: what is there is damaged or can't be read, and nothing of it is used.
        """
        try:
            return self._newest()
        except ListError as error:
            self._damaged = isinstance(error, _DamagedError)
            with suppress(ListError):
                if (found := self._sound(_BEFORE)) is not None:
                    log.error("%s; the one before it is used, and a new one is pulled.", as_sentence(error))
                    return found
            raise ListError(f"{error}; it is not used, and a new one is pulled") from error

    def peek_list(self) -> VerifiedList | None:
        """The same for a reader that is not the service: a damaged file stays where it is.

        Raises:
            ListError: the file can't be read, or is damaged, and so is the one before it.
        """
        try:
            return self._newest()
        except ListError:
            with suppress(ListError):
                if (found := self._sound(_BEFORE)) is not None:
                    return found
            raise

    def _newest(self) -> VerifiedList | None:
        # Where the file system has no links, the newest is without its own name for a moment.
        found = self._sound(_LIST)
        return self._sound(_BEFORE) if found is None else found

    def _sound(self, name: str) -> VerifiedList | None:
        path = self.directory / name
        try:
            content = self._files.read(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ListError(f"the cached list {path} can't be read ({error.strerror})") from error
        try:
            return _decoded(content)
        except (ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"the cached list {path} is damaged ({error})") from error

    def load_allowlist(self) -> Allowlist:
        """What was last allowed and why; empty where nothing readable is kept."""
        rows = self._json(_ALLOW, list)
        try:
            return Allowlist(tuple(AllowEntry(*parse_prefix(str(text)), str(reason)) for text, reason in rows))
        except (ValueError, TypeError):
            return Allowlist()

    def load_pull_memory(self) -> PullMemory:
        """What is known of earlier pulls; empty where nothing readable is kept."""
        return pull_memory_from_json(self._json(_PULLS, dict))

    def load_endpoint(self) -> EndpointMemory:
        """What was last kept of them; empty where nothing readable is."""
        return endpoint_memory_from_json(self._json(_ENDPOINT, dict))

    def _json(self, name: str, kind: type[_Json]) -> _Json:
        try:
            found = json.loads(self._files.read(name))
        except (OSError, ValueError, RecursionError):
            return kind()
        return found if isinstance(found, kind) else kind()


def _check_room(directory: Path) -> None:
    """Raises the `OSError` that the next write would, where the file system itself says so."""
    found = os.statvfs(directory)
    if found.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    # Some of what is free is kept for root; a file system of no size, as some networks have, has no end either.
    free = found.f_bavail if os.geteuid() else found.f_bfree
    if found.f_blocks and not free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: int) -> int | None:
    """The process that the lock's file names, if it is one of the file's owner, or of root. The file is as believable
    as its owner: it must not have others' processes, or a whole group, meet a signal of root's."""
    text = os.pread(handle, 32, 0).partition(b"\n")[0].strip()
    if not text.isdigit() or not (number := int(text)):
        return None
    return number if owner_of(number) in (0, os.fstat(handle).st_uid) else None


def _encoded(verified: VerifiedList) -> list[bytes]:
    """The format: a line with its name and version, a line of JSON that describes what follows, then for each
    source and family the single addresses and the ranges (first address and one byte of prefix length), all packed;
    at the end the SHA-256 of everything before it. In parts, so that no list is there once more to be written."""
    parts: list[bytes] = []
    sources = []
    for source in verified.sources:
        counts = []
        for family in Family:
            networks = source.content.of(family)
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
