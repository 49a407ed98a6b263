"""Which tools and headers this machine has for building the native library."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vitprune.plugins.errors import PluginError

TENSORRT_HEADER = "NvInfer.h"
ORT_HEADER = "onnxruntime_c_api.h"


@dataclass(frozen=True)
class Toolchain:
    """Tools and headers found; None where there is none.

    cmake, compiler, nvcc: executables. tensorrt_include, ort_include: folders that hold NvInfer.h and onnxruntime_c_api.h.
    """

    cmake: Path
    compiler: Path
    nvcc: Path | None
    tensorrt_include: Path | None
    ort_include: Path | None

    def identity(self) -> str:
        """Text that changes when a rebuild with these tools could give another library."""
        parts = [platform.machine(), _version(self.cmake), _version(self.compiler), _version(self.nvcc)]
        parts.append(_first_bytes(self.tensorrt_include, "NvInferVersion.h"))
        parts.append(_ort_api(self.ort_include))
        return "\n".join(parts)


def find_toolchain(
    *,
    cuda: bool | None = None,
    nvcc: Path | None = None,
    tensorrt_include: Path | None = None,
    ort_include: Path | None = None,
) -> Toolchain:
    """Look for compilers and headers.

    Args:
        cuda: True requires nvcc, False ignores it, None takes it where it is.
        nvcc: the CUDA compiler, instead of the one on PATH or in /usr/local/cuda.
        tensorrt_include: folder with NvInfer.h; else $TENSORRT_INCLUDE_DIR and the usual places.
        ort_include: folder with onnxruntime_c_api.h; else $ORT_INCLUDE_DIR and the usual places.

    Raises:
        PluginError: VP601 without cmake or a C++ compiler, VP602 when something asked for is not there.
    """
    found_nvcc = None if cuda is False else nvcc or _program("nvcc", "/usr/local/cuda/bin/nvcc")
    if found_nvcc is None and cuda:
        raise PluginError("VP602", "There is no CUDA compiler.", "Install the CUDA toolkit or build without CUDA.")
    return Toolchain(
        cmake=_required("cmake"),
        compiler=Path(os.environ["CXX"]) if "CXX" in os.environ else _required("c++"),
        nvcc=found_nvcc,
        tensorrt_include=_header_folder(TENSORRT_HEADER, tensorrt_include, "TENSORRT_INCLUDE_DIR", _tensorrt_places()),
        ort_include=_header_folder(ORT_HEADER, ort_include, "ORT_INCLUDE_DIR", _ort_places()),
    )


def _tensorrt_places() -> list[Path]:
    multiarch = f"/usr/include/{platform.machine()}-linux-gnu"
    return [Path(p) for p in ("/usr/include", multiarch, "/usr/local/tensorrt/include", "/opt/tensorrt/include")]


def _ort_places() -> list[Path]:
    tails = ("", "onnxruntime", "onnxruntime/core/session")
    return [Path(root) / tail for root in ("/usr/include", "/usr/local/include") for tail in tails]


def _program(name: str, *places: str) -> Path | None:
    found = shutil.which(name) or next((place for place in places if os.access(place, os.X_OK)), None)
    return Path(found) if found else None


def _required(name: str) -> Path:
    found = _program(name)
    if found is None:
        raise PluginError("VP601", f"There is no {name} on PATH.", "Install cmake and a C++17 compiler.")
    return found


def _header_folder(header: str, given: Path | None, variable: str, places: list[Path]) -> Path | None:
    """Folder of a header: the one asked for, by argument or environment, must hold it; else the first place that does."""
    asked = given or (Path(os.environ[variable]) if os.environ.get(variable) else None)
    if asked is not None:
        if not (asked / header).is_file():
            raise PluginError("VP602", f"{asked} has no {header}.", f"Give the folder that holds it, or unset ${variable}.")
        return asked
    return next((place for place in places if (place / header).is_file()), None)


def _version(program: Path | None) -> str:
    if program is None:
        return "none"
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def _first_bytes(folder: Path | None, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8") if folder and (folder / name).is_file() else "none"


def _ort_api(folder: Path | None) -> str:
    found = re.search(r"#define ORT_API_VERSION (\d+)", _first_bytes(folder, ORT_HEADER))
    return found.group(1) if found else "none"
