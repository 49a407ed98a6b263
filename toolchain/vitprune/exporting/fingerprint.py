"""What a dense export depends on, as one hash: weights, structure and source of a module, versions, and what is asked for.

Only modules that are made of torch's, timm's and this package's own classes have one, with nothing on them that cannot be described (hooks,
closures, replaced methods): what such things do is not told by a name.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from pydantic import BaseModel

KNOWN = ("torch", "timm", "vitprune")
EXPORTERS = ("torch", "timm", "onnx", "onnxscript", "onnx_ir", "numpy")
PLAIN = (str, bytes, bool, int, float, complex, type(None), type(Ellipsis))
HOOKS = "_hooks"


class Indescribable(Exception):
    """Something on which a module's answers may depend has no description."""


def fingerprint(module: Any, *asked: Any) -> str | None:
    """A sha256 that is the same for two modules only if their exports are the same, as far as is known; None where it cannot be told.

    Args:
        module: a torch module. asked: plain values, what the export is asked for.
    """
    digest = hashlib.sha256()
    try:
        _add(digest, [sys.version_info[:3], [(name, _version(name)) for name in EXPORTERS], asked, _switches()])
        sources = {Path(__file__).with_name("dense.py"), *(Path(__file__).parents[1] / "vit").glob("*.py")}
        for name, part in module.named_modules(remove_duplicate=False):
            digest.update(f"module {name}\n".encode())
            sources |= _class(digest, type(part))
            _attributes(digest, part)
        _tensors(digest, module)
        for path in sorted(sources):
            digest.update(path.read_bytes())
    except (Indescribable, OSError):
        return None
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _switches() -> list[Any]:
    """Switches of the whole process: timm's, which layers ask while they run, and the type of new tensors."""
    import torch
    from timm.layers import config

    found = [(name, value) for name, value in sorted(vars(config).items()) if name.startswith("_") and isinstance(value, int)]
    return [*found, str(torch.get_default_dtype())]


def _class(digest: Any, kind: type) -> set[Path]:
    """Name the classes of a module; the source files of those outside of torch, whose version stands for it.

    Raises:
        Indescribable: a class of somebody else's, or one whose methods were replaced.
    """
    sources = set()
    for one in kind.__mro__[:-1]:
        digest.update(f"{_named(one)}\n".encode())
        if one.__module__.split(".")[0] == "torch":
            continue
        for value in vars(one).values():
            if isinstance(value, FunctionType) and value.__module__ != one.__module__ and not dataclasses.is_dataclass(one):
                raise Indescribable(f"{one.__qualname__}.{value.__name__}")
        sources.add(Path(str(sys.modules[one.__module__].__file__)))
    return sources


def _named(value: Any) -> str:
    """Module and name of a class or function that can be found under them.

    Raises:
        Indescribable: it cannot, or is not torch's, timm's or ours.
    """
    place, name = str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))
    found: Any = sys.modules.get(place)
    for part in name.split("."):
        found = getattr(found, part, None)
    root = place.split(".")[0]
    if found is not value or (root not in KNOWN and root not in sys.stdlib_module_names):
        raise Indescribable(f"{place}.{name}")
    return f"{place}.{name}"


def _attributes(digest: Any, part: Any) -> None:
    """All that an instance carries besides its parameters, buffers and parts."""
    for name, value in sorted(vars(part).items()):
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        if name.endswith(HOOKS) or "_hooks_" in name:
            if value:
                raise Indescribable(name)
            continue
        digest.update(f"{name} = ".encode())
        _add(digest, value)


def _add(digest: Any, value: Any) -> None:
    """Describe a value into a hash.

    Raises:
        Indescribable: nobody knows what it is.
    """
    import torch

    if isinstance(value, torch.Tensor):
        _bytes(digest, value)
    elif isinstance(value, enum.Enum) or type(value) in PLAIN or isinstance(value, torch.dtype | torch.device | torch.Size):
        digest.update(f"{type(value).__name__} {value!r}\n".encode())
    elif isinstance(value, Mapping):
        digest.update(f"{len(value)} pairs\n".encode())
        for pair in value.items():
            _all(digest, pair)
    elif isinstance(value, list | tuple | set | frozenset):
        digest.update(f"{type(value).__name__} of {len(value)}\n".encode())
        _all(digest, sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
    elif isinstance(value, functools.partial):
        _all(digest, (value.func, value.args, value.keywords))
    elif isinstance(value, type | FunctionType | BuiltinFunctionType):
        digest.update(f"{_named(value)}\n".encode())
    elif isinstance(value, BaseModel):
        digest.update(f"{_named(type(value))} {value.model_dump_json()}\n".encode())
    elif dataclasses.is_dataclass(value):
        digest.update(f"{_named(type(value))}\n".encode())
        _add(digest, {one.name: getattr(value, one.name) for one in dataclasses.fields(value)})
    else:
        raise Indescribable(type(value).__name__)


def _all(digest: Any, values: Iterable[Any]) -> None:
    for value in values:
        _add(digest, value)


def _tensors(digest: Any, module: Any) -> None:
    """Parameters and buffers with their names; of one that is there twice, that it is."""
    first: dict[int, str] = {}
    for kind in ("named_parameters", "named_buffers"):
        for name, value in getattr(module, kind)(remove_duplicate=False):
            digest.update(f"{kind} {name} is {first.setdefault(id(value), name)}\n".encode())
            if first[id(value)] == name:
                _bytes(digest, value)


def _bytes(digest: Any, value: Any) -> None:
    import torch

    if value.layout is not torch.strided or value.device.type == "meta":
        raise Indescribable("a tensor without values")
    digest.update(f"{value.dtype} {tuple(value.shape)} {value.device.type}\n".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
