"""Editing ONNX files without the onnx package gives what editing with it gives."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitprune.bundle import Bundle
from vitprune.graph import wire
from vitprune.graph.lowering.logits import with_logits_only
from vitprune.graph.lowering.tensorrt import for_tensorrt
from vitprune.ops.token_sample import DOMAIN, NAME
from vitprune.support.versions import Version


def test_functions_go_and_nothing_else(made_bundle: Bundle) -> None:
    before = made_bundle.model_path.read_bytes()
    wanted = onnx.load_from_string(before)
    assert len(wanted.functions) > 0
    del wanted.functions[:]
    assert onnx.load_from_string(wire.without_functions(before)) == wanted


def test_lists_of_patches_go_and_nothing_else(made_bundle: Bundle, tmp_path: Path) -> None:
    wanted = onnx.load(str(made_bundle.model_path))
    logits = [output for output in wanted.graph.output if output.name == "logits"]
    assert len(wanted.graph.output) > len(logits) == 1
    del wanted.graph.output[:]
    wanted.graph.output.extend(logits)
    with_logits_only(made_bundle.model_path, tmp_path / "model.onnx")
    made = onnx.load(str(tmp_path / "model.onnx"))
    assert made == wanted
    onnx.checker.check_model(made)


def test_operators_are_found(made_bundle: Bundle) -> None:
    model = made_bundle.model_path.read_bytes()
    assert wire.operators(model, DOMAIN) == {NAME}
    assert "Softmax" in wire.operators(model, "")
    assert NAME not in wire.operators(model, "")


def test_every_kind_of_field_is_walked() -> None:
    proto = onnx.TensorProto(
        name="w", dims=[1, 300], data_type=11, float_data=[1.5, -2.0], double_data=[0.1], int64_data=[-1], raw_data=b"x"
    )
    data = proto.SerializeToString()
    seen = list(wire.fields(memoryview(data)))
    assert b"".join(field.whole for field in seen) == data
    assert {field.number: bytes(field.contents) for field in seen if field.number in (8, 9)} == {8: b"w", 9: b"x"}
    floats = next(bytes(field.contents) for field in seen if field.number == onnx.TensorProto.FLOAT_DATA_FIELD_NUMBER)
    np.testing.assert_array_equal(np.frombuffer(floats, "<f4"), [1.5, -2.0])


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**63])
def test_numbers(number: int) -> None:
    data = wire._number(number)
    assert wire._varint(memoryview(data), 0) == (number, len(data))


@given(st.binary(max_size=40))
def test_other_files_are_refused_and_end(data: bytes) -> None:
    seen = b""
    with contextlib.suppress(ValueError):
        for field in wire.fields(memoryview(data)):
            seen += bytes(field.whole)
    assert data.startswith(seen)


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_cut_files_are_refused(made_bundle: Bundle, cut: int) -> None:
    data = made_bundle.model_path.read_bytes()[:-cut]
    with pytest.raises(ValueError, match="no protobuf message"):
        for_tensorrt(data, Version.parse("10.3"), plugin=True)


def test_no_onnx_package_is_needed(made_bundle: Bundle, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
sys.modules["onnx"] = None
from vitprune.graph.lowering.logits import with_logits_only
from vitprune.graph.lowering.tensorrt import for_tensorrt
from vitprune.support.versions import Version
source, destination = map(Path, sys.argv[1:])
with_logits_only(source, destination)
print(*(for_tensorrt(destination.read_bytes(), Version.parse(v), p)[1] for v, p in (("10.3", True), ("10.16", True), ("11.4", False))), sep=";")
"""
    command = [sys.executable, "-c", script, str(made_bundle.model_path), str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "plugin;plugin or function;function", done.stderr
