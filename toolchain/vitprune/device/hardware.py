"""What a target's device is, whether this machine is one, and what it lacks to build an engine of its own."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune import backends
from vitprune.environment.jetson import CHIPS, read_jetson
from vitprune.support.gpus import local_gpus

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
    """Whether this machine is of the target's kind; it may still lack what a build takes, see `lacking`."""
    return not why_no_device(target, root, machine)


def why_no_device(target: Target, root: Path = Path("/"), machine: str = "") -> str:
    """Why the target's device is another machine than this one, whatever is installed here; or "".

    A Jetson is told by its device tree, other devices by their processor.
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
    return ""


def lacking(target: Target) -> str:
    """What this machine lacks to build an engine of a device target: its runtime, a GPU, the right GPU; "" when nothing."""
    name = target.backend.replace("-", "_")
    if name not in backends.names():
        return f"this version has no '{target.backend}' backend"
    why = str(backends.get(name).missing())
    # Only TensorRT is found without its GPU; ONNX Runtime's provider says itself that there is none.
    return "; ".join(filter(None, [why, _gpu_problem(target) if name == "tensorrt" else ""]))


def _gpu_problem(target: Target) -> str:
    gpus = local_gpus()
    if not gpus:
        return "the driver lists no NVIDIA GPU here"
    wanted = [] if target.architectures == "auto" else target.architectures
    if wanted and gpus[0].architecture not in wanted:
        return f"the GPU here, {gpus[0].name}, has SM {gpus[0].architecture}; the target has SM {' or '.join(wanted)}"
    return ""
