"""Weights of ONNX models that lie in files beside the model, as those beyond 2 GB must: a protobuf message holds no more.

In memory such a tensor names its file by its full path; its values are mapped, not read. On disk it names a file beside the model.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from vitprune.errors import ExportError
from vitprune.support import temporary
from vitprune.support.files import inside, linked, require_regular
from vitprune.support.onnx_types import FLOATS

if TYPE_CHECKING:
    import numpy as np
    import onnx

MOST_BYTES = (1 << 31) - (1 << 20)  # of a message, less what is not weights
ASIDE = 1 << 28  # of weights that are worth a file of their own while a graph is worked on
ALIGNMENT = 4096  # of tensors in a file, so that runtimes can map them
PIECE = 1 << 24
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9  # field numbers of onnx.proto3
EXTERNAL: Any = 1  # onnx.TensorProto.EXTERNAL
_mapped: WeakValueDictionary[tuple[int, ...], mmap.mmap] = (
    WeakValueDictionary()
)  # what is in use; twice mapped, pages count twice


def nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values, from its type and shape."""
    from onnx import helper

    return math.prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def total(model: onnx.ModelProto) -> int:
    """Bytes of all initialisers, wherever they are."""
    return sum(nbytes(tensor) for tensor in model.graph.initializer)


def elsewhere(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor of a model in memory has its values in a file."""
    return tensor.data_location == EXTERNAL and any(os.path.isabs(entry.value) for entry in tensor.external_data)


def any_elsewhere(model: onnx.ModelProto) -> bool:
    """Whether any initialiser of a model in memory has its values in a file."""
    return any(elsewhere(tensor) for tensor in model.graph.initializer)


def _place(tensor: onnx.TensorProto) -> tuple[str, int]:
    """File and offset of a tensor."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    return told["location"], int(told.get("offset", 0))


def below_one_folder(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Path]:
    """A copy of a model of which weights lie in files, that names them from one folder on, and that folder."""
    bare = type(model)()
    bare.CopyFrom(model)
    apart = [tensor for tensor in bare.graph.initializer if elsewhere(tensor)]
    places = [_place(tensor) for tensor in apart]
    folder = os.path.commonpath({os.path.dirname(file) for file, _ in places})
    for tensor, (file, offset) in zip(apart, places, strict=True):
        put(tensor, os.path.relpath(file, folder), offset, nbytes(tensor))
    return bare, Path(folder)


def empty(tensor: onnx.TensorProto) -> None:
    """Leave a tensor its name, type and shape."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "data_location"):
        tensor.ClearField(field)
    del tensor.external_data[:]


def put(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor have its values in a file."""
    empty(tensor)
    tensor.data_location = EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def load(path: Path, aside: int | None = None) -> onnx.ModelProto:
    """A model; weights that are larger than a message holds stay where they are.

    Args:
        path: an ONNX file. aside: leave weights of more bytes in their files; default `MOST_BYTES`.

    Raises:
        ValueError: a tensor names no file beside the model, or more than there is in it. Else what onnx raises.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    model = onnx.load(str(path), load_external_data=False)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == EXTERNAL]
    if not tensors or total(model) <= (MOST_BYTES if aside is None else aside):
        load_external_data_for_model(model, str(path.parent))
        return model
    for tensor in tensors:
        _resolve(tensor, path.parent)
    return model


def _resolve(tensor: onnx.TensorProto, folder: Path) -> None:
    from onnx.external_data_helper import load_external_data_for_tensor

    told = {entry.key: entry.value for entry in tensor.external_data}
    name, offset, length = told.get("location", ""), int(told.get("offset", 0)), nbytes(tensor)
    if not inside(name) or linked(folder, name):
        raise ValueError(f"'{tensor.name}' lies in '{name}', which is no file beside the model")
    size = require_regular(folder / name).st_size
    if offset < 0 or offset + length > size or int(told.get("length", length)) != length:
        raise ValueError(f"'{tensor.name}' has {length:,} bytes from {offset:,} on, '{name}' has {size:,}")
    if (
        length < ALIGNMENT or tensor.data_type not in FLOATS
    ):  # it may be a shape or an index, which whoever reads a graph looks at
        load_external_data_for_tensor(tensor, str(folder))
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    else:
        put(tensor, str((folder / name).resolve()), offset, length)


def values(tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a tensor; those in a file are mapped, once, and read page by page when they are looked at. Nobody is to change them."""
    import numpy as np
    from onnx import helper, numpy_helper

    if not elsewhere(tensor):
        return numpy_helper.to_array(tensor)
    location, offset = _place(tensor)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if 0 in tensor.dims:
        return np.zeros(tuple(tensor.dims), kind)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = offset - start + nbytes(tensor)
    with open(location, "rb") as stream:
        found = os.fstat(stream.fileno())
        key = (found.st_dev, found.st_ino, start, length)
        mapped = _mapped.get(key)
        if mapped is None:
            mapped = _mapped[key] = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    return np.frombuffer(mapped, kind, math.prod(tensor.dims), offset - start).reshape(tuple(tensor.dims))


def let_go() -> None:
    """Give back the memory of mapped weights that were looked at; whoever looks again reads them from their files again."""
    for mapped in list(_mapped.values()):
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


def save(model: onnx.ModelProto, path: Path, aside: int | None = None) -> None:
    """Write a model; weights that are larger than a message holds go to a file beside it, `<name>.data`, piece by piece.

    Args:
        model: not changed. path: of the ONNX file. aside: as for `load`.
    """
    import onnx

    small = total(model) <= (MOST_BYTES if aside is None else aside)
    if small and not any_elsewhere(model):
        onnx.save(model, str(path))
        return
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    if small:
        _save_as_one(bare, path)
        return
    beside = path.with_name(f"{path.name}.data")
    with temporary.file(beside) as new:  # the old file may be where the weights are, and a link to another bundle's
        with new.open("wb") as stream:
            written: dict[Any, int] = {}
            for tensor in bare.graph.initializer:
                if not elsewhere(tensor) and nbytes(tensor) < ALIGNMENT:
                    continue
                key = _place(tensor) if elsewhere(tensor) else tensor.name
                if key not in written:
                    stream.write(bytes(-stream.tell() % ALIGNMENT))
                    written[key] = stream.tell()
                    _copy(tensor, stream)
                put(tensor, beside.name, written[key], nbytes(tensor))
        os.replace(new, beside)
    path.write_bytes(bare.SerializeToString())


def _save_as_one(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with weights in files as one message, which is never in memory.

    Where a message has a field of its own kind twice, readers merge the two (protobuf.dev/programming-guides/encoding): behind the model
    without these weights stands, for each of them, a graph that has nothing but it.
    """
    apart = [tensor for tensor in model.graph.initializer if elsewhere(tensor)]
    kept = [tensor for tensor in model.graph.initializer if not elsewhere(tensor)]
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    with path.open("wb") as stream:
        stream.write(bare.SerializeToString())
        for tensor in apart:
            told = type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).SerializeToString()
            inner = told + _head(TENSOR_RAW_DATA, nbytes(tensor))
            graph = _head(GRAPH_INITIALIZER, len(inner) + nbytes(tensor))
            stream.write(_head(MODEL_GRAPH, len(graph) + len(inner) + nbytes(tensor)) + graph + inner)
            _copy(tensor, stream)


def _head(field: int, length: int) -> bytes:
    """What stands before a field of so many bytes: its number and kind, and the length, seven bits a byte."""
    found = bytearray([field << 3 | 2])
    while length > 127:
        found.append(length & 127 | 128)
        length >>= 7
    return bytes([*found, length])


def _copy(tensor: onnx.TensorProto, stream: Any) -> None:
    """The values of a tensor, in pieces where they lie in a file."""
    if not elsewhere(tensor):
        stream.write(values(tensor).tobytes())
        return
    location, offset = _place(tensor)
    left = nbytes(tensor)
    with open(location, "rb") as source:
        source.seek(offset)
        while left:
            piece = source.read(min(PIECE, left))
            if not piece:
                raise OSError(5, f"'{location}' ends too early")
            stream.write(piece)
            left -= len(piece)


def take_along(source: Path, destination: Path) -> None:
    """Put the file of weights that lies beside one model, if there is one, beside a copy of that model."""
    beside = source.with_name(f"{source.name}.data")
    if not beside.is_file():
        return
    there = destination.with_name(beside.name)
    try:
        os.link(beside, there)
    except OSError:  # another file system, or one without links
        shutil.copyfile(beside, there)


def too_large(size: int, what: str, cause: str, next_step: str) -> ExportError:
    """VP337: weights beyond what one protobuf message holds, where they would have to be in one."""
    return ExportError(
        337, f"the weights of {what} are larger than 2 GB", cause=f"they have {size:,} bytes, and {cause}", next_step=next_step
    )


class Spill:
    """A file to which new weights go, each once, so that no graph needs them in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._places: dict[bytes, int] = {}

    def take(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Move the large weights of a model here, and return the model without them: what is cleared stays in a message's memory."""
        apart = [tensor for tensor in model.graph.initializer if nbytes(tensor) >= ALIGNMENT and tensor.data_type in FLOATS]
        for tensor in apart:
            if not elsewhere(tensor):
                self.keep(tensor, values(tensor))
        bare = type(model)()
        bare.CopyFrom(model)
        return bare

    def keep(self, tensor: onnx.TensorProto, array: np.ndarray) -> None:
        """Write an array, unless it is there, and let a tensor have it."""
        import numpy as np

        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(flat).digest()
        if digest not in self._places:
            with self.path.open("ab") as stream:
                stream.write(bytes(-stream.tell() % ALIGNMENT))
                self._places[digest] = stream.tell()
                stream.write(flat)
        put(tensor, str(self.path), self._places[digest], array.nbytes)
