"""Graphs whose weights are more than one message holds: they stay in files, in memory and in the bundle. The threshold is lowered here."""

from __future__ import annotations

import json
import mmap
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vitprune
from helpers import ats, images, tiny
from vitprune import engines, pipelines, targets
from vitprune.backends.onnxruntime import make_session
from vitprune.errors import ExportError, LoadError
from vitprune.exporting.dense import dense_onnx
from vitprune.exporting.dense_twin import dense_of
from vitprune.graph import skeletons
from vitprune.support import onnx_weights

SIDE = 64
ASIDE = 100_000


def recipe() -> vitprune.Recipe:
    return vitprune.Recipe.load(ats(stages=[1, 2]) | {"model": {"mean": [0.5] * 3, "std": [0.5] * 3}})


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "dense.onnx"
    made = dense_onnx(tiny(depth=3), (3, SIDE, SIDE), recipe())
    onnx.save(made, str(path), save_as_external_data=True, location="dense.weights", size_threshold=0)
    return path


@pytest.fixture
def lowered(monkeypatch) -> None:
    monkeypatch.setattr(onnx_weights, "MOST_BYTES", ASIDE)
    monkeypatch.setattr(onnx_weights, "ASIDE", ASIDE)


@pytest.fixture(scope="module")
def bundles(dense, tmp_path_factory) -> tuple[vitprune.Bundle, vitprune.Bundle]:
    """Rewritten in memory, and with weights in files."""
    folder = tmp_path_factory.mktemp("bundles")
    small = vitprune.rewrite(dense, recipe(), folder / "small")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onnx_weights, "MOST_BYTES", ASIDE)
        patched.setattr(onnx_weights, "ASIDE", ASIDE)
        return small, vitprune.rewrite(dense, recipe(), folder / "large")


def test_weights_lie_beside_the_model_and_nothing_else_changes(bundles):
    small, large = bundles
    assert "model.onnx.data" in large.manifest.files
    assert "model.onnx.data" not in small.manifest.files
    assert large.model_path.stat().st_size < ASIDE < small.model_path.stat().st_size
    one, other = (onnx.load(str(bundle.model_path)) for bundle in bundles)
    assert [node.SerializeToString() for node in one.graph.node] == [node.SerializeToString() for node in other.graph.node]
    for mine, theirs in zip(one.graph.initializer, other.graph.initializer, strict=True):
        assert mine.name == theirs.name
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(mine), onnx.numpy_helper.to_array(theirs))
    assert [path.name for path in large.path.parent.iterdir() if path.name.startswith(".")] == []  # what was spilled is gone


@pytest.mark.parametrize("single", [False, True], ids=["external", "single"])
def test_large_weights_lie_aside_while_the_graph_is_worked_on_and_are_written_as_one_file(
    bundles, dense, tmp_path, monkeypatch, single
):
    source = dense
    if single:
        source = tmp_path / "dense.onnx"
        onnx.save(onnx.load(str(dense)), str(source))
    monkeypatch.setattr(onnx_weights, "ASIDE", ASIDE)
    made = vitprune.rewrite(source, recipe(), tmp_path / "bundle")
    assert "model.onnx.data" not in made.manifest.files
    one, other = (onnx.load(str(bundle.model_path)) for bundle in (bundles[0], made))
    weights = [{tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer} for model in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        np.testing.assert_array_equal(values, weights[1][name])
    assert one.graph.node == other.graph.node
    x = images(3, (3, SIDE, SIDE), seed=5)
    np.testing.assert_allclose(made.run(x).logits, bundles[0].run(x).logits, atol=1e-6)


def test_it_runs_validates_and_gives_its_dense_model(bundles, lowered):
    small, large = bundles
    x = images(3, (3, SIDE, SIDE), seed=5)
    np.testing.assert_allclose(large.run(x).logits, small.run(x).logits, atol=1e-6)
    assert pipelines.validate(large, reference="stored").passed
    model = dense_of(large)
    assert onnx_weights.any_elsewhere(model)
    found = make_session(model).run(None, {"image": x})[0]
    np.testing.assert_allclose(found, make_session(dense_of(small)).run(None, {"image": x})[0], atol=1e-5)


def test_a_changed_weight_is_noticed_when_the_bundle_is_opened(bundles, tmp_path):
    copy = Path(shutil.copytree(bundles[1].path, tmp_path / "copy"))
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    with pytest.raises(LoadError, match="VP601"):
        vitprune.open_bundle(copy)


def test_an_engine_is_built_of_it(bundles, tmp_path):
    bundle = vitprune.open_bundle(shutil.copytree(bundles[1].path, tmp_path / "copy"))
    engines.build_engine(bundle, targets.load("onnxruntime-cpu"), report=lambda text: None)
    assert not list(bundle.engine_path("onnxruntime-cpu").glob("graph.onnx*"))
    x = images(2, (3, SIDE, SIDE), seed=6)
    found = pipelines.session(bundle, "onnxruntime", "onnxruntime-cpu").run(x).logits
    np.testing.assert_allclose(found, bundle.run(x).logits, atol=1e-5)


def told(model: onnx.ModelProto, number: int) -> dict[str, onnx.StringStringEntryProto]:
    return {entry.key: entry for entry in model.graph.initializer[number].external_data}


@pytest.mark.parametrize("damage", ["outside", "beyond", "missing", "link"])
def test_weights_that_are_not_there_are_refused_by_name(dense, tmp_path, lowered, damage):
    model = onnx.load(str(dense), load_external_data=False)
    (tmp_path / "dense.weights").write_bytes(dense.with_name("dense.weights").read_bytes())
    if damage == "outside":
        told(model, 0)["location"].value = "../dense.weights"
    elif damage == "beyond":
        told(model, 0)["offset"].value = str(10**9)
    elif damage == "missing":
        (tmp_path / "dense.weights").unlink()
    else:
        (tmp_path / "dense.weights").rename(tmp_path / "elsewhere")
        (tmp_path / "dense.weights").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dense.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="VP604"):
        vitprune.rewrite(tmp_path / "dense.onnx", recipe(), tmp_path / "bundle")


def test_weights_that_are_no_numbers_are_found_in_their_file(dense, tmp_path, lowered):
    model = onnx.load(str(dense), load_external_data=False)
    data = bytearray(dense.with_name("dense.weights").read_bytes())
    largest = max(range(len(model.graph.initializer)), key=lambda number: onnx_weights.nbytes(model.graph.initializer[number]))
    start = int(told(model, largest)["offset"].value) if "offset" in told(model, largest) else 0
    data[start : start + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "dense.weights").write_bytes(data)
    (tmp_path / "dense.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="VP306"):
        vitprune.rewrite(tmp_path / "dense.onnx", recipe(), tmp_path / "bundle")


def test_other_types_are_refused(dense, tmp_path, lowered):
    with pytest.raises(ExportError, match="VP337"):
        vitprune.rewrite(dense, recipe().with_("precision.mode", "fp16"), tmp_path / "bundle")


def test_a_model_too_large_to_export_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_weights, "MOST_BYTES", 10_000)
    with pytest.raises(ExportError, match="VP337") as refused:
        vitprune.export(tiny(depth=1), vitprune.Recipe.load(ats(stages=[0])), tmp_path / "bundle")
    assert "vitprune rewrite" in json.dumps(refused.value.document())


def test_arrays_are_spilled_once_and_mapped(tmp_path):
    spill = onnx_weights.Spill(tmp_path / "weights")
    array = np.arange(3000, dtype=np.float32).reshape(30, 100)
    one, other, turned = (onnx.TensorProto(name=name, data_type=1, dims=[30, 100]) for name in ("a", "b", "c"))
    spill.keep(one, array)
    spill.keep(other, array.copy())
    spill.keep(turned, array[::-1])
    assert one.external_data == other.external_data != turned.external_data
    np.testing.assert_array_equal(onnx_weights.values(other), array)
    np.testing.assert_array_equal(onnx_weights.values(turned), array[::-1])
    assert np.shares_memory(onnx_weights.values(one), onnx_weights.values(other))  # mapped once


def test_a_skeleton_keeps_values_in_other_fields():
    """Two tensors of one shape whose values are not raw bytes looked the same."""

    def model(value: float) -> onnx.ModelProto:
        tensor = onnx.TensorProto(name=f"w{value}", data_type=1, dims=[100], float_data=[value] * 100)
        return onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor]))

    kept = skeletons.fleshed(skeletons.skeleton(model(1.0), model(2.0)), model(2.0))
    assert onnx.numpy_helper.to_array(kept.graph.initializer[0])[0] == 1.0


def test_a_model_is_written_over_itself_and_what_is_linked_to_its_weights_stays(tmp_path):
    """As packaging does with a copy whose weights are a link to the bundle's."""
    weight = numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(64, 64), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    onnx_weights.save(model, tmp_path / "model.onnx", aside=0)
    place = tmp_path / "copy"
    place.mkdir()
    (place / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    onnx_weights.take_along(tmp_path / "model.onnx", place / "model.onnx")
    before = (tmp_path / "model.onnx.data").read_bytes()
    onnx_weights.save(onnx_weights.load(place / "model.onnx", aside=0), place / "model.onnx", aside=0)
    assert (tmp_path / "model.onnx.data").read_bytes() == before
    assert (place / "model.onnx.data").read_bytes() == before


def test_weights_in_two_folders_run_where_they_lie(tmp_path):
    """ONNX Runtime maps them; private memory of a session with copies of them would be larger by their size."""
    import onnxruntime  # noqa: F401  # its own memory is not the session's

    side = 2048
    tensors = []
    for name in "vw":
        (tmp_path / name).mkdir()
        spill = onnx_weights.Spill(tmp_path / name / "weights")
        tensors.append(onnx.TensorProto(name=name, data_type=1, dims=[side, side]))
        spill.keep(tensors[-1], np.eye(side, dtype=np.float32) * (2 if name == "v" else 3))
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", side]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    before = _private()
    session = make_session(model, threads=1)
    x = np.arange(side, dtype=np.float32)[None]
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], 6 * x)
    assert _private() - before < side * side * 4  # bytes of one of the two
    assert model.graph.initializer[0].external_data[0].value.startswith("/")  # the model itself is as it was


def _private() -> int:
    """Bytes of this process that are no file's."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes no advice on memory")
def test_what_was_looked_at_is_given_back_and_can_be_looked_at_again(tmp_path):
    array = np.random.default_rng(0).standard_normal(1 << 21).astype(np.float32)  # 8 MiB
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=array.shape)
    onnx_weights.Spill(tmp_path / "weights").keep(tensor, array)
    found = onnx_weights.values(tensor)
    before = mapped_mib(tmp_path / "weights")
    assert before == 0
    np.testing.assert_array_equal(found, array)
    assert mapped_mib(tmp_path / "weights") == 8
    onnx_weights.let_go()
    assert mapped_mib(tmp_path / "weights") == 0
    np.testing.assert_array_equal(found, array)


def mapped_mib(path: Path) -> int:
    """MiB of a mapped file that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith(str(path)))
    return int(next(line.split()[1] for line in lines[start:] if line.startswith("Rss:"))) >> 10


def test_a_session_has_the_memory_for_itself(dense, lowered, monkeypatch):
    asked = []
    monkeypatch.setattr(onnx_weights, "let_go", lambda: asked.append("once"))
    make_session(onnx_weights.load(dense))
    assert asked == ["once"]
