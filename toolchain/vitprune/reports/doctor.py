"""What this machine can do with vitprune: the environment, the targets that can be built, the native library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.environment.report import environment


def examine(root: Path = Path("/")) -> dict[str, Any]:
    """Everything `vitprune doctor` shows.

    Args:
        root: where the system's files lie.

    Returns:
        JSON-ready: the document of `environment`, "targets" and "plugin".
    """
    return {**environment(root), "targets": target_states(root), "plugin": plugin_state()}


def target_states(root: Path = Path("/")) -> list[dict[str, Any]]:
    """For every shipped target whether its engine can be built here: {"name", "engine", "package", "reason"}."""
    from vitprune import targets
    from vitprune.support.resources import shipped_targets

    return [_state(targets.load(name), root) for name in shipped_targets()]


def _state(target: Any, root: Path) -> dict[str, Any]:
    from vitprune.device.build import wants_package
    from vitprune.device.hardware import lacking, why_no_device
    from vitprune.engines.requirements import require_backend
    from vitprune.errors import TargetError

    if wants_package(target, root):
        reason = f"{why_no_device(target, root)}; a device package can be made here, or --remote user@host"
        return {"name": target.name, "engine": False, "package": True, "reason": reason}
    if target.builds_on == "device" and (why := lacking(target)):
        reason = f"{why}; --remote user@host, or --package for a package to be run elsewhere"
        return {"name": target.name, "engine": False, "package": True, "reason": reason}
    try:
        require_backend(target)
    except TargetError as error:
        return {"name": target.name, "engine": False, "package": False, "reason": f"{error.code}: {error.cause}"}
    return {"name": target.name, "engine": True, "package": False, "reason": ""}


def plugin_state() -> dict[str, Any]:
    """Libraries that were built before, and what a build would find: {"built": [...], "tools": {...} or None, "reason"}."""
    from vitprune.plugins import PluginError, cache_folder
    from vitprune.plugins.toolchain import find_toolchain

    built = [str(path) for path in sorted(cache_folder().glob("*/libvitprune_plugin.so"))]
    try:
        tools = find_toolchain()
    except PluginError as error:
        return {"built": built, "tools": None, "reason": f"{error.code}: {error.cause}"}
    found = {
        "cmake": tools.cmake, "compiler": tools.compiler, "nvcc": tools.nvcc, "tensorrt_headers": tools.tensorrt_include,
        "onnxruntime_headers": tools.ort_include,
    }  # fmt: skip
    return {"built": built, "tools": {name: str(path) if path else None for name, path in found.items()}, "reason": ""}
