"""Native code that this user's machine built or was told to load, by hash; all other is foreign. Standard library alone."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vitprune.support.hashing import sha256_of


def folder() -> Path:
    """Where the hashes are kept, one empty file each: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitprune" / "trusted"


def remember(path: Path) -> None:
    """Note a file as one of ours; where nothing can be noted, its use must be allowed anew."""
    with suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True)
        (folder() / sha256_of(path)).touch()


def known(digest: str) -> bool:
    """Whether a file with this sha256 was built here."""
    with suppress(OSError, RuntimeError):
        return len(digest) == 64 and digest.isalnum() and (folder() / digest).is_file()
    return False
