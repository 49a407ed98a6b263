"""The native library beside an engine: verified, and trusted to be loaded, before anybody loads it."""

from __future__ import annotations

from pathlib import Path

from vitprune.backends._engines import PLUGIN, BuiltEngine
from vitprune.errors import BuildError, LoadError
from vitprune.support import trust
from vitprune.support.hashing import sha256_of


def library_of(built: BuiltEngine) -> Path | None:
    """The library that an engine needs, or None when its facts say that it needs none or carries it inside.

    An engine that was given by its path and has no facts takes the library that lies beside it, if one does.

    Raises:
        LoadError: VP634 it is not there or is another one; VP646 it was not built on this machine and nobody asked for it.
    """
    plugin = built.facts.get("plugin")
    if plugin is None and built.document:
        return None
    file = built.path.parent / str(plugin["file"] if plugin else PLUGIN)
    if plugin is None and not file.is_file() or plugin is not None and plugin.get("embedded"):
        return None
    found = sha256_of(file) if file.is_file() else ""
    if plugin is not None and found != plugin["sha256"]:
        what = f"'{file}' has sha256 {found[:16]}" if found else f"there is no file '{file}'"
        raise LoadError(
            634,
            f"plugin {plugin['name']} version {plugin['version']}, namespace '{plugin['namespace']}' "
            f"{'is another one' if found else 'not found'}",
            cause=f"{what}; the engine was built with sha256 {plugin['sha256'][:16]}",
            next_step="put that library back beside the engine, or build the engine again with --force",
        )
    require_ours(built, file, found)
    return file


def require_ours(built: BuiltEngine, file: Path, digest: str) -> None:
    """Refuse native code that was not built on this machine, unless it was asked for.

    Raises:
        LoadError: VP646.
    """
    if not built.foreign and not trust.known(digest):
        raise LoadError(
            646,
            f"'{file.name}' is native code that was not built on this machine",
            cause=f"sha256 {digest[:16]}; loading it would run it",
            next_step="build the engine here with build-engine --force, or --foreign-code if you trust where the bundle comes from",
        )


def for_onnxruntime(wanted: str) -> tuple[Path | None, str]:
    """The library with operators for ONNX Runtime to build with, or None and why there is none.

    Args:
        wanted: "auto" takes the one that `vitprune plugins build` left, "none" does without, else a path.

    Raises:
        BuildError: VP522 the file asked for cannot be used.
    """
    from vitprune import plugins

    if wanted == "none":
        return None, "--plugin none"
    if wanted == "auto":
        found = plugins.built()
        if found is None:
            return None, "the native library is not built: vitprune plugins build"
        return (found.library, "") if found.onnxruntime_api else (None, "it was built without onnxruntime_c_api.h")
    path = Path(wanted)
    if not path.is_file():
        raise BuildError(522, f"'{wanted}' is not a file", next_step="vitprune plugins build, or --plugin none")
    try:
        features = plugins.load(path).features
    except plugins.PluginError as error:
        raise BuildError(
            522, f"'{wanted}' cannot be used", cause=error.cause, next_step="vitprune plugins build, or --plugin none"
        ) from error
    if "onnxruntime" not in features:
        raise BuildError(
            522,
            f"'{wanted}' has no operators for ONNX Runtime",
            cause=f"parts in it: {', '.join(features) or 'the host twin alone'}",
            next_step="vitprune plugins build --ort-include DIR, with the folder that holds onnxruntime_c_api.h",
        )
    return path, ""
