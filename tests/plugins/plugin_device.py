"""Calls of the CUDA entry points with memory of any kind: numpy arrays for the emulated kernels, torch tensors for real ones."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vitprune.ops.token_sample import Attributes
from vitprune.plugins.library import DTYPES, ScoreAttributes, sample_attributes, score_attributes_pointer


class Memory(Protocol):
    """Where tensors of a call live."""

    def put(self, array: np.ndarray) -> Any:
        """A copy of an array."""

    def pointer(self, tensor: Any) -> int:
        """Address of a tensor."""

    def get(self, tensor: Any) -> np.ndarray:
        """The content, once the work is done."""


class HostMemory:
    """Plain arrays."""

    def put(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def pointer(self, tensor: np.ndarray) -> int:
        return tensor.ctypes.data

    def get(self, tensor: np.ndarray) -> np.ndarray:
        return tensor


def _garbage(size: int, dtype: type) -> np.ndarray:
    """Output and workspace memory that holds nothing useful."""
    return np.full(size * np.dtype(dtype).itemsize, 0xA5, np.uint8).view(dtype)


def _workspace(function: Callable[..., int], *sizes: int) -> np.ndarray:
    needed = ctypes.c_size_t()
    assert function(*sizes, ctypes.byref(needed)) == 0
    return _garbage(needed.value, np.uint8)


class _Outputs:
    def __init__(self, raw: ctypes.CDLL, memory: Memory, shape: tuple[int, int], attributes: Attributes) -> None:
        slots = ctypes.c_int64()
        assert raw.vp_token_sample_max_count(sample_attributes(attributes), shape[1], ctypes.byref(slots)) == 0
        total = shape[0] * slots.value
        self.memory, self.batch = memory, shape[0]
        self.tensors = [
            memory.put(_garbage(total, np.int64)),
            memory.put(_garbage(total, np.uint8)),
            memory.put(_garbage(1, np.int64)),
        ]

    def pointers(self) -> list[int]:
        return [self.memory.pointer(tensor) for tensor in self.tensors]

    def result(self) -> tuple[np.ndarray, np.ndarray, int]:
        index, keep, count = (self.memory.get(tensor) for tensor in self.tensors)
        slots = int(count[0])
        assert set(keep[: self.batch * slots].tolist()) <= {0, 1}
        shape = (self.batch, slots)
        return (
            index[: self.batch * slots].reshape(shape),
            keep[: self.batch * slots].astype(bool).reshape(shape),
            slots,
        )


def sample(
    raw: ctypes.CDLL, memory: Memory, score: np.ndarray, valid: np.ndarray, attributes: Attributes
) -> tuple[np.ndarray, np.ndarray, int]:
    """TokenSample through vp_token_sample_cuda on the default stream."""
    workspace = memory.put(_workspace(raw.vp_token_sample_workspace, *score.shape))
    inputs = [memory.put(score), memory.put(valid.view(np.uint8))]
    outputs = _Outputs(raw, memory, score.shape, attributes)
    status = raw.vp_token_sample_cuda(
        sample_attributes(attributes),
        *[memory.pointer(tensor) for tensor in inputs],
        *score.shape,
        memory.pointer(workspace),
        len(workspace),
        *outputs.pointers(),
        None,
    )
    assert status == 0, raw.vp_status_string(status)
    return outputs.result()


def score_sample(
    raw: ctypes.CDLL,
    memory: Memory,
    tensors: list[np.ndarray],
    valid: np.ndarray,
    score_attributes: ScoreAttributes,
    attributes: Attributes,
    dtype: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """TokenScoreSample through vp_token_score_sample_cuda; `tensors` are query, key and value, bfloat16 as uint16."""
    batch, patches = valid.shape
    heads, width = tensors[0].shape[1:]
    prefix = score_attributes.prefix_tokens
    workspace = memory.put(_workspace(raw.vp_token_score_sample_workspace, batch, heads, patches, prefix))
    inputs = [memory.put(array) for array in (*tensors, valid.view(np.uint8))]
    score = memory.put(_garbage(batch * patches, np.float32))
    outputs = _Outputs(raw, memory, valid.shape, attributes)
    status = raw.vp_token_score_sample_cuda(
        score_attributes_pointer(score_attributes),
        sample_attributes(attributes),
        DTYPES.index(dtype),
        *[memory.pointer(tensor) for tensor in inputs],
        *(batch, heads, patches, width),
        memory.pointer(workspace),
        len(workspace),
        memory.pointer(score),
        *outputs.pointers(),
        None,
    )
    assert status == 0, raw.vp_status_string(status)
    return (memory.get(score).reshape(valid.shape), *outputs.result())
