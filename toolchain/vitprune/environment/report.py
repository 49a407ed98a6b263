"""The environment as one document: what the device driver records and what `vitprune doctor` starts from."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from vitprune.environment import packages
from vitprune.environment.commands import find_program, output_of
from vitprune.environment.jetson import power_mode, power_state, read_jetson

PROGRAMS = {"nvcc": "--version", "cmake": "--version", "g++": "--version", "trtexec": "", "ssh": "-V", "rsync": "--version"}
_HEADERS = ("usr/include/x86_64-linux-gnu", "usr/include/aarch64-linux-gnu", "usr/include", "usr/local/tensorrt/include")


def environment(root: Path = Path("/")) -> dict[str, Any]:
    """Everything recorded about a machine.

    Args:
        root: where the system's files lie; packages and the interpreter are always those that run.

    Returns:
        JSON-ready: machine, system, python, packages, providers, programs, tensorrt_headers, gpus, jetson, power_mode, power.
    """
    power = power_state(root)
    jetson = read_jetson(root)
    return {
        "schema_version": 1,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": {name: packages.version(name) for name in packages.PURPOSE},
        "providers": packages.providers(),
        "programs": {name: _program(name, flag, root) for name, flag in PROGRAMS.items()},
        "tensorrt_headers": tensorrt_headers(root),
        "gpus": gpus(root),
        "jetson": jetson.document() if jetson else None,
        "power_mode": power_mode(power),
        "power": power,
    }


def gpus(root: Path = Path("/")) -> list[dict[str, str]]:
    """GPUs that nvidia-smi lists: name, compute capability, driver, memory."""
    names = ("name", "compute_cap", "driver_version", "memory.total")
    text, _ = output_of(find_program("nvidia-smi", root), [f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    return [dict(zip(names, (cell.strip() for cell in line.split(",")), strict=False)) for line in text.splitlines() if line]


def tensorrt_headers(root: Path = Path("/")) -> dict[str, str] | None:
    """Folder and version of NvInfer.h, None where there is none."""
    named = os.environ.get("TENSORRT_INCLUDE_DIR") if root == Path("/") else None
    for folder in [*([Path(named)] if named else []), *(root / place for place in _HEADERS)]:
        if (folder / "NvInfer.h").is_file():
            return {"folder": str(folder), "version": _header_version(folder)}
    return None


def _header_version(folder: Path) -> str:
    try:
        text = (folder / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    found = [
        re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")
    ]
    return ".".join(match[1] for match in found if match) or "unknown"


def _program(name: str, flag: str, root: Path) -> dict[str, str] | None:
    path = find_program(name, root)
    if path is None:
        return None
    text = output_of(path, [flag])[0] if flag and flag != "-V" else ""
    found = re.search(r"release (\d[\w.]*)", text) or re.search(r"(?:version |\) )(\d[\w.]*)", text)
    return {"path": str(path), "version": found[1] if found else ""}
