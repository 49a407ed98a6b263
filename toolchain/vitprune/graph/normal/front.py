"""Graphs that prepare their image themselves: what stands before the patch convolution is read off and taken away.

A bundle takes preprocessed pixels, float32 [B,C,H,W]. A graph that takes uint8 pixels, or channels last, or that normalises inside is
that model with something in front: Cast, Transpose, and sums and products with one number per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from vitprune.graph import held
from vitprune.graph.anatomy.static import static_copy, value_of
from vitprune.graph.sorting import toposort

CHANNELS_FIRST, CHANNELS_LAST = "NCHW", "NHWC"
TO_FIRST = [0, 3, 1, 2]
KINDS: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}
STEPS = 12


@dataclass(frozen=True)
class Front:
    """What a graph does to its input x before the patch convolution: gain * x + shift, per channel.

    layout, dtype: of x. gain, shift: float64 [C]. white: the value of x that is white, 1 or 255.
    """

    layout: str
    dtype: str
    gain: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def white(self) -> float:
        """Uint8 pixels go to 255. For floats the one of 1 and 255 with which mean and std are those of pixels in [0,1]."""
        unit = bool((np.abs(self.shift / self.gain) <= 1).all() and (np.abs(1 / self.gain) <= 1).all())
        return 1.0 if self.dtype == "float32" and unit else 255.0

    @property
    def mean(self) -> list[float]:
        """Of pixels in [0,1]: (p - mean) / std with p = x / white."""
        return [float(value) for value in -self.shift / (self.gain * self.white)]

    @property
    def std(self) -> list[float]:
        """As `mean`."""
        return [float(value) for value in 1 / (self.gain * self.white)]

    @property
    def states(self) -> bool:
        """Whether mean and std follow from the graph: it normalises, or takes bytes as they are."""
        return self.dtype == "uint8" or bool((self.gain != 1).any() or (self.shift != 0).any())

    def given(self, pixels: NDArray[np.float32]) -> NDArray[Any]:
        """What the graph takes for preprocessed pixels [n,C,H,W]; uint8 is rounded."""
        shape = (1, -1, 1, 1)
        x = (pixels.astype(np.float64) - self.shift.reshape(shape)) / self.gain.reshape(shape)
        made = np.rint(x).clip(0, 255).astype(np.uint8) if self.dtype == "uint8" else x.astype(np.float32)
        return made.transpose(0, 2, 3, 1) if self.layout == CHANNELS_LAST else made

    def prepared(self, given: NDArray[Any]) -> NDArray[np.float32]:
        """The preprocessed pixels [n,C,H,W] that the graph makes of its input."""
        x = given.transpose(0, 3, 1, 2) if self.layout == CHANNELS_LAST else given
        return (x * self.gain.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1)).astype(np.float32)

    def text(self) -> str:
        """For people."""
        inside = f" and normalised itself (white is {self.white:g})" if self.states else ""
        return f"{self.dtype} {self.layout}{inside}"

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"layout": self.layout, "dtype": self.dtype} | ({"white": self.white} if self.states else {})


def taken_off(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Front | None]:
    """The graph from the patch convolution on, and what stood before it; the model itself and None where nothing stood there.

    What is not understood stays: other checks name it.

    Raises:
        ExportError: VP320 a dimension other than the batch is open.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    kind = KINDS.get(inputs[0].type.tensor_type.elem_type) if len(inputs) == 1 else None
    if kind is None or len(inputs[0].type.tensor_type.shape.dim) != 4 or _begins_with_convolution(model, inputs[0].name):
        return model, None
    found = _read(static_copy(model), kind)
    if found is None:
        return model, None
    front, last = found
    graph = held.imported(model)
    image, behind = graph.inputs[0], graph.tensors()[last]
    sizes = list(image.shape or ())
    behind.inputs.clear()
    behind.name, image.name = image.name, f"{image.name}/given"
    behind.dtype = np.float32
    behind.shape = [sizes[place] for place in (TO_FIRST if front.layout == CHANNELS_LAST else range(4))]
    graph.inputs = [behind]
    graph.cleanup(remove_unused_graph_inputs=False)
    toposort(graph)
    bare = held.rebuilt(graph)
    bare.ir_version = model.ir_version
    del bare.graph.value_info[:]
    return bare, front


def _begins_with_convolution(model: onnx.ModelProto, image: str) -> bool:
    """Whether nothing but a convolution reads the image, so that nothing stands in front of it."""
    return [node.op_type for node in model.graph.node if image in node.input] == ["Conv"]


def _read(graph: gs.Graph, kind: str) -> tuple[Front, str] | None:
    """What stands between the image and the convolution, and the name of the convolution's input."""
    tensor = graph.inputs[0]
    sizes = [int(size) for size in tensor.shape]
    turned = False
    gain, shift = np.ones(1), np.zeros(1)
    for _ in range(STEPS):
        node = tensor.outputs[0] if len(tensor.outputs) == 1 else None
        if node is None or node.op == "Conv":
            break
        if node.op == "Transpose" and list(node.attrs.get("perm", [])) == TO_FIRST and not turned:
            turned = True
        elif node.op in ("Add", "Sub", "Mul", "Div") and (change := _change(node, tensor, sizes, turned)) is not None:
            gain, shift = gain * change[0], shift * change[0] + change[1]
        elif node.op not in ("Cast", "Identity") or (node.op == "Cast" and int(node.attrs["to"]) != onnx.TensorProto.FLOAT):
            return None
        tensor = node.outputs[0]
    last = tensor.outputs[0] if len(tensor.outputs) == 1 else None
    if last is None or last.op != "Conv" or tensor is graph.inputs[0]:
        return None
    channels = int(last.inputs[1].shape[1]) * int(last.attrs.get("group", 1))
    axis = 3 if turned else 1
    full = [np.broadcast_to(values, (channels,)) if values.size in (1, channels) else None for values in (gain, shift)]
    if sizes[axis] != channels or full[0] is None or full[1] is None or not (full[0] > 0).all():
        return None
    front = Front(CHANNELS_LAST if turned else CHANNELS_FIRST, kind, full[0].copy(), full[1].copy())
    return (front, tensor.name) if turned or front.states else None


def _change(node: gs.Node, tensor: Any, sizes: list[int], turned: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Gain and shift [1] or [C] of a sum or product with a constant, None where it is not one number per channel."""
    ahead = node.inputs[0] is tensor
    constant = value_of(node.inputs[1 if ahead else 0])
    if constant is None or (not ahead and node.op in ("Sub", "Div")) or not np.isfinite(constant).all():
        return None
    # The channel axis is the second one where channels come first, be it from the start or behind the Transpose.
    last = len(sizes) == 4 and _channels_last(tensor, sizes, turned)
    shape = (1,) * (4 - constant.ndim) + constant.shape if constant.ndim <= 4 else ()
    others = [size for place, size in enumerate(shape) if place != (3 if last else 1)]
    if len(shape) != 4 or any(size != 1 for size in others):
        return None
    values = constant.astype(np.float64).reshape(-1)
    zero, one = np.zeros(1), np.ones(1)
    if node.op in ("Add", "Sub"):
        return one, values if node.op == "Add" else -values
    return (values if node.op == "Mul" else 1 / np.where(values == 0, np.nan, values)), zero


def _channels_last(tensor: Any, sizes: list[int], turned: bool) -> bool:
    """Whether a tensor on the way still has its channels last: the graph's input has, and the Transpose is still to come."""
    return not turned and sizes[3] in (1, 3, 4) and sizes[1] not in (1, 3, 4)
