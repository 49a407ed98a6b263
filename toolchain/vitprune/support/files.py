"""Reading files that somebody else wrote: regular files of a sensible size only, so that nothing waits or swells."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vitprune.support import temporary
from vitprune.support.limits import limits, require


def require_regular(path: Path) -> os.stat_result:
    """Refuse pipes, sockets, devices and folders, which would wait for ever or never end.

    Raises:
        OSError: also when there is nothing.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"'{path}' is {_kind(found.st_mode)}, not a file")
    return found


def read_text(path: Path) -> str:
    """The text of a recipe, target or manifest.

    Raises:
        OSError: not a regular file, too large, unreadable. UnicodeDecodeError: not UTF-8.
    """
    require(f"'{path.name}'", require_regular(path).st_size, limits.text)
    return path.read_text(encoding="utf-8")


def plain_name(name: object) -> bool:
    """Whether a name is that of a file in a folder and of nothing else: no separators, no dots at its start, no control characters."""
    return (
        isinstance(name, str) and 0 < len(name.encode("utf-8", "replace")) <= 255 and name.isprintable()
        and not name.startswith(".") and not set(name) & set('/\\:*?"<>|')
    )  # fmt: skip


def inside(name: object) -> bool:
    """Whether a relative name with / stays below the folder it is read in."""
    return isinstance(name, str) and bool(name) and all(plain_name(part) for part in name.split("/"))


def linked(root: Path, name: str) -> bool:
    """Whether a file below `root`, or a folder on the way to it, is a symbolic link."""
    here = root
    for part in name.split("/"):
        here = here / part
        if here.is_symlink():
            return True
    return False


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's contents in one step.

    Raises:
        OSError: nothing has changed.
    """
    with temporary.file(path) as new:
        with new.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
