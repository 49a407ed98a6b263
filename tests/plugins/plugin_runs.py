"""A plugin of named tensors, run by the program that acts as TensorRT with emulated kernels (plugins/tests/plugin_runner.cpp)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

TYPES = {np.dtype(np.float32): 0, np.dtype(np.int32): 3, np.dtype(np.bool_): 4, np.dtype(np.int64): 8}  # nvinfer1::DataType


def run_plugin(
    runner: tuple[Path, Path],
    folder: Path,
    operator: str,
    fields: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, DTypeLike],
) -> dict[str, np.ndarray]:
    """What a plugin wrote, by role, flat and as long as TensorRT would allocate it. Fails where it wrote beyond that.

    Args:
        runner: the program, and the library with emulated kernels. folder: for files. operator: its name.
        fields: of the node, without `inputs` and `outputs`. inputs: by role, in the operator's order. outputs: types by role, likewise.
    """
    lines = []
    for number, array in enumerate(inputs.values()):
        (folder / f"in{number}").write_bytes(np.ascontiguousarray(array).tobytes())
        lines.append(f"{TYPES[array.dtype]} {array.ndim} {' '.join(map(str, array.shape))}")
    (folder / "inputs.txt").write_text("\n".join(lines) + "\n")
    program, library = runner
    words = words_of({"inputs": ",".join(inputs), "outputs": ",".join(outputs)} | dict(fields))
    command = [str(program), str(library), operator, str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    held = {role: np.fromfile(folder / f"out{number}", dtype) for number, (role, dtype) in enumerate(outputs.items())}
    allocated = dict(zip(outputs, json.loads(done.stdout)["shapes"], strict=True))
    assert {role: value.size for role, value in held.items()} == {role: np.prod(s, dtype=int) for role, s in allocated.items()}
    return held


def words_of(fields: Mapping[str, Any]) -> Sequence[str]:
    """Fields as the programs read them: name=value."""
    return [f"{name}={value}" for name, value in fields.items()]
