"""ONNX files edited as what they are, protobuf messages: a Jetson has TensorRT and NumPy, and usually no onnx package.

Only whole fields are left out or replaced; everything else keeps its bytes. Wire format: protobuf.dev/programming-guides/encoding.
Field numbers: onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

MODEL_GRAPH, MODEL_FUNCTIONS = 7, 25
GRAPH_NODE, GRAPH_OUTPUT = 1, 12
NODE_OP_TYPE, NODE_DOMAIN = 4, 7
VALUE_NAME = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message: its number, all of its bytes, and its contents (empty when it is a number)."""

    number: int
    whole: memoryview
    contents: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in their order.

    Raises:
        ValueError: it is not a protobuf message.
    """
    position = 0
    while position < len(message):
        start = position
        key, position = _varint(message, position)
        kind, begin = key & 7, position
        if kind == _VARINT:
            _, position = _varint(message, position)
            begin = position
        elif kind == _BYTES:
            size, begin = _varint(message, position)
            position = begin + size
        elif kind in (_FIXED64, _FIXED32):
            position = begin = begin + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"no protobuf message: wire type {kind} at byte {start}")
        if position > len(message):
            raise ValueError("no protobuf message: it ends inside a field")
        yield Field(key >> 3, message[start:position], message[begin:position])


def without_functions(model: bytes) -> bytes:
    """A model without its local functions."""
    return b"".join(field.whole for field in fields(memoryview(model)) if field.number != MODEL_FUNCTIONS)


def without_outputs(model: bytes, unwanted: Callable[[str], bool]) -> bytes:
    """A model without the graph outputs whose names are unwanted; the nodes that made them stay."""
    return b"".join(
        part
        for field in fields(memoryview(model))
        for part in (_graph_without(field.contents, unwanted) if field.number == MODEL_GRAPH else (field.whole,))
    )


def operators(model: bytes, domain: str) -> set[str]:
    """Names of the operators of a domain that the main graph has nodes of."""
    graphs = (field.contents for field in fields(memoryview(model)) if field.number == MODEL_GRAPH)
    nodes = (field.contents for graph in graphs for field in fields(graph) if field.number == GRAPH_NODE)
    return {_text(node, NODE_OP_TYPE) for node in nodes if _text(node, NODE_DOMAIN) == domain}


def _graph_without(graph: memoryview, unwanted: Callable[[str], bool]) -> list[bytes | memoryview]:
    kept = [
        field.whole for field in fields(graph) if field.number != GRAPH_OUTPUT or not unwanted(_text(field.contents, VALUE_NAME))
    ]
    return [_number(MODEL_GRAPH << 3 | _BYTES), _number(sum(map(len, kept))), *kept]


def _text(message: memoryview, number: int) -> str:
    """A text field of a message, "" when it has none."""
    return next((bytes(field.contents).decode() for field in fields(message) if field.number == number), "")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("no protobuf message: a number does not end")
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _number(value: int) -> bytes:
    """The bytes of a number, as `_varint` reads them."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
