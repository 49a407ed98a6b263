"""What a target's device is, and whether this machine is one."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune import backends
from vitprune.environment.jetson import CHIPS, read_jetson

if TYPE_CHECKING:
    from vitprune.targets import Target

_JETSONS = {capability: family for family, capability in CHIPS.values()}


def machine_of(target: Target) -> str:
    """The device's processor as `uname -m` says it, "" for any."""
    return str(getattr(target, "machine", "aarch64"))


def capability_of(target: Target) -> str:
    """The GPU's compute capability as nvcc writes it ("87"), "" when only the device knows."""
    if hasattr(target, "compute_capability"):
        return str(target.compute_capability)
    return next((capability for capability, family in _JETSONS.items() if family.lower() in target.name.lower()), "")


def is_device(target: Target, root: Path = Path("/"), machine: str = "") -> bool:
    """Whether this machine is a device of the target, so that the engine can be built right here."""
    return not why_no_device(target, root, machine)


def why_no_device(target: Target, root: Path = Path("/"), machine: str = "") -> str:
    """Why this machine is no device of the target, or "".

    A Jetson is told by its device tree. Other devices have the target's processor and runtime; their GPU shows when building.
    """
    wanted, here = machine_of(target), machine or platform.machine()
    if wanted not in ("", here):
        return f"the device is {wanted}, this machine is {here}"
    if wanted == "aarch64" and capability_of(target) in _JETSONS:
        jetson = read_jetson(root)
        if jetson is None:
            return "this machine is no Jetson"
        fits = jetson.compute_capability in ("", capability_of(target))
        return "" if fits else f"this is a Jetson {jetson.family}, the target is SM {capability_of(target)}"
    name = target.backend.replace("-", "_")
    return str(backends.get(name).missing()) if name in backends.names() else f"this version has no '{target.backend}' backend"
