"""One build of the native library for all tests of this folder."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from helpers import absent
from vitprune.plugins import BuildReport, PluginLibrary, build, load
from vitprune.plugins.library import CUDA_SIGNATURES, declare


def gpu_architecture() -> str | None:
    """Compute capability of the first GPU as nvcc writes it, None without a GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        return None
    return "{}{}".format(*torch.cuda.get_device_capability())


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        absent("cmake and a C++ compiler")
    try:
        architecture = gpu_architecture()
    except pytest.skip.Exception:
        architecture = None
    return build(architectures=(architecture or "87",), tests=True, cache=tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="session")
def library(report: BuildReport) -> PluginLibrary:
    return load(report.library)


@pytest.fixture(scope="session")
def emulated(report: BuildReport) -> ctypes.CDLL:
    """The CUDA entry points, with the kernels run on the host."""
    raw = load(report.library.with_name("libemulated_kernels.so")).raw
    declare(raw, CUDA_SIGNATURES)
    return raw


@pytest.fixture(scope="session")
def driver(report: BuildReport) -> Path:
    if not report.tensorrt:
        absent("nvcc and TensorRT headers ($TENSORRT_INCLUDE_DIR)")
    return report.library.with_name("plugin_driver")


@pytest.fixture(scope="session")
def runner(report: BuildReport) -> tuple[Path, Path]:
    """The program that runs plugins on host memory, and the library with emulated kernels."""
    if not report.tensorrt:
        absent("nvcc and TensorRT headers ($TENSORRT_INCLUDE_DIR)")
    return report.library.with_name("plugin_runner"), report.library.with_name("libemulated_kernels.so")


@pytest.fixture(scope="session")
def ort_library(report: BuildReport) -> Path:
    if not report.onnxruntime_api:
        absent("onnxruntime_c_api.h ($ORT_INCLUDE_DIR)")
    return report.library
