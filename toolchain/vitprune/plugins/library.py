"""The C entry points of the native library, driven with numpy arrays."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.plugins.errors import PluginError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitprune.ops.token_sample import Attributes

ABI_VERSION = 4
FEATURES = ("cuda", "tensorrt", "onnxruntime")
DTYPES = ("float32", "float16", "bfloat16")
FORMS = ("paper", "official")

_I32, _I64, _FLOAT, _TEXT, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_char_p, ctypes.c_void_p


class _SampleAttributes(ctypes.Structure):
    _fields_ = (
        ("mode", _TEXT),
        ("num_samples", _I64),
        ("threshold", _FLOAT),
        ("capacity", _I64),
        ("expected", _I64),
        ("pad_to_capacity", _I32),
    )


class _ScoreAttributes(ctypes.Structure):
    _fields_ = (("form", _TEXT), ("scale", _FLOAT), ("prefix_tokens", _I64))


@dataclass(frozen=True)
class ScoreAttributes:
    """Attributes of the score part of TokenScoreSample.

    form: one of FORMS. scale: factor of query times key, 0 = 1/sqrt(head width). prefix_tokens: rows of key and value before
    the first patch.
    """

    form: str = "paper"
    scale: float = 0.0
    prefix_tokens: int = 1


_SCORED = [_POINTER, _POINTER, _I32, *[_POINTER] * 4, *[_I64] * 4]
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "vp_abi_version": (_I32, []),
    "vp_features": (ctypes.c_uint32, []),
    "vp_build_info": (_TEXT, []),
    "vp_status_string": (_TEXT, [_I32]),
    "vp_token_sample_max_count": (_I32, [_POINTER, _I64, _POINTER]),
    "vp_token_sample_cpu": (_I32, [*[_POINTER] * 3, _I64, _I64, *[_POINTER] * 3]),
    "vp_token_score_sample_cpu": (_I32, [*_SCORED, *[_POINTER] * 4]),
}
CUDA_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "vp_token_sample_workspace": (_I32, [_I64, _I64, _POINTER]),
    "vp_token_sample_cuda": (_I32, [*[_POINTER] * 3, _I64, _I64, _POINTER, ctypes.c_size_t, *[_POINTER] * 4]),
    "vp_token_score_sample_workspace": (_I32, [*[_I64] * 4, _POINTER]),
    "vp_token_score_sample_cuda": (_I32, [*_SCORED, _POINTER, ctypes.c_size_t, *[_POINTER] * 5]),
}


class PluginLibrary:
    """A loaded library. Host arrays in, host arrays out; `raw` has the C functions themselves, for device pointers."""

    def __init__(self, path: Path) -> None:
        """Load the library at `path`; see `load`."""
        try:
            self.raw = ctypes.CDLL(str(path))
            self.raw.vp_abi_version.restype = _I32
            abi = int(self.raw.vp_abi_version())
        except (OSError, AttributeError) as error:
            raise PluginError("VP605", f"{path} cannot be loaded: {error}.", "Build it anew on this machine.") from error
        if abi != ABI_VERSION:
            raise PluginError("VP606", f"{path} has interface {abi}, not {ABI_VERSION}.", "Build it anew with this vitprune.")
        self.path = path
        declare(self.raw, _SIGNATURES)
        if "cuda" in self.features:
            declare(self.raw, CUDA_SIGNATURES)

    @property
    def features(self) -> tuple[str, ...]:
        """Parts in the library, out of FEATURES."""
        bits = self.raw.vp_features()
        return tuple(name for bit, name in enumerate(FEATURES) if bits >> bit & 1)

    @property
    def build_info(self) -> dict[str, str]:
        """What the library was built with."""
        return dict(json.loads(self.raw.vp_build_info().decode()))

    def max_count(self, attributes: Attributes, patches: int) -> int:
        """Largest K that any input of `patches` tokens can give."""
        result = _I64()
        self.check(self.raw.vp_token_sample_max_count(sample_attributes(attributes), patches, ctypes.byref(result)))
        return result.value

    def token_sample(
        self, score: NDArray[np.float32], valid: NDArray[np.bool_], attributes: Attributes
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
        """TokenSample on the host.

        Args:
            score: float32 [B,P].
            valid: bool [B,P].
            attributes: as in the specification.

        Returns:
            index int64 [B,K], keep bool [B,K], K.

        Raises:
            PluginError: VP201 for input of a wrong shape or dtype, VP202 for what the library refuses.
        """
        batch, patches = _same_shape(score, valid)
        outputs = self._outputs(batch, patches, attributes)
        self.check(
            self.raw.vp_token_sample_cpu(
                sample_attributes(attributes), _data(score, "float32"), _data(valid, "bool"), batch, patches, *outputs.pointers
            )
        )
        return outputs.cut()

    def token_score_sample(
        self,
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any],
        valid: NDArray[np.bool_],
        score_attributes: ScoreAttributes,
        attributes: Attributes,
        dtype: str = "float32",
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], int]:
        """TokenScoreSample on the host.

        Args:
            query: [B,H,D], the class token's row. key: and value: [B,H,N,D] with N = prefix_tokens + P.
            key: see query.
            value: see query.
            valid: bool [B,P].
            score_attributes: of the score.
            attributes: of the sampling.
            dtype: one of DTYPES; bfloat16 arrays are passed as uint16 bits.

        Returns:
            score float32 [B,P], index int64 [B,K], keep bool [B,K], K.

        Raises:
            PluginError: VP201 for input of a wrong shape or dtype, VP202 for what the library refuses.
        """
        import numpy as np

        if dtype not in DTYPES:
            raise PluginError("VP201", f"Unknown dtype {dtype!r}.", f"Use one of {', '.join(DTYPES)}.")
        stored = "uint16" if dtype == "bfloat16" else dtype
        batch, patches = valid.shape
        heads, width = query.shape[1:]
        full = (batch, heads, score_attributes.prefix_tokens + patches, width)
        if key.shape != full or value.shape != full or len(query) != batch:
            raise PluginError("VP201", f"key and value must have the shape {full}.", "Check B, H, N and D of the inputs.")
        score = np.empty((batch, patches), np.float32)
        outputs = self._outputs(batch, patches, attributes)
        self.check(
            self.raw.vp_token_score_sample_cpu(
                score_attributes_pointer(score_attributes),
                sample_attributes(attributes),
                DTYPES.index(dtype),
                *[_data(array, stored) for array in (query, key, value)],
                _data(valid, "bool"),
                *(batch, heads, patches, width, score.ctypes.data),
                *outputs.pointers,
            )
        )
        return (score, *outputs.cut())

    def check(self, status: int) -> None:
        """Raise VP202 with the library's own sentence unless a status is 0."""
        if status:
            sentence = self.raw.vp_status_string(status).decode()
            raise PluginError("VP202", f"TokenSample refuses its input: {sentence}.", "Correct the attribute or the shape.")

    def _outputs(self, batch: int, patches: int, attributes: Attributes) -> _Outputs:
        return _Outputs(batch, self.max_count(attributes, patches))


class _Outputs:
    """Buffers for the largest possible result."""

    def __init__(self, batch: int, slots: int) -> None:
        import numpy as np

        self.batch = batch
        self.index = np.zeros(batch * slots, np.int64)
        self.keep = np.zeros(batch * slots, np.bool_)
        self.count = _I64()
        self.pointers = (self.index.ctypes.data, self.keep.ctypes.data, ctypes.addressof(self.count))

    def cut(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
        """The part that was written, in its shape."""
        shape = (self.batch, self.count.value)
        size = shape[0] * shape[1]
        return self.index[:size].reshape(shape), self.keep[:size].reshape(shape), shape[1]


def load(path: Path) -> PluginLibrary:
    """Load a built library.

    Raises:
        PluginError: VP605 when it cannot be loaded, VP606 when it belongs to another version.
    """
    return PluginLibrary(path)


def sample_attributes(attributes: Attributes) -> Any:
    """A pointer to the C form of the attributes; it keeps what it points to alive."""
    return ctypes.byref(
        _SampleAttributes(
            attributes.mode.encode(),
            attributes.num_samples,
            attributes.threshold,
            attributes.capacity,
            attributes.expected,
            attributes.pad_to_capacity,
        )
    )


def score_attributes_pointer(attributes: ScoreAttributes) -> Any:
    """A pointer to the C form of the score attributes; it keeps what it points to alive."""
    return ctypes.byref(_ScoreAttributes(attributes.form.encode(), attributes.scale, attributes.prefix_tokens))


def declare(library: ctypes.CDLL, signatures: dict[str, tuple[Any, list[Any]]]) -> None:
    """Tell ctypes the result and argument types of C functions."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments


def _same_shape(score: NDArray[Any], valid: NDArray[Any]) -> tuple[int, int]:
    if score.ndim != 2 or score.shape != valid.shape:
        cause = f"score {score.shape} and valid {valid.shape} must both be [batch, patches]."
        raise PluginError("VP201", cause, "Check the inputs.")
    return score.shape[0], score.shape[1]


def _data(array: NDArray[Any], dtype: str) -> int:
    """Address of a dense array of the given dtype."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise PluginError("VP201", f"Expected a dense {dtype} array, got {array.dtype}.", "Convert it first.")
    return int(array.ctypes.data)
