"""Packed attention of the native library, driven with numpy arrays."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from vitprune.plugins.errors import PluginError
from vitprune.plugins.library import PluginLibrary, declare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_I32, _I64, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
SIGNATURE = (_I32, [*[_POINTER] * 6, *[_I64] * 3, _FLOAT, _POINTER])
CUDA_SIGNATURE = (_I32, [_I32, *[_POINTER] * 6, *[_I64] * 4, _FLOAT, *[_POINTER] * 2])


def attend(
    library: PluginLibrary,
    query: NDArray[np.float32],
    key: NDArray[np.float32],
    value: NDArray[np.float32],
    query_ends: NDArray[np.int64],
    key_ends: NDArray[np.int64],
    heads: int,
    scale: float,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Attention of images whose rows lie behind each other, on the host.

    Args:
        library: a loaded library.
        query: [Tq,C]. key, value: [Tk,C]. query_ends, key_ends: [images+1], rising from 0. bias: [Tk], added to the logits of a key.
        heads: divides C. scale: of query times key, above 0.

    Returns:
        float32 [Tq,C].

    Raises:
        PluginError: VP201 for input of a wrong shape or dtype, VP202 for what the library refuses.
    """
    import numpy as np

    images = len(query_ends) - 1
    rows, width = query.shape
    sized = key.shape == value.shape == (len(key), width) and len(key_ends) == images + 1 and width % heads == 0
    if (
        not sized
        or images < 1
        or int(query_ends[-1]) != rows
        or int(key_ends[-1]) != len(key)
        or (bias is not None and len(bias) != len(key))
    ):
        raise PluginError(
            "VP201",
            "Rows, ends of images and bias do not fit each other: ends must rise from 0 to the rows.",
            "Check the inputs.",
        )
    arrays: list[NDArray[Any]] = [query, key, value, *([] if bias is None else [bias])]
    wanted = [*[(array, "float32") for array in arrays], (query_ends, "int64"), (key_ends, "int64")]
    if any(array.dtype != dtype or not array.flags.c_contiguous for array, dtype in wanted):
        raise PluginError("VP201", "Rows and bias must be dense float32 arrays, ends dense int64 ones.", "Convert them first.")
    declare(library.raw, {"vp_packed_attention_cpu": SIGNATURE})
    output = np.empty_like(query)
    status = library.raw.vp_packed_attention_cpu(
        *(array.ctypes.data for array in (query, key, value)), None if bias is None else bias.ctypes.data,
        query_ends.ctypes.data, key_ends.ctypes.data, images, heads, width // heads, scale, output.ctypes.data,
    )  # fmt: skip
    if status:
        sentence = library.raw.vp_status_string(status).decode()
        raise PluginError("VP202", f"PackedAttention refuses its input: {sentence}.", "Correct the attribute or the shape.")
    return output
