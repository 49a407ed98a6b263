"""Dense against pruned end to end on a GPU, on whichever runtime is installed; parts of benchmarks/gpu.py."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402
from gpu_kernels import microseconds  # noqa: E402
from speed import uneven  # noqa: E402

from vitprune.data import images  # noqa: E402
from vitprune.errors import first_line  # noqa: E402
from vitprune.exporting.dense import dense_onnx  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.tensorrt import inlined  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402
from vitprune.vit.loading import load  # noqa: E402

Launch = Callable[[], Any]  # enqueues one run; answers stay on the device
CASES: dict[str, tuple[str, ...]] = {
    "topk": (), "ats": ("graph.shapes=padded",), "tome": (), "ats, shapes by data": ("graph.shapes=dynamic",),
}  # fmt: skip


@cache
def model(name: str = "deit_small_patch16_224") -> Any:
    """A timm model with random weights and uneven attention."""
    loaded = load(Recipe.load("topk_deit_small").model.model_copy(update={"name": name}), pretrained=False, seed=0)
    uneven(loaded.module)
    return loaded


@cache
def _exported(batch: int) -> onnx.ModelProto:
    return dense_onnx(model().module, model().image_shape, Recipe.load("topk_deit_small", [f'graph.batch="{batch}"']))


def graphs(case: str, batch: int, mode: str, loaded: Any = None) -> tuple[dict[str, onnx.ModelProto], np.ndarray]:
    """Dense and pruned graph of a case for a fixed batch and a number type, functions written out, logits alone; and images."""
    recipe = Recipe.load(f"{case.split(',')[0]}_deit_small", [f'graph.batch="{batch}"', f"precision.mode={mode}", *CASES[case]])
    exported = dense_onnx(loaded.module, loaded.image_shape, recipe) if loaded else _exported(batch)
    made = {"dense": surgery.dense(exported, recipe), "pruned": inlined(surgery.rewrite(exported, recipe)[0])}
    for graph in made.values():
        del graph.graph.output[1:]
    return made, images.synthetic(batch, (loaded or model()).preprocessing).pixels


def onnxruntime_run(graph: onnx.ModelProto, x: np.ndarray, captured: bool, device: str = "cuda") -> Launch:
    """ONNX Runtime with its tensors bound on the device; `captured`: its own CUDA graph.

    Raises:
        RuntimeError: it has no CUDA provider, or fell back to the CPU.
    """
    import onnxruntime as ort

    provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
    if provider not in ort.get_available_providers():
        raise RuntimeError("this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    asked = [(provider, {"enable_cuda_graph": "1"})] if captured else [provider]
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=asked)
    if provider not in session.get_providers():
        raise RuntimeError("ONNX Runtime could not start its CUDA provider and fell back to the CPU")
    binding = session.io_binding()
    given = ort.OrtValue.ortvalue_from_numpy(x.astype(_input_type(graph)), device, 0)
    answer = ort.OrtValue.ortvalue_from_shape_and_type([len(x), _classes(graph)], _output_type(graph), device, 0)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, given)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, answer)

    def launch() -> np.ndarray:
        session.run_with_iobinding(binding)
        return answer.numpy()

    return launch


def engine_run(package: str, graph: onnx.ModelProto, x: np.ndarray, captured: bool) -> Launch:
    """An engine of TensorRT ("tensorrt") or TensorRT-RTX ("tensorrt_rtx"), on torch's stream; `captured`: in a CUDA graph of torch.

    Raises:
        RuntimeError: no engine, or it stopped. ValueError: nothing can be captured where shapes follow the data.
    """
    trt = importlib.import_module(package)
    plan = build(trt, graph)
    engine = trt.Runtime(_quiet(trt)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    given = torch.from_numpy(x.astype(_input_type(graph))).cuda()
    answer = torch.empty(len(x), _classes(graph), dtype=getattr(torch, np.dtype(_output_type(graph)).name), device="cuda")
    for name, tensor in zip(names, (given, answer), strict=True):
        context.set_tensor_address(name, tensor.data_ptr())

    def enqueue() -> None:
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("the engine stopped with an error")

    for _ in range(3):
        enqueue()
    torch.cuda.synchronize()
    if not captured:
        return enqueue
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        enqueue()
    held = (engine, context, given, answer)  # a replay reads and writes them
    return lambda: (recorded.replay(), held)


def build(trt: Any, graph: onnx.ModelProto) -> Any:
    """A strongly typed engine of a graph with fixed shapes.

    Raises:
        RuntimeError: what the parser or the builder says.
    """
    logger = _quiet(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from TensorRT 11 on every network is
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        raise RuntimeError(f"the parser refuses the graph: {parser.get_error(0).desc()}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError("the builder found no engine")
    return plan


@cache
def _quiet(trt: Any) -> Any:
    return trt.Logger(trt.Logger.ERROR)


def torch_run(module: Any, x: np.ndarray, captured: bool, device: str, mode: str) -> Launch:
    """The dense timm model or our reference in eager PyTorch."""
    kind = {"fp32": torch.float32, "fp16": torch.float16}[mode]
    module = module.to(device, kind).eval()
    given = torch.from_numpy(x).to(device, kind)

    def enqueue() -> Any:
        with torch.inference_mode():
            return module(given)

    if not captured:
        return enqueue
    for _ in range(3):
        enqueue()
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        enqueue()
    return recorded.replay


def _input_type(graph: onnx.ModelProto) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(graph.graph.input[0].type.tensor_type.elem_type)


def _output_type(graph: onnx.ModelProto) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(graph.graph.output[0].type.tensor_type.elem_type)


def _classes(graph: onnx.ModelProto) -> int:
    return int(graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def missing(runtime: str, device: str = "cuda") -> str:
    """Why a runtime cannot be used here, or ""."""
    package = {"torch": "torch", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}[runtime]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if runtime == "onnxruntime" and device == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)"
    return ""


def against_dense(
    runtime: str, case: str, batch: int, mode: str, device: str, repeats: int, loaded: Any = None
) -> list[dict[str, Any]]:
    """Rows of a runtime, CUDA graphs off and on: milliseconds of both models, their ratio, memory that each takes on the GPU.

    Where a graph cannot be run or captured the row has "failed" with the reason.
    """
    made, x = graphs(case, batch, mode, loaded)
    rows = []
    for captured in (False, True) if device == "cuda" else (False,):
        row: dict[str, Any] = {"runtime": runtime, "case": case, "batch": batch, "mode": mode, "cuda_graph": captured}
        ms, memory = {}, {}
        try:
            for label, graph in made.items():
                free = _free(device)
                if runtime == "onnxruntime":
                    launch = onnxruntime_run(graph, x, captured, device)
                else:
                    launch = engine_run(runtime, graph, x, captured)
                own_stream = runtime == "onnxruntime"  # and a call that ends when it is done: the wall clock tells
                ms[label] = round(microseconds(launch, "cpu" if own_stream else device, repeats) / 1e3, 4)
                memory[label] = (free - _free(device)) >> 20
                del launch
            row |= {"ms": ms, "ratio": round(ms["pruned"] / ms["dense"], 4), "memory_mib": memory}
        except Exception as error:  # a runtime's own words are the result
            row["failed"] = f"{type(error).__name__}: {first_line(error)[:200]}"
        rows.append(row)
    return rows


def eager(case: str, batch: int, mode: str, device: str, repeats: int, loaded: Any = None) -> list[dict[str, Any]]:
    """The same in eager PyTorch: timm's model against our reference."""
    import copy

    import vitprune

    loaded = loaded or model()
    recipe = Recipe.load(f"{case.split(',')[0]}_deit_small", list(CASES[case]))
    x = images.synthetic(batch, loaded.preprocessing).pixels
    rows = []
    for captured in (False, True) if device == "cuda" else (False,):
        row: dict[str, Any] = {"runtime": "torch", "case": case, "batch": batch, "mode": mode, "cuda_graph": captured}
        try:
            modules = {"dense": copy.deepcopy(loaded.module), "pruned": vitprune.reference(copy.deepcopy(loaded.module), recipe)}
            ms, memory = {}, {}
            for label, module in modules.items():
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                launch = torch_run(module, x, captured, device, mode)
                ms[label] = round(microseconds(launch, device, repeats) / 1e3, 4)
                memory[label] = torch.cuda.max_memory_allocated() >> 20 if device == "cuda" else 0
            row |= {"ms": ms, "ratio": round(ms["pruned"] / ms["dense"], 4), "memory_mib": memory}
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {first_line(error)[:200]}"
        rows.append(row)
    return rows


def _free(device: str) -> int:
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else 0
