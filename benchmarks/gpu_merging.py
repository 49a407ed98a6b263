"""Kernels of the merging sites on tensors of torch: against the host twin, timed, captured; with device "cpu" the emulated ones of the tests.

Parts of benchmarks/gpu.py. `raw` is the C library with the CUDA entry points, `twin` the one with the host functions (the same on a GPU).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "plugins"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu_kernels import HEAD_WIDTH, HEADS, microseconds, on_device, stream  # noqa: E402
from merge_memory import INPUTS, KINDS, Attributes, Sizes, Tensors, cut, merging, run, written  # noqa: E402
from site_memory import Attributes as SiteAttributes  # noqa: E402
from site_memory import Sample  # noqa: E402

NO_ROOM = 20  # the twin's answer where a padded site keeps more rows than there is room for
MOST_BYTES = 1 << 30  # of a site's inputs: products of all rows of a large batch are beyond what a GPU should be asked for


class Merge:
    """A call of a merging site with its tensors on a device, ready to be repeated or captured."""

    def __init__(self, raw: Any, one: dict[str, Any], device: str) -> None:
        """`one`: attributes, sizes and arrays as of `merge_memory.merging`."""
        self.raw, self.device, self.one = raw, device, one
        kinds = {np.float32: torch.float32, np.int64: torch.int64, np.bool_: torch.uint8}
        self.read = {name: on_device(device, value) for name, value in one["arrays"].items() if value is not None}
        self.held = {name: torch.zeros(size, dtype=kinds[kind], device=device) for name, (size, kind) in written(one).items()}
        self.count, needed = torch.zeros(1, dtype=torch.int64, device=device), ctypes.c_size_t()
        told = raw.vp_merge_workspace(ctypes.byref(one["attributes"]), ctypes.byref(one["sizes"]), ctypes.byref(needed))
        assert told == 0, f"vp_merge_workspace: {told}"
        self.workspace = torch.empty(needed.value, dtype=torch.uint8, device=device)
        self.tensors = Tensors(**{name: tensor.data_ptr() for name, tensor in (self.read | self.held).items()})

    def launch(self) -> None:
        """Enqueue it on the stream of now."""
        status = self.raw.vp_merge_cuda(
            ctypes.byref(self.one["attributes"]), ctypes.byref(self.one["sizes"]), ctypes.byref(self.tensors),
            ctypes.c_void_p(self.workspace.data_ptr()), ctypes.c_size_t(len(self.workspace)), ctypes.c_void_p(self.count.data_ptr()),
            ctypes.c_void_p(stream(self.device)),
        )  # fmt: skip
        assert status == 0, f"vp_merge_cuda: {status}"

    def result(self) -> tuple[int, dict[str, np.ndarray]]:
        """K and every output, as `merge_memory.run` lays them out."""
        k = int(self.count.cpu())
        return k, cut({name: tensor.cpu().numpy() for name, tensor in self.held.items()}, self.one, k)


def unequal(wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    """Outputs that are not the twin's, bit for bit."""
    return [name for name, value in wanted.items() if value.tobytes() != found[name].astype(value.dtype).tobytes()]


def against_twin(raw: Any, twin: Any, device: str, sizes: Iterable[int], settings: int = 6) -> dict[str, Any]:
    """The merging sites' kernels against the host twin, every bit of every output, random settings per kind and size.

    Returns:
        cases: how many sites were compared; unequal: those that differ, by kind, size, setting and output.
    """
    rng, cases, wrong = np.random.default_rng(0), 0, []
    for kind in KINDS:
        for patches in sizes:
            for number in range(settings):
                one = merging(rng, kind, patches)
                status, count, wanted = run(twin.vp_merge_cpu, one)
                if status == NO_ROOM:
                    continue
                assert status == 0, f"vp_merge_cpu: {status}"
                call = Merge(raw, one, device)
                call.launch()
                k, found = call.result()
                cases += 1
                differ = unequal(wanted, found) if k == count else ["count"]
                wrong += [f"{kind}, {patches} patches, setting {number}: {name}" for name in differ]
    return {"cases": cases, "unequal": wrong}


def deit_merging(kind: str, batch: int, tokens: int, seed: int = 0) -> dict[str, Any]:
    """A merging site of DeiT-S with one class token, padded: ToMe that halves the patches, Ward merging in two rounds, ATS at half."""
    rng, width, patches = np.random.default_rng(seed), HEADS * HEAD_WIDTH, tokens - 1
    most = max(1, patches // 2) if kind == "sampled" else patches

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays: dict[str, Any] = dict.fromkeys(INPUTS)
    x = normal(batch, tokens, width)
    arrays |= {"x": x, "size": np.ones((batch, tokens), np.float32)}
    if kind == "pair":
        arrays["metric"] = normal(batch, tokens, HEAD_WIDTH)
        even, odd = arrays["metric"][:, 2::2], arrays["metric"][:, 1::2]
        arrays["products"] = np.ascontiguousarray(even @ odd.transpose(0, 2, 1))
    elif kind == "ward":
        arrays["gram"] = np.ascontiguousarray(x[:, 1:] @ x[:, 1:].transpose(0, 2, 1))
        arrays["query"], arrays["key"] = (normal(batch, tokens, width) for _ in range(2))
    else:
        arrays["metric"], arrays["query"] = normal(batch, tokens, width), normal(batch, width)
        arrays["key"], arrays["value"] = (normal(batch, tokens, width) for _ in range(2))
    attributes = Attributes(
        kind.encode(), 1, most, 1, 0, 1, 1e-6, patches // 2, 0, 0.0, 1e6, 2, 0.4, float(tokens), 1 / HEADS,
    )  # fmt: skip
    sample = Sample(b"inverse_transform", max(1, patches // 2), 0.0, most, 0, 1)
    attributes.site = SiteAttributes(sample, b"per_head", b"nothing", HEADS, 1, patches)
    return {"attributes": attributes, "sizes": Sizes(batch, patches, width, HEADS, HEAD_WIDTH, 0), "arrays": arrays}


def merge_times(raw: Any, device: str, tokens: Iterable[int], batches: Iterable[int], repeats: int) -> list[dict[str, Any]]:
    """Microseconds of one merging site of DeiT-S by kind, tokens and batch; sites whose inputs are too large are left out."""
    rows = []
    for kind in KINDS:
        for count in tokens:
            for batch in batches:
                if kind == "ward" and 4 * batch * count**2 > MOST_BYTES:
                    continue
                call = Merge(raw, deit_merging(kind, batch, count), device)
                read = sum(tensor.numel() * tensor.element_size() for tensor in call.read.values())
                us = microseconds(call.launch, device, repeats)
                rows.append({"kind": kind, "tokens": count, "batch": batch, "us": us, "bytes_read": read})
    return rows


def captured(raw: Any, twin: Any, kind: str, batch: int, tokens: int) -> dict[str, Any]:
    """A padded site in a CUDA graph, replayed with other inputs: whether it was captured, and whether every replay has the twin's bits."""
    call = Merge(raw, deit_merging(kind, batch, tokens), "cuda")
    call.launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.launch()
    equal = True
    for seed in range(1, 4):
        other = deit_merging(kind, batch, tokens, seed)
        for name, tensor in call.read.items():
            tensor.copy_(on_device("cuda", other["arrays"][name]))
        graph.replay()
        torch.cuda.synchronize()
        equal &= not unequal(run(twin.vp_merge_cpu, other)[2], call.result()[1])
    return {"captured": True, "replays_equal": equal}
