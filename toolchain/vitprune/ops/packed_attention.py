"""`vitprune::PackedAttention`: attention of images whose token rows lie behind each other, without pads.

The function body below is its specification. It meets all queries with all keys and throws away what belongs to other images, so its
work grows with the square of a batch: it is there to be compared with, not to be run.
"""

from __future__ import annotations

import onnx
from onnx import parser

from vitprune.ops.token_sample import DOMAIN

NAME = "PackedAttention"
_BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <num_heads, scale> (query, key, value, query_ends, key_ends{bias}) => (output)
{{
  zero = Constant <value_ints: ints = [0]> ()
  one = Constant <value_ints: ints = [1]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  all = Constant <value_ints: ints = [9223372036854775807]> ()
  start = Constant <value_int: int = 0> ()
  step = Constant <value_int: int = 1> ()
  heads0 = Constant <value_int: int = @num_heads> ()
  heads = Unsqueeze (heads0, zero)
  split = Concat <axis: int = 0> (zero, heads, rest)
  factor = Constant <value_float: float = @scale> ()
  query_count = Shape (query)
  query_rows = Gather (query_count, start)
  query_number = Range (start, query_rows, step)
  query_column = Unsqueeze (query_number, one)
  query_behind = Slice (query_ends, one, all, zero)
  query_past = GreaterOrEqual (query_column, query_behind)
  query_past64 = Cast <to: int = 7> (query_past)
  query_image = ReduceSum <keepdims: int = 1> (query_past64, one)
  key_count = Shape (key)
  key_rows = Gather (key_count, start)
  key_number = Range (start, key_rows, step)
  key_column = Unsqueeze (key_number, one)
  key_behind = Slice (key_ends, one, all, zero)
  key_past = GreaterOrEqual (key_column, key_behind)
  key_past64 = Cast <to: int = 7> (key_past)
  key_image = ReduceSum <keepdims: int = 0> (key_past64, one)
  together = Equal (query_image, key_image)
  query_heads = Reshape (query, split)
  q = Transpose <perm: ints = [1, 0, 2]> (query_heads)
  key_heads = Reshape (key, split)
  k = Transpose <perm: ints = [1, 2, 0]> (key_heads)
  value_heads = Reshape (value, split)
  v = Transpose <perm: ints = [1, 0, 2]> (value_heads)
  products = MatMul (q, k)
  logits = Mul (products, factor)
{biased}
  lowest = Constant <value_float: float = -3.4028235e38> ()
  own = Where (together, moved, lowest)
  spread = Softmax <axis: int = -1> (own)
  inside = Cast <to: int = 1> (together)
  weights = Mul (spread, inside)
  context = MatMul (weights, v)
  rows = Transpose <perm: ints = [1, 0, 2]> (context)
  merged = Constant <value_ints: ints = [0, -1]> ()
  output = Reshape (rows, merged)
}}
"""


def function(bias: bool = True, opset: int = 18) -> onnx.FunctionProto:
    """The body.

    Inputs: query float32 [Tq,C], key and value float32 [Tk,C]; query_ends and key_ends int64 [images+1], rising from 0: image b has the
    rows ends[b]..ends[b+1]; with `bias`, float32 [Tk], added to the logits of a key. Attributes: num_heads, scale > 0. Output: float32
    [Tq,C]. A query whose image has no keys gets zeros.
    """
    text = _BODY.format(
        domain=DOMAIN, name=NAME, opset=opset, bias=", bias" if bias else "",
        biased="  moved = Add (logits, bias)" if bias else "  moved = Identity (logits)",
    )  # fmt: skip
    return parser.parse_function(text)
