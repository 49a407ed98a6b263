"""Child processes that import nothing from the current folder and do not outlive who started them. Standard library alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Runs before anything but the interpreter's own modules is imported: -I keeps the current folder and the environment out.
_BOOT = """
import ctypes, json, os, signal, sys
parent, path, module, function = json.loads(sys.argv.pop(1))
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
except (AttributeError, OSError, TypeError):
    pass
if os.getppid() != parent:
    sys.exit(1)
sys.path[:] = path
import importlib
sys.exit(getattr(importlib.import_module(module), function)())
"""


def isolated(module: str, function: str) -> list[str]:
    """The command of a Python child that calls module.function() and exits with what it returns.

    The child imports from where this process does, the current folder excepted, and is killed when this process dies (Linux), even
    by SIGKILL. PYTHON* variables have no say in it.
    """
    flags = ["-I", *(["-B"] if sys.dont_write_bytecode else [])]
    return [sys.executable, *flags, "-c", _BOOT, json.dumps([os.getpid(), import_path(), module, function])]


def import_path() -> list[str]:
    """sys.path without the current folder and other relative entries, this package's root first."""
    root = str(Path(__file__).resolve().parents[2])
    return [root, *(entry for entry in sys.path if os.path.isabs(entry) and entry != root)]


def without_current_folder() -> None:
    """Take the folder that `python -m` puts first, the current one, off sys.path: packages are installed elsewhere."""
    if sys.path and not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
