"""Where the sources of the native library are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vitprune.plugins.errors import PluginError

_SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".cmake", ".in", ".txt"}


def find_sources() -> Path:
    """Folder with the CMakeLists.txt of the library: inside the installed package, or of the checkout.

    Raises:
        PluginError: VP603 when neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_plugins", package.parent.parent / "plugins"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise PluginError("VP603", "The plugin sources are missing.", "Reinstall vitprune or work in a full checkout.")


def source_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of every source file below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file()):
        name = file.relative_to(folder).as_posix().encode()
        content = file.read_bytes()
        digest.update(b"%d %s %d " % (len(name), name, len(content)))
        digest.update(content)
    return digest.hexdigest()
