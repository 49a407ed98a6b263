"""Buffers on the GPU, through torch where it is installed, else cuda-python, else the CUDA runtime library itself."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError
from vitprune.support import registry

_TO_DEVICE, _TO_HOST = 1, 2


class Memory(Protocol):
    """Buffers and one stream. A buffer is an opaque object that lives as long as it is referenced."""

    name: str
    stream: int

    def allocate(self, size: int) -> Any:
        """A buffer of at least `size` bytes (at least one)."""

    def address(self, buffer: Any) -> int:
        """Device address of a buffer."""

    def upload(self, buffer: Any, array: NDArray[Any]) -> None:
        """Copy a dense host array into a buffer, in the stream's order."""

    def download(self, buffer: Any, size: int) -> NDArray[np.uint8]:
        """The first `size` bytes of a buffer, after all work in the stream."""

    def synchronize(self) -> None:
        """Wait for the stream."""


class TorchMemory:
    """Buffers are uint8 torch tensors."""

    name = "torch"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._stream = torch.cuda.Stream()
        self.stream = int(self._stream.cuda_stream)

    def allocate(self, size: int) -> Any:
        """See `Memory`."""
        with self._torch.cuda.stream(self._stream):
            return self._torch.empty(max(size, 1), dtype=self._torch.uint8, device="cuda")

    def address(self, buffer: Any) -> int:
        """See `Memory`."""
        return int(buffer.data_ptr())

    def upload(self, buffer: Any, array: NDArray[Any]) -> None:
        """See `Memory`."""
        host = self._torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        with self._torch.cuda.stream(self._stream):
            buffer[: host.numel()].copy_(host)

    def download(self, buffer: Any, size: int) -> NDArray[np.uint8]:
        """See `Memory`."""
        self.synchronize()
        with self._torch.cuda.stream(self._stream):
            host: NDArray[np.uint8] = buffer[:size].cpu().numpy()
        return host

    def synchronize(self) -> None:
        """See `Memory`."""
        self._stream.synchronize()


class _Allocation:
    """Device memory of the CUDA runtime, freed with the object."""

    def __init__(self, runtime: Any, size: int) -> None:
        self._runtime, self.pointer = runtime, int(_value(runtime.cudaMalloc(max(size, 1))))

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self._runtime.cudaFree(self.pointer)


class RuntimeMemory:
    """Buffers of the CUDA runtime.

    Args:
        runtime: functions with cuda-python's convention, a tuple whose first element is the status; `cuda_runtime()` finds one.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.name = str(getattr(runtime, "name", "cuda-python"))
        self._stream = _value(runtime.cudaStreamCreate())
        self.stream = int(self._stream)

    def allocate(self, size: int) -> Any:
        """See `Memory`."""
        return _Allocation(self._runtime, size)

    def address(self, buffer: Any) -> int:
        """See `Memory`."""
        return int(buffer.pointer)

    def upload(self, buffer: Any, array: NDArray[Any]) -> None:
        """See `Memory`."""
        host = np.ascontiguousarray(array)
        self._copy(buffer.pointer, host.ctypes.data, host.nbytes, _TO_DEVICE)
        self.synchronize()  # the host array may go away

    def download(self, buffer: Any, size: int) -> NDArray[np.uint8]:
        """See `Memory`."""
        host = np.empty(size, np.uint8)
        self._copy(host.ctypes.data, buffer.pointer, size, _TO_HOST)
        self.synchronize()
        return host

    def synchronize(self) -> None:
        """See `Memory`."""
        _value(self._runtime.cudaStreamSynchronize(self._stream))

    def _copy(self, to: int, source: int, size: int, direction: int) -> None:
        kinds = getattr(self._runtime, "cudaMemcpyKind", None)
        _value(self._runtime.cudaMemcpyAsync(to, source, size, kinds(direction) if kinds else direction, self._stream))


class RuntimeLibrary:
    """libcudart through ctypes, with cuda-python's convention; JetPack has the library but not the package."""

    name = "libcudart"

    def __init__(self, library: Any) -> None:
        self._library = library

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        """(status, address)."""
        pointer = ctypes.c_void_p()
        return self._library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)), pointer.value or 0

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        """(status,)."""
        return (self._library.cudaFree(ctypes.c_void_p(pointer)),)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        """(status, stream)."""
        stream = ctypes.c_void_p()
        return self._library.cudaStreamCreate(ctypes.byref(stream)), stream.value or 0

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        """(status,)."""
        return (self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)),)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        """(status,)."""
        arguments = (
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(stream),
        )
        return (self._library.cudaMemcpyAsync(*arguments),)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        """(status, free bytes, all bytes)."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        return self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)), free.value, total.value


def _value(answer: tuple[Any, ...]) -> Any:
    """The value behind a status.

    Raises:
        LoadError: VP636 when the status is not 0.
    """
    if int(answer[0]):
        raise LoadError(
            636,
            "the GPU cannot be used",
            cause=f"the CUDA runtime answers with error {int(answer[0])}",
            next_step="vitprune doctor",
        )
    return answer[1] if len(answer) > 1 else None


def cuda_runtime() -> Any:
    """cuda-python's runtime module, else the runtime library itself; None where there is neither."""
    if (runtime := registry.first_of("cuda.bindings.runtime", "cuda.cudart")) is not None:
        return runtime
    for place in _libraries():
        try:
            return RuntimeLibrary(ctypes.CDLL(place))
        except OSError:
            continue
    return None


def _libraries() -> list[str]:
    found = ctypes.util.find_library("cudart")
    folder = Path("/usr/local/cuda/lib64")
    return [
        *([found] if found else []),
        "libcudart.so",
        *(str(path) for path in sorted(folder.glob("libcudart.so*"), reverse=True)),
    ]


def device_memory() -> Memory:
    """What buffers are made with on this machine.

    Raises:
        LoadError: VP636 when there is no GPU, or nothing to reach it with.
    """
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return TorchMemory()
    runtime = cuda_runtime()
    if runtime is None:
        raise LoadError(
            636,
            "the GPU cannot be used",
            cause="neither torch with CUDA, cuda-python nor libcudart is here",
            next_step="vitprune doctor",
        )
    return RuntimeMemory(runtime)


def free_memory() -> int | None:
    """Free bytes of GPU memory, None where the GPU cannot be asked."""
    runtime = cuda_runtime()
    if runtime is None:
        return None
    status, free, *_ = runtime.cudaMemGetInfo()
    return None if int(status) else int(free)
