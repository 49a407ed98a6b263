"""A small stand-in for the tensorrt module: the calls our backend makes, on host memory, with ONNX Runtime as the "GPU".

It checks how our code uses the interface (order of calls, allocators, profiles), never what TensorRT does.
"""

from __future__ import annotations

import ctypes
import json
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx


class HostMemory:
    """The backend's `Memory` on the host."""

    name = "host"
    stream = 7

    def __init__(self) -> None:
        self.allocations = 0

    def allocate(self, size: int) -> Any:
        self.allocations += 1
        return np.zeros(max(size, 1), np.uint8)

    def address(self, buffer: Any) -> int:
        return int(buffer.ctypes.data)

    def upload(self, buffer: Any, array: Any) -> None:
        buffer[: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, buffer: Any, size: int) -> Any:
        return buffer[:size].copy()

    def synchronize(self) -> None:
        pass


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    Severity = Severity


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT64 = 8
    BF16 = 7


_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}
_FROM_ONNX = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT64: DataType.INT64,
}


class Config:
    def __init__(self, trt: Any) -> None:
        self.trt, self.pools, self.cleared, self.flags, self.profiles = trt, {}, [], [], []  # type: ignore[var-annotated]
        self.plugins_to_serialize: list[str] = []
        self.profiling_verbosity = self.progress_monitor = None
        self.cache = b""

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool] = size

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        if cache.startswith(b"other device"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"t")


class Profile:
    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        self.shapes = (name, low, opt, high)


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None

    @property
    def _graph(self) -> Any:
        assert self.model is not None
        return self.model.graph

    @property
    def num_inputs(self) -> int:
        return len(self._graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._graph.output)

    def get_input(self, number: int) -> Any:
        value = self._graph.input[number]
        return SimpleNamespace(name=value.name, shape=tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim))

    def get_output(self, number: int) -> Any:
        return SimpleNamespace(name=self._graph.output[number].name)


class Registry:
    """Libraries are text files: JSON lists of [name, version, namespace]."""

    def __init__(self) -> None:
        self.all_creators: list[Any] = []
        self.loaded: list[str] = []

    def load_library(self, path: str) -> Any:
        try:
            creators = json.loads(Path(path).read_text())
        except ValueError:
            return None
        self.loaded.append(path)
        names = ("name", "plugin_version", "plugin_namespace")
        self.all_creators += [SimpleNamespace(**dict(zip(names, creator, strict=True))) for creator in creators]
        return object()


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.allocators = engine, {}, {}  # type: ignore[var-annotated]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        self.shape = shape
        return low[0] <= shape[0] <= high[0]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.broken:
            return False
        name = self.engine.names[0]
        size = int(np.prod(self.shape)) * 4
        x = np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), np.float32).reshape(self.shape)
        outputs = self.engine.session.run(None, {name: x.copy()})
        for output, value in zip(self.engine.session.get_outputs(), outputs, strict=True):
            allocator = self.allocators[output.name]
            ctypes.memmove(
                allocator.reallocate_output_async(output.name, 0, value.nbytes, 256, stream), value.ctypes.data, value.nbytes
            )
            allocator.notify_shape(output.name, value.shape)
        return True


class Engine:
    broken = False

    def __init__(self, model: bytes, profile: Any) -> None:
        self.model, self.profile = model, profile
        self.kinds = {v.name: _FROM_ONNX[v.type.tensor_type.elem_type] for v in _values(model)}
        self.names = list(self.kinds)
        self.num_io_tensors = len(self.names)

    @cached_property
    def session(self) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name == self.names[0] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.kinds[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.profile

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        layers = [
            {
                "Name": node.name,
                "LayerType": node.op_type,
                "Inputs": [{"Name": "x", "Format/Datatype": FakeState.layer_type}],
                "Outputs": [],
            }
            for node in onnx.load_from_string(FakeState.last).graph.node
        ]
        return SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": layers}))


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class FakeState:
    """What tests set and look at."""

    last = b""
    layer_type = "Row major linear FP32"
    refuse_parse = ""
    fail_build = ""
    config: Any = None
    network: Any = None


def _values(model: bytes) -> list[Any]:
    graph = onnx.load_from_string(model).graph
    return [*graph.input, *graph.output]


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> Network:
        FakeState.network = Network(flags)
        return FakeState.network

    def create_builder_config(self) -> Config:
        FakeState.config = Config(None)
        return FakeState.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if FakeState.fail_build:
            self.logger.log(Severity.ERROR, FakeState.fail_build)
            return None
        config.progress_monitor.phase_start("building", None, 2)
        config.progress_monitor.step_complete("building", 0)
        config.progress_monitor.phase_finish("building")
        assert network.model is not None
        FakeState.last = network.model.SerializeToString()
        shapes = config.profiles[0].shapes[1:] if config.profiles else [network.get_input(0).shape] * 3
        return json.dumps([list(map(int, shape)) for shape in shapes]).encode() + b"\n" + FakeState.last


class OnnxParser:
    def __init__(self, network: Network, logger: Any) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, model: bytes) -> bool:
        self.network.model = onnx.load_from_string(model)
        self.num_errors = int(bool(FakeState.refuse_parse))
        return not FakeState.refuse_parse

    def get_error(self, number: int) -> Any:
        return SimpleNamespace(desc=lambda: FakeState.refuse_parse)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        shapes, separator, model = plan.partition(b"\n")
        if not separator:
            self.logger.log(Severity.ERROR, "magicTag does not match")
            return None
        return Engine(model, json.loads(shapes))


class _Base:
    def __init__(self) -> None:
        self.constructed = True


def module(version: str) -> ModuleType:
    """A fresh module object of a version, with an empty registry."""
    fake: Any = ModuleType("tensorrt")
    registry = Registry()
    FakeState.layer_type, FakeState.refuse_parse, FakeState.fail_build = "Row major linear FP32", "", ""
    fake.__version__ = version
    fake.ILogger, fake.DataType, fake.TensorIOMode = ILogger, DataType, TensorIOMode
    fake.IProgressMonitor = fake.IOutputAllocator = _Base
    fake.Builder, fake.OnnxParser, fake.Runtime = Builder, OnnxParser, Runtime
    fake.nptype = lambda kind: _NUMPY[kind]
    fake.get_plugin_registry = lambda: registry
    fake.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    fake.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    fake.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    fake.BuilderFlag = SimpleNamespace(TF32="tf32", VERSION_COMPATIBLE="compatible")
    fake.LayerInformationFormat = SimpleNamespace(JSON="json")
    return fake  # type: ignore[no-any-return]
