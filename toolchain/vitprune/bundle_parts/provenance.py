"""provenance.json of a bundle: what made it. Names of files, never where they lay."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vitprune.support.about import VERSION

PROVENANCE = "provenance.json"
SCHEMA = 1
PACKAGES = (
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime-gpu",
    "onnxruntime",
    "onnxscript",
    "pydantic",
    "safetensors",
    "timm",
    "torch",
)


def provenance(folder: Path | None = None, arguments: list[str] | None = None) -> dict[str, Any]:
    """What the environment tells.

    Args:
        folder: whose git commit is recorded, the current one when None. arguments: the command line, this process's when None.

    Returns:
        JSON-ready: schema_version, tool_version, python, machine, packages (name -> version), git (commit, dirty) or None, command.
    """
    return {
        "schema_version": SCHEMA, "tool_version": VERSION, "python": platform.python_version(), "machine": platform.machine(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))}, "git": _git(folder or Path.cwd()),
        "command": [plain(text) for text in (sys.argv if arguments is None else arguments)],
    }  # fmt: skip


def plain(argument: str) -> str:
    """An argument without the folders in it: `--data=/home/me/images` is `--data=images`."""
    key, equals, value = argument.partition("=")
    if os.sep not in argument:
        return argument
    return f"{key}={Path(value).name}" if equals and os.sep in value and os.sep not in key else Path(argument).name


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that a folder lies in, and whether tracked files differ from it; None outside of one."""
    program = shutil.which("git")
    if program is None:
        return None

    def asked(*words: str) -> str | None:
        try:
            done = subprocess.run([program, "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = asked("rev-parse", "HEAD")
    return None if not commit else {"commit": commit, "dirty": bool(asked("status", "--porcelain", "--untracked-files=no"))}
