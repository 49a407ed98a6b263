"""Element types of ONNX that are real numbers, by their number in onnx.proto (`onnx.TensorProto`); nothing is imported for it."""

from __future__ import annotations

FLOAT, FLOAT16, DOUBLE, BFLOAT16 = 1, 10, 11, 16
FLOATS = (FLOAT, FLOAT16, DOUBLE, BFLOAT16)
# Half types, by the names that recipes use.
HALF = {FLOAT16: "fp16", BFLOAT16: "bf16"}
