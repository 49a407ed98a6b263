"""The plugin library: found, loaded into TensorRT's registry, checked for the operator, identified by its hash."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.errors import VitpruneError
from vitprune.graph.lowering.tensorrt import NAMESPACE
from vitprune.ops.token_sample import NAME

if TYPE_CHECKING:
    import tensorrt as trt

LIBRARY = "libvitprune_plugin.so"
VERSION = "1"
Fail = Callable[..., VitpruneError]


@dataclass(frozen=True)
class Plugin:
    """A plugin library as engine.json records it: file name beside the engine, operator identity, hash."""

    file: str
    sha256: str
    name: str = NAME
    version: str = VERSION
    namespace: str = NAMESPACE
    embedded: bool = False

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def obtain(wanted: str, architecture: str, report: Callable[[str], None]) -> tuple[Path | None, str]:
    """The library to build with.

    Args:
        wanted: "auto" builds it, or takes the one built before; "none" does without; else a path.
        architecture: compute capability to compile for, "" for all that the compiler knows.
        report: called with progress texts.

    Returns:
        Its path, or None and why there is none.
    """
    if wanted == "none":
        return None, "--plugin none"
    if wanted != "auto":
        path = Path(wanted)
        return (path, "") if path.is_file() else (None, f"'{wanted}' is not a file")
    try:
        from vitprune import plugins
    except ImportError:
        return None, "this installation has no plugin sources"
    report("building the plugin library")
    try:
        made = plugins.build(cuda=True, architectures=(architecture,) if architecture else ())
    except plugins.PluginError as error:
        return None, f"{error.code}: {' '.join(error.cause.split())[:300]}"
    absent = [part for part, version in (("CUDA", made.nvcc), ("TensorRT", made.tensorrt)) if not version]
    return (None, f"it was built without {' and '.join(absent)}") if absent else (made.library, "")


def beside(library: Path, folder: Path) -> Path:
    """The library inside an engine's folder, copied there when it lies elsewhere."""
    inside = folder / library.name
    if inside.resolve() != library.resolve():
        shutil.copy2(library, inside)
    return inside


def register(registry: trt.IPluginRegistry, library: Path, fail: Fail, number: int, operator: str = NAME) -> None:
    """Load a library into TensorRT's registry and check that it brings the operator; a library that is in already stays.

    Args:
        registry: of TensorRT. library: path of the shared library. operator: its name.
        fail: the error to raise (BuildError or LoadError). number: its code.

    Raises:
        VitpruneError: the one asked for; it names operator, version, namespace, path and hash.
    """
    identity = f"{operator} version {VERSION}, namespace '{NAMESPACE}'"
    step = "build it anew on this device: vitprune plugins build"
    if not library.is_file():
        raise fail(number, f"plugin {identity} not found", cause=f"there is no file '{library}'", next_step=step)
    where = f"'{library}', sha256 {digest(library)[:16]}"
    if present(registry, operator):
        return
    try:
        handle = registry.load_library(str(library.resolve()))
    except Exception as error:
        handle, reason = None, str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        reason = "TensorRT gave no reason; its log has one"
    if handle is None:
        raise fail(number, f"plugin {identity} cannot be loaded", cause=f"{where}: {reason}", next_step=step)
    if not present(registry, operator):
        seen = (
            ", ".join(sorted(_text(creator) for creator in registry.all_creators if _identity(creator)[0] == operator))
            or "none of that name"
        )
        raise fail(number, f"plugin {identity} not found", cause=f"{where} registers {seen}", next_step=step)


def present(registry: trt.IPluginRegistry, operator: str = NAME) -> bool:
    """Whether the registry has the operator in our version and namespace."""
    return any(_identity(creator) == (operator, VERSION, NAMESPACE) for creator in registry.all_creators)


def _text(creator: Any) -> str:
    name, version, namespace = _identity(creator)
    return f"{name} version {version}, namespace '{namespace}'"


def _identity(creator: Any) -> tuple[str, str, str]:
    """Name, version, namespace; interfaces of later TensorRT versions that lack one give ""."""
    return getattr(creator, "name", ""), getattr(creator, "plugin_version", ""), getattr(creator, "plugin_namespace", "")
