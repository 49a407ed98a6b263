"""What a build is asked to do, and whether the memory is there for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.support.gpus import Gpu

MIB = 1 << 20
# The builder holds the weights as read, as parsed and as laid out for the kernels it tries.
COPIES_OF_WEIGHTS = 3
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|not enough memory|requested amount of gpu memory", re.IGNORECASE
)


@dataclass(frozen=True)
class Settings:
    """A build request with its defaults filled in; see `backends.tensorrt.build`."""

    model: Path
    output: Path
    log: Path
    batch: tuple[int, int, int]
    workspace_mib: int | None
    plugin: str
    embed_plugin: bool
    precision: str
    keep_fp32: tuple[str, ...]
    sites: str = "nodes"

    @property
    def tf32(self) -> bool:
        """Whether FP32 products may round their inputs to TF32; parity with the reference needs that they do not."""
        return self.precision == "tf32"


def settings_of(request: dict[str, Any], gpu: Gpu) -> Settings:
    """The request for a GPU; one that shares its memory with the processor gets a quarter of it as scratch memory."""
    low, opt, high = request["batch"]
    workspace = request.get("workspace_mib") or (gpu.memory_mib // 4 if gpu.integrated else None)
    return Settings(
        model=Path(request["model"]), output=Path(request["output"]), log=Path(request["log"]), batch=(low, opt, high),
        workspace_mib=workspace, plugin=request.get("plugin") or "auto", embed_plugin=bool(request.get("embed_plugin")),
        precision=request.get("precision") or "fp32", keep_fp32=tuple(request.get("keep_fp32") or ()),
        sites=request.get("sites") or "nodes",
    )  # fmt: skip


def memory_problem(model_bytes: int, workspace_mib: int | None, free_bytes: int | None) -> str:
    """Why a build cannot fit into the free memory, or ""; what is not known is not held against it."""
    if free_bytes is None:
        return ""
    weights = COPIES_OF_WEIGHTS * model_bytes
    scratch = (workspace_mib or 0) * MIB
    if weights + scratch <= free_bytes:
        return ""
    return f"{weights // MIB} MiB for weights and {scratch // MIB} MiB of scratch memory; {free_bytes // MIB} MiB are free"


def said_out_of_memory(message: str) -> bool:
    """Whether a message of TensorRT says that memory ran out."""
    return bool(_OUT_OF_MEMORY.search(message))
