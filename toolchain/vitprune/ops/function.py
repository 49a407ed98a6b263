"""The ONNX function body of `vitprune::TokenSample`: plain operators that every runtime takes.

Written in ONNX's textual syntax. It carries out the arithmetic of `token_sample.py` (integer weights, closed form); work and
memory are linear in P save for the compaction, one TopK (official mode: and one sort). No NonZero, Compress, Unique, Loop or
scatter with a reduction. Large integers are clamped with Where: ONNX Runtime 1.31 computes Max and Min of int64 wrongly beyond
2**31 on x86-64.
"""

from __future__ import annotations

from typing import Literal

import onnx
from onnx import parser

from vitprune.ops.token_sample import DOMAIN, NAME

Valid = Literal["any", "first", "single"]
BODY_OPSET = 18

_HEAD = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <mode, num_samples, threshold, capacity, expected, pad_to_capacity, plugin_version, plugin_namespace>
    (score, valid) => (index, keep, count)
{{
  axis0 = Constant <value_ints: ints = [0]> ()
  axis1 = Constant <value_ints: ints = [1]> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  fzero = Constant <value_float: float = 0.0> ()
  width = Shape <start: int = 1, end: int = 2> (score)
  number = Squeeze (width)
"""

# r, q and the number of points S; shared by both inverse transform modes.
_WEIGHTS = """
  points = Constant <value_int: int = @num_samples> ()
  fone = Constant <value_float: float = 1.0> ()
  two30 = Constant <value_float: float = 1073741824.0> ()
  positive = Greater (score, fzero)
  counted = And (valid, positive)
  clean = Where (counted, score, fzero)
  top = ReduceMax <keepdims: int = 1> (clean, axis1)
  has_top = Greater (top, fzero)
  divisor = Where (has_top, top, fone)
  relative = Div (clean, divisor)
  scaled = Mul (relative, two30)
  trunc = Cast <to: int = 7> (scaled)
  least = Max (trunc, one)
  weight = Where (valid, least, zero)
"""
# The same where every slot is valid.
_WEIGHTS_SINGLE = """
  points = Constant <value_int: int = @num_samples> ()
  fone = Constant <value_float: float = 1.0> ()
  two30 = Constant <value_float: float = 1073741824.0> ()
  clean = Max (score, fzero)
  top = ReduceMax <keepdims: int = 1> (clean, axis1)
  has_top = Greater (top, fzero)
  divisor = Where (has_top, top, fone)
  relative = Div (clean, divisor)
  scaled = Mul (relative, two30)
  trunc = Cast <to: int = 7> (scaled)
  weight = Max (trunc, one)
"""

# e and F(e) on the paper's grid, in patch order.
_PAPER = """
  c = CumSum (weight, one)
  last = Constant <value_ints: ints = [-1]> ()
  end = Constant <value_ints: ints = [9223372036854775807]> ()
  total0 = Slice (c, last, end, axis1)
{total}
  c2 = Add (c, c)
  edge = Sub (c2, weight)
  spread = Mul (edge, points)
  rounded = Add (spread, total)
  total2 = Add (total, total)
  below0 = Div (rounded, total2)
"""
_TOTAL_ANY = """  missing = Equal (total0, zero)
  total = Where (missing, one, total0)"""
_TOTAL_SINGLE = """  total = Identity (total0)"""
# Where valid has any pattern, the next present token's F is found by rank.
_RISES_ANY = """
  first = Equal (c, weight)
  below = Where (first, zero, below0)
  valid64 = Cast <to: int = 7> (valid)
  rank = CumSum (valid64, one)
  rank0 = Sub (rank, one)
  slot = Where (valid, rank0, number)
  fenced = Where (valid, below, points)
  none = Sub (below, below)
  blank = Add (none, points)
  column = Slice (blank, last, end, axis1)
  empty = Concat <axis: int = 1> (blank, column)
  packed = ScatterElements <axis: int = 1> (empty, slot, fenced)
  above = GatherElements <axis: int = 1> (packed, rank)
  rises = Greater (above, below)
  chosen = And (valid, rises)
"""
# Where valid slots come first it is the next slot's: F(0 below the first), ..., F(S above the last).
_RISES_FIRST = """
  fenced = Where (valid, below0, points)
  inner = Slice (fenced, axis1, end, axis1)
  pad_left = Constant <value_ints: ints = [0, 1, 0, 0]> ()
  pad_right = Constant <value_ints: ints = [0, 0, 0, 1]> ()
  below = Pad (inner, pad_left, zero)
  above = Pad (inner, pad_right, points)
  rises = Greater (above, below)
  chosen = And (valid, rises)
"""
_RISES_SINGLE = """
  inner = Slice (below0, axis1, end, axis1)
  pad_left = Constant <value_ints: ints = [0, 1, 0, 0]> ()
  pad_right = Constant <value_ints: ints = [0, 0, 0, 1]> ()
  below = Pad (inner, pad_left, zero)
  above = Pad (inner, pad_right, points)
  chosen = Greater (above, below)
"""

_OFFICIAL = """
  behind = Constant <value_float: float = 2.0> ()
  sortable = Where (valid, relative, behind)
  sorted, position = TopK <axis: int = 1, largest: int = 0, sorted: int = 1> (sortable, width)
  q = GatherElements <axis: int = 1> (weight, position)
  present = Greater (q, zero)
  c = CumSum (q, one)
  last = Constant <value_ints: ints = [-1]> ()
  end = Constant <value_ints: ints = [9223372036854775807]> ()
  total0 = Slice (c, last, end, axis1)
  missing = Equal (total0, zero)
  total = Where (missing, one, total0)
  number0 = Sub (number, one)
  second0 = Min (number0, one)
  second1 = Unsqueeze (second0, axis0)
  start = Gather <axis: int = 1> (c, second1)
  start2 = Add (start, start)
  c2 = Add (c, c)
  edge = Sub (c2, q)
  over = Sub (edge, start2)
  outside = Less (over, zero)
  inside = Where (outside, zero, over)
  steps = Sub (points, one)
  spread = Mul (inside, steps)
  rest = Sub (total, start)
  rest2 = Add (rest, rest)
  alone = Equal (rest2, zero)
  span = Where (alone, one, rest2)
  whole = Div (spread, span)
  reached = Add (whole, one)
  below0 = Where (outside, zero, reached)
  first = Equal (c, q)
  below1 = Where (first, zero, below0)
  below = Where (present, below1, points)
  shifted = Slice (below, axis1, end, axis1)
  none = Sub (below, below)
  blank = Add (none, points)
  column = Slice (blank, last, end, axis1)
  above = Concat <axis: int = 1> (shifted, column)
  rises = Greater (above, below)
  chosen = And (present, rises)
  ranked = GatherElements <axis: int = 1> (score, position)
  behind_zero = Neg (position)
  place = Cast <to: int = 1> (behind_zero)
"""

_THRESHOLD = """
  least = Constant <value_float: float = @threshold> ()
  exceeds = Greater (score, least)
  chosen = And (valid, exceeds)
"""

# Slots in patch order: `place` is minus the position, exact in float32 up to P = 2**24.
_IN_ORDER = """
  fnumber = Cast <to: int = 1> (number)
  stop = Neg (fnumber)
  back = Constant <value_float: float = -1.0> ()
  place = Range (fzero, stop, back)
  ranked = Identity (score)
"""

# Overflow: keep the highest scores, ties to the lower index (the slots come in an order that makes TopK do so).
_OVERFLOW = """
  limit = Constant <value_int: int = @capacity> ()
  limit0 = Min (limit, number)
  limit1 = Unsqueeze (limit0, axis0)
  lowest = Constant <value_float: float = -3.4028234663852886e38> ()
  contest = Where (chosen, ranked, lowest)
  best, slots = TopK <axis: int = 1> (contest, limit1)
  shape = Shape (score)
  places = Expand (place, shape)
  taken = GatherElements <axis: int = 1> (places, slots)
  chosen32 = Cast <to: int = 6> (chosen)
  real32 = GatherElements <axis: int = 1> (chosen32, slots)
  real = Cast <to: int = 9> (real32)
"""
_NO_OVERFLOW = """
  taken = Identity (place)
  real = Identity (chosen)
"""

_DYNAMIC_WIDTH = """
  real64 = Cast <to: int = 7> (real)
  counts = ReduceSum <keepdims: int = 0> (real64, axis1)
  most = ReduceMax <keepdims: int = 0> (counts)
  count = Max (most, one)
  count1 = Unsqueeze (count, axis0)
"""
_SINGLE_WIDTH = """
  real64 = Cast <to: int = 7> (real)
  count1 = ReduceSum <keepdims: int = 0> (real64, axis1)
  count = Squeeze (count1)
"""
_STATIC_WIDTH = """
  count = Constant <value_int: int = @capacity> ()
  count1 = Unsqueeze (count, axis0)
"""

# The largest places come first: kept slots in ascending position, then pads.
_TAIL = """
  far = Constant <value_float: float = -1.0e9> ()
  edge_of_far = Constant <value_float: float = -5.0e8> ()
  marked = Where (real, taken, far)
  front, unused = TopK <axis: int = 1> (marked, count1)
  keep = Greater (front, edge_of_far)
  ahead = Neg (front)
  kept = Where (keep, ahead, fzero)
  index = Cast <to: int = 7> (kept)
}
"""

_TAIL_SINGLE = """
  far = Constant <value_float: float = -1.0e9> ()
  edge_of_far = Constant <value_float: float = -5.0e8> ()
  marked = Where (real, taken, far)
  front, unused = TopK <axis: int = 1> (marked, count1)
  keep = Greater (front, edge_of_far)
  ahead = Neg (front)
  index = Cast <to: int = 7> (ahead)
}
"""

_RISES = {"any": _RISES_ANY, "first": _RISES_FIRST, "single": _RISES_SINGLE}


def function(mode: str, *, overflow: bool, padded: bool, valid: Valid = "any", opset: int = BODY_OPSET) -> onnx.FunctionProto:
    """Function body of TokenSample for one mode.

    Args:
        mode: one of `token_sample.MODES`; the body carries out only this one.
        overflow: a capacity may cut selected tokens away.
        padded: K is the attribute `capacity` (which must not exceed P) instead of the largest count.
        valid: what the caller promises about `valid`: nothing, "first" (valid slots come first, as inside every pruned graph) or
            "single" (one image without pads, dynamic width); the promise shortens the body of the paper's mode.
        opset: opset of the body, at least BODY_OPSET; that of the model, where operators changed between the two.

    Returns:
        A model-local function; every node of a model that shares it must use the same mode and shape.
    """
    single = valid == "single"
    if mode == "inverse_transform":
        core = _PAPER.replace("{total}", _TOTAL_SINGLE if single else _TOTAL_ANY)
        body = (_WEIGHTS_SINGLE if single else _WEIGHTS) + core + _RISES[valid] + _IN_ORDER
    elif mode == "inverse_transform_official":
        body, single = _WEIGHTS + _OFFICIAL, False
    else:
        body, single = _THRESHOLD + _IN_ORDER, False
    head = _HEAD.format(domain=DOMAIN, name=NAME, opset=opset)
    body += _OVERFLOW if overflow else _NO_OVERFLOW
    width = _STATIC_WIDTH if padded else _SINGLE_WIDTH if single else _DYNAMIC_WIDTH
    return parser.parse_function(head + body + width + (_TAIL_SINGLE if single else _TAIL))
