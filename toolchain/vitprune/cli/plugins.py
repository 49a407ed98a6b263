"""vitprune plugins."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitprune import console
from vitprune.errors import TargetError

if TYPE_CHECKING:
    from vitprune.plugins import PluginError


class Action(str, Enum):
    """What to do with the native library."""

    build = "build"
    info = "info"


EXAMPLES = (
    "plugins build",
    "plugins info",
)


def command(
    action: Annotated[Action, typer.Argument(help="build the library, or info: what is built and what a build would find.")],
    arch: Annotated[
        list[str] | None, typer.Option(help="GPU architecture such as 87; repeatable. Default: all of nvcc's.")
    ] = None,
    cuda: Annotated[
        bool | None, typer.Option("--cuda/--no-cuda", help="Require or leave out CUDA. Default: where nvcc is.")
    ] = None,
    nvcc: Annotated[Path | None, typer.Option(help="The CUDA compiler.")] = None,
    tensorrt_include: Annotated[Path | None, typer.Option(help="Folder with NvInfer.h.")] = None,
    ort_include: Annotated[Path | None, typer.Option(help="Folder with onnxruntime_c_api.h.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Compilers to run at once.")] = 2,
) -> None:
    """Build the native library (TensorRT plugin, ONNX Runtime operators, CUDA kernels) or show what there is of it.

    Builds are kept in the user's cache folder by the content of sources, options and tools.
    """
    if action is Action.info:
        _info()
        return
    from vitprune.plugins import PluginError, build

    if nvcc is not None and not nvcc.is_file():
        raise TargetError(243, f"--nvcc '{nvcc}' is not a file", next_step="vitprune plugins info shows what is found")
    try:
        with console.step("build the plugin library"):
            report = build(
                architectures=tuple(arch or ()), cuda=cuda, nvcc=nvcc, tensorrt_include=tensorrt_include, ort_include=ort_include,
                jobs=jobs,
            )  # fmt: skip
    except PluginError as error:
        raise _ours(error) from error
    parts = {
        "host twin": report.compiler,
        "CUDA kernels": f"nvcc {report.nvcc} for {' '.join(report.architectures)}" if report.nvcc else "left out: no nvcc",
        "TensorRT plugin": f"headers {report.tensorrt}" if report.tensorrt else "left out: needs nvcc and NvInfer.h",
        "ONNX Runtime operators": (
            f"API {report.onnxruntime_api}" if report.onnxruntime_api else "left out: needs onnxruntime_c_api.h"
        ),
    }
    for name, text in parts.items():
        console.info(f"  {name}: {console.plain(text)}")
    console.result(f"library {console.plain(report.library)} ({'from the cache' if report.cached else 'built'})")
    found: dict[str, Any] = {**vars(report), "library": str(report.library), "architectures": list(report.architectures)}
    console.document("plugins", {"status": "ok", "exit_code": 0, "build": found})


def _info() -> None:
    from vitprune.plugins import PluginError, find_sources, load
    from vitprune.reports.doctor import plugin_state

    try:
        sources = str(find_sources())
    except PluginError as error:
        raise _ours(error) from error
    state = plugin_state()
    console.info(f"sources {console.plain(sources)}")
    for name, where in (state["tools"] or {}).items():
        console.info(f"  {name.replace('_', ' ')}: {where or 'not found'}")
    if state["reason"]:
        console.info(f"  it cannot be built here: {console.plain(state['reason'])}")
    libraries = []
    for path in state["built"]:
        try:
            library = load(Path(path))
            libraries.append({"library": path, "features": list(library.features), "build": library.build_info})
            console.info(f"library {console.plain(path)}: {', '.join(library.features) or 'host twin alone'}")
        except PluginError as error:
            libraries.append({"library": path, "error": str(error)})
            console.warn(f"{path}: {error}")
    usable = sum("error" not in library for library in libraries)
    console.result(f"{usable} built" if usable else "no library is built yet: vitprune plugins build")
    body = {"sources": sources, "tools": state["tools"], "reason": state["reason"], "libraries": libraries}
    console.document("plugins", {"status": "ok", "exit_code": 0, **body})


def _ours(error: PluginError) -> TargetError:
    lines = [line for line in error.cause.splitlines() if line.strip()]
    return TargetError(
        243, f"the plugin library: {error.code}: {lines[0]}", cause=" / ".join(lines[-3:]), next_step=error.next_step
    )
