"""Pure parts of the TensorRT backend."""

from __future__ import annotations

import ctypes
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitprune.backends._tensorrt import memory as gpu_memory
from vitprune.backends._tensorrt.audit import Layer, audit, read_layers
from vitprune.backends._tensorrt.building import memory_problem, said_out_of_memory, settings_of
from vitprune.backends._tensorrt.plugins import obtain
from vitprune.backends._tensorrt.support import engine_mismatch, unsupported
from vitprune.backends._tensorrt.trtexec import command_line
from vitprune.errors import LoadError
from vitprune.support.gpus import Gpu, local_gpus
from vitprune.support.versions import Version


@pytest.mark.parametrize(
    ("version", "fine"),
    [("10.2.9", False), ("10.3", True), ("10.3.0.30", True), ("11.4.1", True), ("11.99", True), ("12.0", False), ("dev", False)],
)
def test_supported_range(version: str, fine: bool) -> None:
    assert (unsupported(version) == "") is fine


@pytest.mark.parametrize(
    ("built", "here", "compatible", "fits"),
    [
        ("10.3.0.30", "10.3.0.31", False, True),
        ("10.3.0.30", "10.3.1", False, False),
        ("10.3.0", "10.16.2", False, False),
        ("10.3.0", "10.16.2", True, True),
        ("10.16.2", "10.3.0", True, False),
        ("10.16.2", "11.4.1", True, False),
    ],
)
def test_which_engine_loads_where(built: str, here: str, compatible: bool, fits: bool) -> None:
    assert (engine_mismatch(built, here, compatible) == "") is fits


def layers(*entries: tuple[str, str, str]) -> str:
    return json.dumps(
        {
            "Layers": [
                {"Name": name, "LayerType": kind, "Inputs": [{"Format/Datatype": type_}], "Outputs": []}
                for name, kind, type_ in entries
            ]
        }
    )


def test_layers_of_both_spellings() -> None:
    """Older inspectors write one sentence, newer ones a word or two fields."""
    text = layers(
        ("a", "gemm", "Row major linear FP32"), ("b", "gemm", "Half"), ("c", "gemm", "BFloat16"), ("d", "kgen", "Int64")
    )
    assert [layer.precision for layer in read_layers(text)] == ["fp32", "fp16", "bf16", "int64"]
    split = {"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"Format": "Linear", "DataType": "Float"}]}]}
    assert read_layers(json.dumps(split))[0].precision == "fp32"


def test_audit_finds_fp32_where_fp16_was_asked_for() -> None:
    text = layers(
        ("blk0/attn/qkv/MatMul", "gemm", "Half"), ("blk1/mlp/fc1/MatMul", "gemm", "Float"), ("blk1/norm", "kgen", "Float")
    )
    found = audit(read_layers(text), "fp16")
    assert found.wrong == ["blk1/mlp/fc1/MatMul (fp32)"]
    assert found.layers == {"fp16": 1, "fp32": 2}
    assert audit(read_layers(text), "fp16", ["mlp/fc1"]).wrong == []


def test_audit_lets_decisions_be_fp32_but_not_the_rest() -> None:
    text = layers(
        ("vitprune/block1/prune/cls_logits MatMul", "gemm", "Float"), ("vitprune/block1/attn/logits MatMul", "gemm", "Half")
    )
    assert audit(read_layers(text), "fp16").wrong == []


def test_audit_finds_fp16_where_fp32_was_asked_for() -> None:
    assert audit(read_layers(layers(("x", "gemm", "Half"))), "fp32").wrong == ["x (fp16)"]


def test_audit_of_quantised_engines_wants_one_quantised_layer() -> None:
    assert audit(read_layers(layers(("x", "gemm", "Half"))), "int8").wrong == ["x (fp16)"]
    assert audit(read_layers(layers(("x", "gemm", "Half"), ("y", "gemm", "Int8"))), "int8").wrong == []


def test_audit_says_when_it_cannot_tell() -> None:
    found = audit(read_layers(json.dumps({"Layers": ["Conv_0", "MatMul_1"]})), "fp16")
    assert (found.wrong, found.possible) == ([], False)
    assert "not possible" in found.document()["precision_audit"]
    with pytest.raises(ValueError, match="Layers"):
        read_layers("{}")


def test_metadata_names_the_onnx_nodes_of_a_fused_layer() -> None:
    entry = {
        "Name": "__myl_fc1",
        "LayerType": "kgen",
        "Metadata": "[ONNX Layer: blk/MatMul]",
        "Inputs": [{"Format/Datatype": "Half"}],
    }
    layer = read_layers(json.dumps({"Layers": [entry]}))[0]
    assert layer == Layer("__myl_fc1 [ONNX Layer: blk/MatMul]", "kgen", "fp16")
    assert layer.heavy


def test_trtexec_of_a_fixed_batch_with_the_plugin_inside() -> None:
    line = command_line(
        Version.parse("11.4.1"), onnx="my model.onnx", engine="e", image="x", shapes=None, workspace_mib=None, plugin="p.so",
        embed_plugin=True, timing_cache=None, tf32=True,
    )  # fmt: skip
    assert line == (
        "trtexec '--onnx=my model.onnx' --saveEngine=e --versionCompatible --dynamicPlugins=p.so --setPluginsToSerialize=p.so "
        "--profilingVerbosity=detailed"
    )


def test_memory_of_a_build() -> None:
    assert memory_problem(100 << 20, 500, None) == ""
    assert memory_problem(100 << 20, 500, 800 << 20) == ""
    assert "300 MiB for weights and 501 MiB of scratch memory; 800 MiB are free" in memory_problem(100 << 20, 501, 800 << 20)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("[localCheckMacros.cpp] Error Code 2: OutOfMemory (Requested size was 537235712 bytes.)", True),
        ("Skipping tactic 0x3e8 due to insufficient memory on requested size of 4398046511104", True),
        ("Could not find any implementation for node {ForeignNode[...]}", False),
    ],
)
def test_messages_about_memory(message: str, says: bool) -> None:
    assert said_out_of_memory(message) is says


def test_scratch_memory_of_discrete_gpus_is_left_to_tensorrt() -> None:
    asked = {"model": "m", "output": "o", "log": "l", "batch": [1, 1, 1]}
    assert settings_of(asked, Gpu("a", "89", 24000, False)).workspace_mib is None
    assert settings_of(asked, Gpu("a", "87", 8000, True)).workspace_mib == 2000
    assert settings_of({**asked, "workspace_mib": 5}, Gpu("a", "87", 8000, True)).workspace_mib == 5


def test_plugin_given_or_left_out(tmp_path: Path) -> None:
    assert obtain("none", "87", print) == (None, "--plugin none")
    assert obtain(str(tmp_path / "x.so"), "87", print)[0] is None
    (tmp_path / "x.so").touch()
    assert obtain(str(tmp_path / "x.so"), "87", print) == (tmp_path / "x.so", "")


class Driver:
    """libcuda with one GPU, called the way ctypes calls it."""

    def __init__(self, count: int = 1, status: int = 0) -> None:
        self.count, self.status = count, status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7, 18: 1}[which]
        return 0


def test_gpus_as_the_driver_tells_them() -> None:
    assert local_gpus(Driver()) == [Gpu("Orin", "87", 8192, True)]
    assert local_gpus(Driver(count=0)) == []
    assert local_gpus(Driver(status=100)) == []


class HostRuntime:
    """The CUDA runtime with host memory, in cuda-python's convention."""

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.freed = 0

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.live[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.live[pointer]
        self.freed += 1
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        return 0, 5

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memmove(to, source, size)
        return (0,)


def test_buffers_of_the_cuda_runtime() -> None:
    runtime = HostRuntime()
    memory = gpu_memory.RuntimeMemory(runtime)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = memory.allocate(array.nbytes)
    memory.upload(buffer, array.T)
    np.testing.assert_array_equal(memory.download(buffer, array.nbytes).view(np.float32), array.T.reshape(-1))
    del buffer
    assert (runtime.live, runtime.freed) == ({}, 1)


def test_runtime_library_itself_without_a_driver() -> None:
    """The real libcudart, through ctypes: it answers with its error instead of crashing."""
    spec = importlib.util.find_spec("nvidia")
    found = [
        path for root in (spec.submodule_search_locations or [] if spec else []) for path in Path(root).rglob("libcudart.so.*")
    ]
    if not found:
        pytest.skip("no libcudart from pip")
    if local_gpus():
        pytest.skip("this machine has a GPU")
    runtime = gpu_memory.RuntimeLibrary(ctypes.CDLL(str(found[0])))
    assert runtime.cudaMemGetInfo()[0] != 0
    assert runtime.cudaMalloc(8)[0] != 0
    with pytest.raises(LoadError, match="VP636"):
        gpu_memory.RuntimeMemory(runtime)


def test_cuda_python_has_what_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name in ("cudaMalloc", "cudaFree", "cudaStreamCreate", "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaMemGetInfo"):
        assert callable(getattr(runtime, name))
    assert int(runtime.cudaMemcpyKind(1)) == int(runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)
    assert int(runtime.cudaMemcpyKind(2)) == int(runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)


def test_no_gpu_is_an_error_of_ours() -> None:
    if local_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LoadError, match="VP636"):
        gpu_memory.device_memory()
    assert gpu_memory.free_memory() is None
