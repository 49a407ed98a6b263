"""Reading .npz files that somebody else wrote: no pickles, and no more memory than a limit before it is known what they hold."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.support.files import require_regular
from vitprune.support.limits import limits, require


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz.

    Raises:
        OSError: it cannot be read, or is larger than is read. ValueError: it is not an .npz of plain arrays.
    """
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            require(f"'{path.name}'", sum(member.file_size for member in members), limits.array)
            if any(not member.filename.endswith(".npy") for member in members) or not members:
                raise ValueError("it holds other things than arrays")
            if len({member.filename for member in members}) != len(members):
                raise ValueError("an array is there twice")
            for member in members:
                with archive.open(member) as stream:
                    _require_honest(stream, member)
        with np.load(path, allow_pickle=False) as data:
            return {name: np.asarray(data[name]) for name in data.files}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        NotImplementedError,
        SyntaxError,
        TypeError,
        RuntimeError,
    ) as error:
        raise ValueError(" ".join(str(error).split()) or "it is empty or cut off") from error
    except MemoryError as error:
        raise ValueError("its arrays do not fit into memory") from error


def _require_honest(stream: Any, member: zipfile.ZipInfo) -> None:
    """Refuse an array whose header promises more than the file holds: its memory would be taken first."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"'{member.filename}' has an unknown form")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    count = 1
    for size in shape:
        count *= size
    if any(size < 0 for size in shape) or count * dtype.itemsize > member.file_size:
        raise ValueError(f"'{member.filename}' is cut off")
