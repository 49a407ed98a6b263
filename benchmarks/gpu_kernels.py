"""Kernels of the native library on tensors of torch: against the host twin, timed, captured; with device "cpu" the emulated kernels of the tests.

Parts of benchmarks/gpu.py. `raw` is the C library with the CUDA entry points, `twin` the one with the host functions (the same on a GPU).
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "plugins"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from site_memory import DTYPES, TYPED, Attributes, Sample, Sizes, Tensors, cut, run, site, typed  # noqa: E402

from vitprune.plugins.library import declare  # noqa: E402
from vitprune.plugins.packed import CUDA_SIGNATURE  # noqa: E402

FORMS = ("given", "per_head", "pooled", "sum", "mean", "head_share")
RULES = (
    ("nothing", "inverse_transform"),
    ("nothing", "inverse_transform_official"),
    ("nothing", "threshold"),
    ("weighted", "threshold"),
)
HEADS, HEAD_WIDTH = 6, 64  # of DeiT-S


def stream(device: str) -> int:
    """The stream that torch uses now, 0 without a GPU."""
    return int(torch.cuda.current_stream().cuda_stream) if device == "cuda" else 0


def microseconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call: between CUDA events on a GPU, by the wall clock on the CPU; the first two calls are not counted."""
    taken = []
    for number in range(repeats + 2):
        if device == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            spent = 1e3 * before.elapsed_time(after)
        else:
            began = time.perf_counter()
            call()
            spent = 1e6 * (time.perf_counter() - began)
        if number > 1:
            taken.append(spent)
    return round(statistics.median(taken), 2)


class Site:
    """A call of PruneSite with its tensors on a device, ready to be repeated or captured."""

    def __init__(self, raw: Any, one: dict[str, Any], device: str) -> None:
        """`one`: attributes, sizes and arrays as of `site_memory.site`."""
        self.raw, self.device, self.one = raw, device, one
        sizes, attributes, arrays = one["sizes"], one["attributes"], one["arrays"]
        batch, more = sizes.batch, int(attributes.combine != b"nothing")
        tokens = attributes.prefix_tokens + sizes.patches + more
        room = {
            "rows": (tokens * sizes.width, _bits(arrays["x"])), "rows2": (tokens * max(sizes.width2, 1), _bits(arrays["h"])),
            "index": (sizes.patches, torch.int64), "keep": (sizes.patches, torch.uint8), "patch_out": (sizes.patches + 1, torch.int64),
            "kept": (sizes.patches, torch.int64), "mask": (tokens, torch.int32), "score_kept": (sizes.patches, torch.float32),
            "score_out": (sizes.patches, torch.float32), "bias": (tokens, torch.float32),
        }  # fmt: skip
        if arrays["h"] is None:
            room.pop("rows2")
        self.read = {name: on_device(device, value) for name, value in arrays.items() if value is not None}
        self.held = {name: torch.zeros(batch * size, dtype=kind, device=device) for name, (size, kind) in room.items()}
        self.count, needed = torch.zeros(1, dtype=torch.int64, device=device), ctypes.c_size_t()
        assert raw.vp_prune_site_workspace(ctypes.byref(attributes), ctypes.byref(sizes), ctypes.byref(needed)) == 0
        self.workspace = torch.empty(needed.value, dtype=torch.uint8, device=device)
        kinds = {f"{name}_type": DTYPES.index(arrays[name].dtype) for name in TYPED if arrays[name] is not None}
        self.tensors = Tensors(**{name: tensor.data_ptr() for name, tensor in (self.read | self.held).items()}, **kinds)

    def launch(self) -> None:
        """Enqueue it on the stream of now."""
        status = self.raw.vp_prune_site_cuda(
            ctypes.byref(self.one["attributes"]), ctypes.byref(self.one["sizes"]), ctypes.byref(self.tensors),
            ctypes.c_void_p(self.workspace.data_ptr()), ctypes.c_size_t(len(self.workspace)), ctypes.c_void_p(self.count.data_ptr()),
            ctypes.c_void_p(stream(self.device)),
        )  # fmt: skip
        assert status == 0, f"vp_prune_site_cuda: {status}"

    def written(self) -> tuple[int, dict[str, np.ndarray]]:
        """K and every output, as `site_memory.run` lays them out."""
        k = int(self.count.cpu())
        return k, cut({name: tensor.cpu().numpy() for name, tensor in self.held.items()}, self.one, k)


def _bits(array: np.ndarray | None) -> torch.dtype:
    """What torch holds rows as: of a half type their bits."""
    return torch.float32 if array is None or array.dtype == np.float32 else torch.int16


def on_device(device: str, array: np.ndarray) -> torch.Tensor:
    """A copy of an array; bools as bytes, half types as their bits."""
    values = np.ascontiguousarray(array)
    seen = {np.dtype(np.bool_): np.uint8, DTYPES[1]: np.int16, DTYPES[2]: np.int16}
    return torch.from_numpy(values.view(seen.get(values.dtype, values.dtype))).to(device)


def against_twin(raw: Any, twin: Any, device: str, sizes: Iterable[int]) -> dict[str, Any]:
    """PruneSite's kernels against the host twin, every bit of every output, every second site with tensors in half types.

    Returns:
        cases: how many sites were compared; unequal: those that differ, by form, rule, size and output.
    """
    rng, cases, unequal = np.random.default_rng(0), 0, []
    for form in FORMS:
        for combine, mode in RULES:
            for patches in sizes:
                one = site(rng, form, combine, mode, patches)
                one = typed(rng, one) if cases % 2 else one
                status, count, wanted = run(twin.vp_prune_site_cpu, one)
                assert status == 0, f"vp_prune_site_cpu: {status}"
                call = Site(raw, one, device)
                call.launch()
                k, found = call.written()
                cases += 1
                wrong = [
                    name
                    for name, value in wanted.items()
                    if k != count or value.tobytes() != _as(found[name], value.dtype).tobytes()
                ]
                unequal += [f"{form}, {combine}, {mode}, {patches} patches: {name}" for name in wrong]
    return {"cases": cases, "unequal": unequal}


def _as(found: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """An output in its own type: bits of a half type, or a flag."""
    return found.view(dtype) if dtype in DTYPES[1:] else found.astype(dtype)


def deit_site(batch: int, tokens: int, padded: bool, seed: int = 0) -> dict[str, Any]:
    """A site of DeiT-S as ATS has it: `tokens` with one class token, half of the patches as capacity where it is padded."""
    rng, width, patches = np.random.default_rng(seed), HEADS * HEAD_WIDTH, tokens - 1

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = dict.fromkeys(("score", "theta", "valid", "patch"))
    arrays |= {"x": normal(batch, tokens, width), "h": normal(batch, tokens, width), "query": normal(batch, width)}
    arrays |= {"key": normal(batch, tokens, width), "value": normal(batch, tokens, width)}
    capacity = patches // 2 if padded else 0
    sample = Sample(b"inverse_transform", max(1, patches // 2), 0.0, capacity, 0, padded)
    attributes = Attributes(sample, b"per_head", b"nothing", HEADS, 1, patches)
    return {"attributes": attributes, "sizes": Sizes(batch, patches, width, width, HEAD_WIDTH), "arrays": arrays}


def site_times(raw: Any, device: str, tokens: Iterable[int], batches: Iterable[int], repeats: int) -> list[dict[str, Any]]:
    """Microseconds of one site of DeiT-S by tokens and batch, and what its bytes alone would take is for the reader to compare."""
    rows = []
    for count in tokens:
        for batch in batches:
            call = Site(raw, deit_site(batch, count, padded=True), device)
            read = sum(tensor.numel() * tensor.element_size() for tensor in call.read.values())
            rows.append({"tokens": count, "batch": batch, "us": microseconds(call.launch, device, repeats), "bytes_read": read})
    return rows


def captured(raw: Any, twin: Any, batch: int, tokens: int) -> dict[str, Any]:
    """A padded site in a CUDA graph, replayed with other scores: whether it was captured, and whether every replay has the twin's bits."""
    call = Site(raw, deit_site(batch, tokens, padded=True), "cuda")
    call.launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.launch()
    equal = True
    for seed in range(1, 4):
        other = deit_site(batch, tokens, padded=True, seed=seed)
        for name, tensor in call.read.items():
            tensor.copy_(on_device("cuda", other["arrays"][name]))
        graph.replay()
        torch.cuda.synchronize()
        wanted, found = run(twin.vp_prune_site_cpu, other)[2], call.written()[1]
        equal &= all(value.tobytes() == found[name].astype(value.dtype).tobytes() for name, value in wanted.items())
    return {"captured": True, "replays_equal": equal}


def ragged(batch: int, longest: int, seed: int = 0) -> list[int]:
    """Token counts of a batch whose logarithms spread by 0.2, the longest at most `longest`."""
    spread = np.exp(0.2 * np.random.default_rng(seed).standard_normal(batch))
    return [max(1, int(longest * value / spread.max())) for value in spread]


def packed_attention(
    raw: Any, device: str, counts: list[int], repeats: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Attention of images whose rows lie behind each other, against torch's: padded with a mask, and at equal lengths without one.

    Returns:
        us: times; error: the largest difference from torch's attention image by image; of_equal: rate over that of equal lengths.
    """
    declare(raw, {"vp_packed_attention_cuda": CUDA_SIGNATURE})
    width, total, longest, batch = HEADS * HEAD_WIDTH, sum(counts), max(counts), len(counts)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(total, width, generator=generator).to(device, dtype) for _ in range(3))
    ends = torch.tensor([0, *np.cumsum(counts).tolist()], dtype=torch.int64, device=device)
    output, scale = torch.zeros_like(query), HEAD_WIDTH**-0.5
    kinds = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

    def packed() -> None:
        status = raw.vp_packed_attention_cuda(
            kinds[dtype], query.data_ptr(), key.data_ptr(), value.data_ptr(), None, ends.data_ptr(), ends.data_ptr(), batch, HEADS, HEAD_WIDTH,
            longest, scale, output.data_ptr(), stream(device),
        )  # fmt: skip
        assert status == 0, f"vp_packed_attention_cuda: {status}"

    def heads(rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(*rows.shape[:-1], HEADS, HEAD_WIDTH).transpose(-3, -2)

    padded = [torch.zeros(batch, longest, width, device=device, dtype=dtype) for _ in range(3)]
    mask = torch.zeros(batch, 1, 1, longest, dtype=torch.bool, device=device)
    for image, (start, count) in enumerate(zip(ends.tolist(), counts, strict=False)):
        mask[image, ..., :count] = True
        for into, rows in zip(padded, (query, key, value), strict=True):
            into[image, :count] = rows[start : start + count]
    attend = torch.nn.functional.scaled_dot_product_attention
    full = [heads(one) for one in padded]
    equal = [heads(torch.randn(batch, total // batch, width, device=device, dtype=dtype)) for _ in range(3)]
    packed()
    worst = 0.0
    for start, count in zip(ends.tolist(), counts, strict=False):
        rows = [heads(one[start : start + count])[None] for one in (query, key, value)]
        wanted = attend(*rows)[0].transpose(0, 1).reshape(count, width)
        worst = float(np.maximum(worst, float((wanted - output[start : start + count]).abs().max())))  # NaN stays NaN
    us = {
        "packed": microseconds(packed, device, repeats),
        "padded": microseconds(lambda: attend(*full, attn_mask=mask), device, repeats),
        "equal": microseconds(lambda: attend(*equal), device, repeats),
    }
    return {
        "counts": counts,
        "dtype": str(dtype).removeprefix("torch."),
        "us": us,
        "error": worst,
        "of_equal": round(us["equal"] / us["packed"], 3),
    }
