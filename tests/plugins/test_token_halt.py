"""TokenHalt alone: its steps are those of the specification, bit for bit on the scores that it tells, and nonsense is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from vitprune.ops import token_halt
from vitprune.ops.token_sample import DOMAIN, Attributes

READS = {
    "x": (TensorProto.FLOAT, 3), "total": (TensorProto.FLOAT, 2), "remainder": (TensorProto.FLOAT, 2),
    "output": (TensorProto.FLOAT, 3), "patch": (TensorProto.INT64, 2),
}  # fmt: skip
WRITES = {
    "rows": TensorProto.FLOAT, "output_out": TensorProto.FLOAT, "total_out": TensorProto.FLOAT, "remainder_out": TensorProto.FLOAT,
    "mask": TensorProto.INT32, "index": TensorProto.INT64, "keep": TensorProto.BOOL, "patch_out": TensorProto.INT64,
    "kept": TensorProto.INT64, "shape": TensorProto.INT64, "score": TensorProto.FLOAT,
}  # fmt: skip
STAYING = ("output_out", "total_out", "remainder_out", "mask", "score")
USUAL = {
    "form": "given", "combine": "nothing", "heads": 1, "prefix_tokens": 2, "originals": 30, "mode": "threshold", "threshold": 0.0,
    "num_samples": 1, "capacity": 0, "expected": 0, "pad_to_capacity": 0, "channel": 3, "gate_scale": 1.5, "gate_center": 1.0,
    "limit": 0.99, "compacts": 1, "exits": 1, "last": 0,
}  # fmt: skip


def operator(library: Path, first: bool = False, **changed: Any) -> ort.InferenceSession:
    """A graph of one node; without a compaction it has no rows."""
    attributes = USUAL | changed
    names = ["x"] if first else list(READS)
    outputs = [name if attributes["compacts"] or name in STAYING else "" for name in WRITES]
    node = helper.make_node(token_halt.NAME, names, outputs, domain=DOMAIN, **attributes)
    inputs = [helper.make_tensor_value_info(name, READS[name][0], [None] * READS[name][1]) for name in names]
    made = [helper.make_tensor_value_info(name, WRITES[name], None) for name in outputs if name]
    graph = helper.make_graph([node], "halt", inputs, made)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(library))
    content = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def feeds(rng: np.random.Generator, batch: int = 4, patches: int = 30, prefix: int = 2, width: int = 9) -> dict[str, np.ndarray]:
    """A state in the middle of a network: some have halted, some are pads, the first image has no active prefix token."""
    tokens = prefix + patches
    total = rng.random((batch, tokens), np.float32) * np.float32(1.2)
    total[rng.random((batch, tokens)) < 0.2] = 2
    total[0, :prefix], total[1, : prefix + 3] = 1.5, 0.1
    return {
        "x": rng.standard_normal((batch, tokens, width), np.float32), "total": total,
        "remainder": rng.random((batch, prefix), np.float32), "output": rng.standard_normal((batch, prefix, width), np.float32),
        "patch": np.stack([rng.permutation(patches) for _ in range(batch)]),
    }  # fmt: skip


@pytest.mark.parametrize("exits", [0, 1])
@pytest.mark.parametrize("capacity", [0, 5])
def test_a_step_and_a_compaction_are_those_of_the_specification(exits: int, capacity: int, ort_library: Path) -> None:
    session = operator(ort_library, exits=exits, capacity=capacity, pad_to_capacity=int(capacity > 0))
    rng = np.random.default_rng(capacity + exits)
    for _ in range(5):
        given = feeds(rng)
        found = run(session, given)
        gate = given["x"][:, :, 3].astype(np.float64) * 1.5 - 1.0
        np.testing.assert_allclose(found["score"], 1 / (1 + np.exp(-gate)), rtol=1e-6)
        before = token_halt.Carried(given["total"], given["remainder"], given["output"])
        wanted = token_halt.step(given["x"], found["score"], before, 2, 0.99)
        attributes = Attributes("threshold", 1, 0.0, capacity, 0, capacity > 0)
        left, sums = token_halt.compact(given["x"], wanted.total, 2, 0.99, bool(exits), attributes)
        for name, value in {
            "output_out": wanted.output, "remainder_out": wanted.remainder, "total_out": sums, "mask": sums < np.float32(0.99),
            "index": left.index, "keep": left.keep, "rows": left.rows, "shape": left.rows.shape,
            "patch_out": np.take_along_axis(given["patch"], left.index, 1),
        }.items():  # fmt: skip
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        np.testing.assert_array_equal(found["kept"], np.where(left.keep, found["patch_out"], -1))
        assert found["keep"].any()
        assert not exits or not found["keep"][0].any()  # its prefix tokens have halted


def test_all_steps_of_a_network(ort_library: Path) -> None:
    """From the first to the last; a sum of exactly the limit neither halts nor goes on."""
    rng = np.random.default_rng(5)
    first, middle, last = (
        operator(ort_library, first=True, compacts=0),
        operator(ort_library, compacts=0),
        operator(ort_library, compacts=0, last=1),
    )
    before: token_halt.Carried | None = None
    patch = np.tile(np.arange(30), (3, 1))
    for block in range(5):
        x = rng.standard_normal((3, 32, 9), np.float32)
        given = {"x": x}
        if before is not None:
            given |= {"total": before.total, "remainder": before.remainder, "output": before.output, "patch": patch}
        session = (first, middle, middle, middle, last)[block]
        found = session.run(["output_out", "score"], given)
        if block < 4:
            told = run(session, given)
            wanted = token_halt.step(x, told["score"], before, 2, 0.99)
            np.testing.assert_array_equal(told["total_out"], wanted.total)
            np.testing.assert_array_equal(told["mask"], wanted.total < np.float32(0.99))
            np.testing.assert_array_equal(told["remainder_out"], wanted.remainder)
        else:
            wanted = token_halt.step(x, found[1], before, 2, 0.99, last=True)
        np.testing.assert_array_equal(found[0], wanted.output)
        before = wanted
    score = run(first, {"x": x})["score"]
    limit = float(score[0, 0])
    exact = run(operator(ort_library, first=True, compacts=0, limit=limit), {"x": x})
    np.testing.assert_array_equal(exact["output_out"][0, 0], np.zeros(9))
    np.testing.assert_array_equal(exact["output_out"], token_halt.step(x, score, None, 2, limit).output)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"channel": -1}, "channel"), ({"limit": 1.0}, "limit"), ({"prefix_tokens": 0}, "prefix"), ({"last": 1}, "last block"),
     ({"form": "sum"}, "given"), ({"mode": "nonsense"}, "mode")],
)  # fmt: skip
def test_attributes_that_make_no_sense_are_refused(changed: dict[str, Any], said: str, ort_library: Path) -> None:
    with pytest.raises(Exception, match=said):
        operator(ort_library, **changed)


def test_inputs_of_wrong_shapes_are_refused(ort_library: Path) -> None:
    session = operator(ort_library)
    given = feeds(np.random.default_rng(1))
    for name in ("total", "remainder", "output", "patch"):
        with pytest.raises(Exception, match=name):
            session.run(["rows"], {**given, name: given[name][:, 1:]})
    with pytest.raises(Exception, match="channel"):
        session.run(["rows"], {**given, "x": given["x"][:, :, :2], "output": given["output"][:, :, :2]})
    with pytest.raises(Exception, match="tokens"):
        session.run(["rows"], {**given, "x": given["x"][:, :2]})


def test_the_specification_is_a_model_on_its_own() -> None:
    """Weights of a token add up to 1 over the blocks, whenever it halts."""
    rng = np.random.default_rng(2)
    before: token_halt.Carried | None = None
    for block in range(6):
        x = np.ones((2, 8, 1), np.float32)
        before = token_halt.step(x, rng.random((2, 8), np.float32) * np.float32(0.4), before, 3, 0.99, last=block == 5)
    assert before is not None
    np.testing.assert_allclose(before.output[:, :, 0], 1, atol=1e-6)
    assert not onnx.defs.has(token_halt.NAME)
