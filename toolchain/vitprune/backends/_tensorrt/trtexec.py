"""The trtexec command that would build the same engine: something to check ours against, and to report to NVIDIA with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vitprune.backends._tensorrt.support import ALWAYS_TYPED
from vitprune.support.versions import Version


def command_line(
    version: Version,
    *,
    onnx: str,
    engine: str,
    image: str,
    shapes: Sequence[Sequence[int]] | None,
    workspace_mib: int | None,
    plugin: str | None,
    embed_plugin: bool,
    timing_cache: str | None,
    tf32: bool,
) -> str:
    """One shell line.

    Args:
        version: of TensorRT; its options differ.
        onnx, engine: file names.
        image: name of the input. shapes: its smallest, usual and largest shape, None for a fixed one.
        workspace_mib: limit of the scratch memory, None for trtexec's default.
        plugin: library to load, and with `embed_plugin` to put into the engine.
        timing_cache: file name, None for none.
        tf32: FP32 products may round their inputs to TF32.
    """
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}"]
    words += ["--stronglyTyped"] if version < ALWAYS_TYPED else []
    if shapes is not None:
        words += [
            f"--{kind}Shapes={image}:{'x'.join(map(str, shape))}"
            for kind, shape in zip(("min", "opt", "max"), shapes, strict=True)
        ]
    words += [f"--memPoolSize=workspace:{workspace_mib}"] if workspace_mib else []
    if plugin and embed_plugin:
        words += ["--versionCompatible", f"--dynamicPlugins={plugin}", f"--setPluginsToSerialize={plugin}"]
    elif plugin:
        words += [f"--staticPlugins={plugin}"]
    words += [f"--timingCacheFile={timing_cache}"] if timing_cache else []
    words += [] if tf32 else ["--noTF32"]
    return shlex.join([*words, "--profilingVerbosity=detailed"])
