"""The native library: TokenSample for TensorRT and ONNX Runtime, with its CUDA kernels and their host twin.

Its sources are built on the machine that uses them; `build` does that and `load` opens the result.
"""

from vitprune.plugins.build import BuildReport, build, built, cache_folder
from vitprune.plugins.errors import PluginError
from vitprune.plugins.library import PluginLibrary, ScoreAttributes, load
from vitprune.plugins.sources import find_sources

__all__ = [
    "BuildReport",
    "PluginError",
    "PluginLibrary",
    "ScoreAttributes",
    "build",
    "built",
    "cache_folder",
    "find_sources",
    "load",
]
