"""Memory that a model takes, seen from a process of its own.

On the CPU: what loading and running it adds to the process at its peak. On a GPU: what the driver says that the process holds after its
calls, the CUDA context included (runtimes keep what they once needed, so this is the peak); integrated GPUs have no such figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import backends
from vitprune.benchmarking import subjects
from vitprune.bundle import Bundle, open_bundle
from vitprune.environment.commands import find_program, output_of
from vitprune.support.processes import isolated

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RUNS, LONGEST = 3, 600  # calls; seconds


def peak(bundle: Bundle, where: subjects.Runtime, engine: Path | None, images: NDArray[np.float32]) -> int | None:
    """Bytes of memory at the peak (CPU: beyond what the process took before; GPU: on the device), or None where that cannot be told.

    Args:
        bundle, where: what is run. engine: the dense model's file; None for the bundle's own. images: one batch, float32 [B,C,H,W].
    """
    if not where.gpu and not STATUS.exists():
        return None
    with tempfile.TemporaryDirectory(prefix="vitprune-") as folder:
        np.save(Path(folder) / "images.npy", images)
        request = {
            "bundle": str(bundle.path), "foreign_code": bundle.foreign_code, "target": where.target and where.target.name,
            "threads": where.threads, "engine": engine and str(engine), "images": str(Path(folder) / "images.npy"),
        }  # fmt: skip
        try:
            done = subprocess.run(
                isolated(__name__, "main"), input=json.dumps(request), capture_output=True, text=True, timeout=LONGEST
            )
            found = json.loads(done.stdout.strip().splitlines()[-1])["bytes"]
            return int(found) if done.returncode == 0 and found is not None else None
        except (OSError, ValueError, IndexError, KeyError, subprocess.TimeoutExpired):
            return None


def main() -> int:
    """The child: reads a request on stdin, writes {"bytes": N} to stdout."""
    request = json.loads(sys.stdin.read())
    bundle = open_bundle(request["bundle"], request["foreign_code"])
    where = subjects.runtime(request["target"], subjects.ONNXRUNTIME, request["threads"])
    images, engine = np.load(request["images"]), request["engine"]
    backends.get(where.backend).version()  # loads the runtime: its own memory is not the model's
    before = _kib("VmRSS")
    if not where.gpu and not _forget_the_peak():
        print(json.dumps({"bytes": None}))
        return 0
    session: Any = subjects.pruned(bundle, where) if engine is None else subjects.dense_session(bundle, where, Path(engine))
    for _ in range(RUNS):
        session.run(images)
    print(json.dumps({"bytes": on_gpu(os.getpid()) if where.gpu else 1024 * (_kib("VmHWM") - before)}))
    return 0


def on_gpu(process: int) -> int | None:
    """Bytes that nvidia-smi says a process holds, over all GPUs; None where it does not list it (integrated GPUs, other namespaces)."""
    query = ["--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    text, _ = output_of(find_program("nvidia-smi"), query)
    rows = [line.split(",") for line in text.splitlines()]
    held = [row[1].strip() for row in rows if len(row) == 2 and row[0].strip() == str(process)]
    return 2**20 * sum(map(int, held)) if held and all(map(str.isdigit, held)) else None


def _forget_the_peak() -> bool:
    """Linux starts VmHWM anew at the present size; False where it does not let us."""
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _kib(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(name))
