"""Builds the native library with CMake and keeps the result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vitprune.plugins.errors import PluginError
from vitprune.plugins.sources import find_sources, source_digest
from vitprune.plugins.toolchain import Toolchain, find_toolchain
from vitprune.support import json_text, temporary
from vitprune.support.files import plain_name, read_text
from vitprune.support.hashing import sha256_of
from vitprune.support.replacing import replace_folder

LIBRARY = "libvitprune_plugin.so"
_INFO, _DIGESTS = "build_info.json", "sha256.json"
_LOG_LINES = 40


@dataclass(frozen=True)
class BuildReport:
    """What was found and what was built.

    library: the shared library. cached: it had been built before. version: of the library. compiler: name and version of the
    C++ compiler. nvcc: version of the CUDA compiler, tensorrt: version of its headers, onnxruntime_api: version of its C
    header; each "" where there is none, and then that part is not in the library. architectures: GPU architectures.
    """

    library: Path
    cached: bool
    version: str
    compiler: str
    nvcc: str
    architectures: tuple[str, ...]
    tensorrt: str
    onnxruntime_api: str


def cache_folder() -> Path:
    """Where built libraries are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitprune" / "plugins"


def build(
    *,
    architectures: tuple[str, ...] = (),
    cuda: bool | None = None,
    nvcc: Path | None = None,
    tensorrt_include: Path | None = None,
    ort_include: Path | None = None,
    tests: bool = False,
    jobs: int = 2,
    cache: Path | None = None,
) -> BuildReport:
    """Build the library, or take it from the cache when sources, options and tools are those of an earlier build.

    Args:
        architectures: GPU architectures such as ("87",); empty for all that nvcc can build for.
        cuda: True requires the CUDA part, False leaves it out, None builds it where nvcc is.
        nvcc: the CUDA compiler.
        tensorrt_include: folder with NvInfer.h.
        ort_include: folder with onnxruntime_c_api.h.
        tests: also build the test programs, next to the library.
        jobs: compilers to run at once.
        cache: folder to keep results in, instead of `cache_folder()`.

    Raises:
        PluginError: VP601, VP602 and VP603 for what is missing, VP604 when CMake or a compiler fails.
    """
    sources = find_sources()
    tools = find_toolchain(cuda=cuda, nvcc=nvcc, tensorrt_include=tensorrt_include, ort_include=ort_include)
    options = _options(tools, architectures, tests)
    final = (cache or cache_folder()) / _key(sources, tools, options)
    cached = _whole(final)
    if not cached:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.folder(final) as work:
            _publish(_compile(sources, work, tools, options, jobs), final)
    return _report(final, cached)


def built() -> BuildReport | None:
    """What `build()` without options made of these sources with the tools of this machine, else what `build(cuda=False)` did, or None.

    Nothing is compiled.
    """
    for cuda in (None, False):
        try:
            sources, tools = find_sources(), find_toolchain(cuda=cuda)
        except PluginError:
            return None
        final = cache_folder() / _key(sources, tools, _options(tools, (), False))
        if _whole(final):
            return _report(final, True)
        if tools.nvcc is None:  # the second look would be the first again
            break
    return None


def _key(sources: Path, tools: Toolchain, options: list[str]) -> str:
    return hashlib.sha256("\n".join([source_digest(sources), tools.identity(), *options]).encode()).hexdigest()[:24]


def _options(tools: Toolchain, architectures: tuple[str, ...], tests: bool) -> list[str]:
    """CMake options; parts whose tools were not found are switched off, so that CMake does not find others."""
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_CXX_COMPILER={tools.compiler}"]
    options.append(f"-DVITPRUNE_CUDA={'ON' if tools.nvcc else 'OFF'}")
    if tools.nvcc:
        options += [f"-DCMAKE_CUDA_COMPILER={tools.nvcc}", f"-DVITPRUNE_CUDA_ARCHS={';'.join(architectures)}"]
    for part, variable, folder in (
        ("TENSORRT", "TENSORRT_INCLUDE_DIR", tools.tensorrt_include),
        ("ONNXRUNTIME", "ORT_INCLUDE_DIR", tools.ort_include),
    ):
        options.append(f"-DVITPRUNE_{part}={'AUTO' if folder else 'OFF'}")
        if folder:
            options.append(f"-D{variable}={folder.resolve()}")
    return [*options, f"-DVITPRUNE_TESTS={'ON' if tests else 'OFF'}"]


def _compile(sources: Path, work: Path, tools: Toolchain, options: list[str], jobs: int) -> Path:
    """Configure and build below `work`; returns a folder that holds only what is worth keeping."""
    tree, stage = work / "tree", work / "stage"
    _run([str(tools.cmake), "-S", str(sources), "-B", str(tree), *options])
    _run([str(tools.cmake), "--build", str(tree), "--parallel", str(jobs)])
    stage.mkdir()
    for file in tree.iterdir():
        program = file.is_file() and os.access(file, os.X_OK)
        if program or file.name in (LIBRARY, _INFO):
            shutil.copy2(file, stage / file.name)
    _note(stage)
    return stage


def _note(stage: Path) -> None:
    """Keep the hash of everything in a finished build."""
    digests = {file.name: sha256_of(file) for file in sorted(stage.iterdir())}
    (stage / _DIGESTS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def _whole(folder: Path) -> bool:
    """Whether a build of earlier is still as it was made."""
    try:
        digests = json_text.parse(read_text(folder / _DIGESTS))
        wanted = {LIBRARY, _INFO} <= set(digests)
        return wanted and all(plain_name(name) and sha256_of(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, TypeError):
        return False


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-_LOG_LINES:])
        raise PluginError("VP604", f"Building the plugin library failed:\n{tail}\n", "The last lines above name the reason.")


def _publish(stage: Path, final: Path) -> None:
    """Move a finished build to its place in one step: what another process put there with the same content, or what was damaged."""
    replace_folder(stage, final)


def _report(folder: Path, cached: bool) -> BuildReport:
    info = json.loads((folder / _INFO).read_text(encoding="utf-8"))
    architectures = tuple(info.pop("architectures").split())
    return BuildReport(library=folder / LIBRARY, cached=cached, architectures=architectures, **info)
