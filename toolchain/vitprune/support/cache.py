"""Results that are dear to make again, kept between runs: each named by what it was made from and proved by a hash. Standard library alone.

The folder is `VITPRUNE_CACHE`, or `vitprune` below $XDG_CACHE_HOME or ~/.cache; `VITPRUNE_CACHE=off` keeps nothing. An entry appears whole
or not at all. One that is damaged, or that another user wrote, is not used. What was used longest ago goes first.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from vitprune.support import temporary

VARIABLE = "VITPRUNE_CACHE"
MOST = 2 << 30  # bytes of one kind of entries
DIGEST = 32


def folder() -> Path | None:
    """Where everything is kept, None where nothing is."""
    stated = os.environ.get(VARIABLE, "")
    if stated.lower() == "off":
        return None
    if stated:
        return Path(stated).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "vitprune"
    except RuntimeError:  # a user without a home
        return None


def read(kind: str, key: str) -> bytes | None:
    """The entry of a key; None where there is none, or it is not what was written: then it is removed.

    Args:
        kind: of results, a folder name. key: letters and digits that stand for all that the result depends on.
    """
    root = folder()
    if root is None:
        return None
    place = root / kind / key
    try:
        handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as stream:
            if not _ours(os.fstat(handle)):
                return None
            digest, body = stream.read(DIGEST), stream.read()
    except OSError:
        return None
    if digest != _digest(key, body):
        temporary.remove(place)
        return None
    with suppress(OSError):
        os.utime(place)
    return body


def write(kind: str, key: str, body: bytes) -> None:
    """Keep an entry; where it cannot be written, or is larger than half of what is kept, it is not kept."""
    root = folder()
    if root is None or len(body) > MOST // 2:
        return
    with suppress(OSError):
        place = root / kind / key
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _ours(os.stat(place.parent)):
            return
        with temporary.file(place) as new:
            with new.open("wb") as stream:
                stream.write(_digest(key, body))
                stream.write(body)
            os.replace(new, place)
        _shrink(place.parent)


def _ours(found: os.stat_result) -> bool:
    """Whether this user owns it, so that nobody else chose what it says."""
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()


def _digest(key: str, body: bytes) -> bytes:
    """Of an entry under its name: one that was renamed is none."""
    return hashlib.sha256(key.encode() + b"\n" + body).digest()


def _shrink(place: Path) -> None:
    """Remove what was used longest ago until the rest is at most MOST bytes; others may be doing the same."""
    entries = []
    for entry in os.scandir(place):
        if entry.is_file(follow_symlinks=False) and not entry.name.endswith(temporary.SUFFIX):
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                entries.append((found.st_mtime_ns, found.st_size, Path(entry.path)))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= MOST:
            return
        temporary.remove(path)
        total -= size
