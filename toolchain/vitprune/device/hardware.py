"""What a target's device is, and whether this machine is one."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.environment.jetson import CHIPS, read_jetson

if TYPE_CHECKING:
    from vitprune.targets import Target


def machine_of(target: Target) -> str:
    """The device's processor, as `uname -m` says it. Devices that build their own engines are Jetsons unless the target says."""
    return str(getattr(target, "machine", None) or "aarch64")


def capability_of(target: Target) -> str:
    """The GPU's compute capability as nvcc writes it ("87"), "" when the target does not say."""
    named = str(getattr(target, "compute_capability", None) or getattr(target, "sm", None) or "")
    if named:
        return named.replace(".", "")
    return next((capability for family, capability in CHIPS.values() if family.lower() in target.name.lower()), "")


def is_device(target: Target, root: Path = Path("/"), machine: str = "") -> bool:
    """Whether this machine is a device of the target: the engine can then be built right here."""
    if (machine or platform.machine()) != machine_of(target):
        return False
    jetson = read_jetson(root)
    return jetson is not None and jetson.compute_capability in ("", capability_of(target))
