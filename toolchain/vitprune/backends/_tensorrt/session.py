"""Runs engines: images in, logits and kept patches out; outputs of data-dependent size go through an allocator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune.backends import Result, result
from vitprune.backends._engines import BuiltEngine, find, given
from vitprune.backends._inputs import images
from vitprune.backends._native import library_of, require_ours
from vitprune.backends._tensorrt import plugins
from vitprune.backends._tensorrt.memory import Memory, device_memory
from vitprune.backends._tensorrt.support import engine_mismatch
from vitprune.errors import LoadError
from vitprune.support.answers import heads_and_lists
from vitprune.support.gpus import local_gpus

if TYPE_CHECKING:
    import tensorrt as trt

    from vitprune.bundle import Bundle


def check_facts(engine: BuiltEngine, version: str, architecture: str) -> None:
    """Refuse an engine of another TensorRT version or GPU before TensorRT sees it.

    Args:
        engine: with its facts; nothing is checked that they do not tell.
        version: of TensorRT here.
        architecture: compute capability of the GPU here.

    Raises:
        LoadError: VP632 another TensorRT, VP633 another compute capability.
    """
    facts, target = engine.facts, engine.document.get("target", "TARGET")
    again = f"vitprune build-engine BUNDLE --target {target} --force, on this device (model.onnx is in the bundle)"
    built = str(facts.get("tensorrt", version))
    if why := engine_mismatch(built, version, bool(facts.get("version_compatible"))):
        raise LoadError(632, f"the engine '{engine.path.name}' needs another TensorRT", cause=why, next_step=again)
    wanted = str(facts.get("architecture", architecture))
    if wanted != architecture:
        raise LoadError(
            633,
            f"the engine '{engine.path.name}' is for another GPU",
            cause=f"it was built for SM {wanted}, this GPU is SM {architecture}; engines cannot be moved between them",
            next_step=again,
        )


class Session:
    """An engine on the GPU.

    Args:
        bundle: the bundle, or what stands for one on a device.
        engine: engine file; the bundle's own when None. An engine.json beside it is obeyed, and may be missing.
        target: which target's engine, where the bundle has several.

    Raises:
        LoadError: VP630-VP633, VP638, VP639 from the engine's facts; VP634 plugin not found; VP635 TensorRT refuses the engine;
            VP636 no GPU.
    """

    def __init__(self, bundle: Bundle, engine: Path | None = None, target: str | None = None) -> None:
        import tensorrt as trt

        built = find(bundle, "tensorrt", target) if engine is None else given(engine)
        gpus = local_gpus()
        if not gpus:
            raise LoadError(636, "there is no GPU here", cause="the NVIDIA driver lists none", next_step="validate on the device")
        check_facts(built, str(trt.__version__), gpus[0].architecture)
        self._trt = trt
        self._shape = tuple(bundle.manifest.preprocessing["input_size"])
        self._log: list[str] = []
        logger = _logger(self._log)
        _load_plugin(trt.get_plugin_registry(), built)
        self._runtime = trt.Runtime(logger)
        if built.facts.get("version_compatible"):
            require_ours(built, built.path, plugins.digest(built.path) if built.path.is_file() else "")
            self._runtime.engine_host_code_allowed = True
        loaded = self._runtime.deserialize_cuda_engine(_bytes(built.path))
        context = loaded.create_execution_context() if loaded is not None else None
        if loaded is None or context is None:
            raise self._refused(built)
        self._engine, self._context = loaded, context
        self._memory: Memory = device_memory()
        self._buffers: dict[str, Any] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._input = inputs[0]
        heads, lists = heads_and_lists(str(entry["name"]) for entry in bundle.manifest.io["outputs"])
        self._outputs = [name for name in (*heads, *lists) if name in names]
        self._heads, self._features = [name for name in heads if name in names], bundle.recipe.output.features
        self._allocators = {name: _allocator(self._memory) for name in names if name not in inputs}
        low, _, high = self._engine.get_tensor_profile_shape(self._input, 0)
        self._smallest, self._largest = int(low[0]), int(high[0])
        self.facts = {"engine_sha256": built.document.get("engine_sha256"), "memory": self._memory.name, "gpu": gpus[0].name}

    def run(self, x: Any) -> Result:
        """Run images float32 [B,C,H,W], in pieces that fit the engine's profile; kept is [] for engines that give logits alone.

        Raises:
            LoadError: VP603 on a wrong input shape, VP637 when the engine fails.
        """
        array = images(x, self._shape)
        parts = [self._piece(array[start : start + self._largest]) for start in range(0, len(array), self._largest)]
        count = len(self._heads)
        answers = [np.concatenate([part[number].astype(np.float32) for part in parts]) for number in range(count)]
        kept = [_stack([part[number] for part in parts]) for number in range(count, len(self._outputs))]
        return result(answers, kept, self._heads, self._features)

    def _piece(self, array: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Outputs of one call, without the images that were added to reach the smallest batch."""
        count = len(array)
        short = self._smallest - count
        fed = np.concatenate([array, np.repeat(array[-1:], short, axis=0)]) if short > 0 else array
        fed = np.ascontiguousarray(fed, dtype=self._trt.nptype(self._engine.get_tensor_dtype(self._input)))
        context, memory = self._context, self._memory
        if not context.set_input_shape(self._input, tuple(fed.shape)):
            raise self._failed(f"it does not take the shape {fed.shape}")
        image = self._buffers.get("image")
        if image is None or image[1] < fed.nbytes:
            self._buffers["image"] = image = (memory.allocate(fed.nbytes), fed.nbytes)
        memory.upload(image[0], fed)
        context.set_tensor_address(self._input, memory.address(image[0]))
        for name, allocator in self._allocators.items():
            context.set_output_allocator(name, allocator)
        if not context.execute_async_v3(memory.stream):
            raise self._failed("it stopped with an error")
        memory.synchronize()
        return [self._read(name)[:count] for name in self._outputs]

    def _read(self, name: str) -> NDArray[Any]:
        allocator, kind = self._allocators[name], self._engine.get_tensor_dtype(name)
        dtype = np.dtype(np.uint16 if kind == self._trt.DataType.BF16 else self._trt.nptype(kind))
        raw = self._memory.download(allocator.buffer, math.prod(allocator.shape) * dtype.itemsize)
        array = raw.view(dtype).reshape(allocator.shape)
        return (array.astype(np.uint32) << 16).view(np.float32) if kind == self._trt.DataType.BF16 else array

    def _refused(self, built: BuiltEngine) -> LoadError:
        reason = self._log[-1] if self._log else "it gave no reason"
        return LoadError(
            635,
            f"TensorRT refuses the engine '{built.path.name}'",
            cause=reason,
            next_step="build it again on this device with --force",
        )

    def _failed(self, why: str) -> LoadError:
        reason = f"; TensorRT: {self._log[-1]}" if self._log else ""
        return LoadError(637, "the engine failed", cause=f"{why}{reason}", next_step="build it again, or report the lines above")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoadError(
            638, f"'{path}' cannot be read", cause=error.strerror or str(error), next_step="build the engine again"
        ) from error


def _load_plugin(registry: trt.IPluginRegistry, built: BuiltEngine) -> None:
    """Load the library that an engine needs.

    Raises:
        LoadError: VP634, VP646.
    """
    if (file := library_of(built)) is not None:
        plugins.register(registry, file, LoadError, 634)


def _logger(messages: list[str]) -> trt.ILogger:
    """A logger that keeps errors."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(msg)

    return Logger()


def _allocator(memory: Memory) -> Any:
    """An output allocator with `buffer` and `shape`: TensorRT tells sizes only while it runs."""
    import tensorrt as trt

    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.buffer: Any = None
            self.size = -1
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, tensor_name: str, memory_address: int, size: int, alignment: int) -> int:
            """Address of at least `size` bytes; a larger buffer of an earlier call is used again."""
            if size > self.size:
                self.buffer, self.size = memory.allocate(size), size
            return memory.address(self.buffer)

        def reallocate_output_async(self, tensor_name: str, memory_address: int, size: int, alignment: int, stream: int) -> int:
            """The same; TensorRT 10 and later ask here."""
            return self.reallocate_output(tensor_name, memory_address, size, alignment)

        def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:
            """The shape that was written."""
            self.shape = tuple(int(shape[axis]) for axis in range(len(shape)))

    return Allocator()


def _stack(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate [B,K] lists of different K, padding with -1."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1) for part in parts])
