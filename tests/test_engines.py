"""Engines: built in a child process, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from vitprune import backends, engines, targets
from vitprune.engines import building, requirements
from vitprune.errors import BuildError, RecipeError, TargetError
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.pipelines import open_bundle

RTX = backends.get("tensorrt_rtx").missing()
needs_rtx = pytest.mark.skipif(bool(RTX), reason=RTX)


def test_onnxruntime_engine_is_fused_and_gives_the_same(bundle_copy):
    bundle = open_bundle(bundle_copy)
    seen = []
    document = engines.build_engine(bundle, targets.load("onnxruntime-cpu"), report=seen.append)
    assert seen
    assert (document["facts"]["attention"], document["facts"]["gelu"]) == (4, 4)
    again = open_bundle(bundle_copy)
    assert "engines/onnxruntime-cpu/model.onnx" in again.manifest.files
    x = again.samples()["images"][:8]
    engine = backends.get("onnxruntime").Session(again, again.engine_path("onnxruntime-cpu") / "model.onnx")
    ours, theirs = engine.run(x), again.run(x)
    assert np.abs(ours.logits - theirs.logits).max() < 1e-4
    assert all(np.array_equal(a, b) for a, b in zip(ours.kept, theirs.kept, strict=True))
    with pytest.raises(RecipeError, match="VP106"):
        engines.build_engine(again, targets.load("onnxruntime-cpu"))


def test_specialised_graph_has_no_functions_and_as_many_fused_attentions_as_blocks(made_bundle):
    import onnx

    special, facts = specialise(onnx.load(str(made_bundle.model_path)), keep_outputs=False)
    assert not special.functions
    assert facts["attention"] == 4
    assert len(special.graph.output) == 1


@pytest.mark.rtx
@needs_rtx
@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_nvidias_builder_takes_the_graph(shapes, tmp_path):
    import vitprune
    from helpers import ats, tiny

    recipe = vitprune.Recipe.load({**ats(stages=[1, 2], num_samples=30), "graph": {"shapes": shapes}})
    bundle = vitprune.export(tiny(), recipe, tmp_path / "bundle")
    document = engines.build_engine(bundle, targets.load("rtx"))
    assert document["engine_bytes"] == (bundle.engine_path("rtx") / "model.engine").stat().st_size > 10_000
    assert document["facts"]["outputs"] == ["logits"]
    assert not [path for path in bundle.engine_path("rtx").parent.iterdir() if path.name.startswith(".")]


@pytest.mark.rtx
@needs_rtx
def test_a_refused_graph_is_reported_with_the_parsers_words(bundle_copy, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("NonZero", ["image"], ["logits"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.INT64, [2, "n"])],
    )
    path = tmp_path / "bad.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    request = {
        "backend": "tensorrt_rtx",
        "model": str(path),
        "output": str(tmp_path / "e"),
        "log": str(tmp_path / "l"),
        "batch": [1, 1, 1],
    }
    with pytest.raises(BuildError) as error:
        building.run_child(request, lambda text: None, 120)
    assert error.value.code == "VP510"
    assert "NonZero" in error.value.cause


def slow_request(tmp_path):
    """A request whose child waits for ever: its model is a pipe nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return {
        "backend": "onnxruntime",
        "model": str(tmp_path / "pipe"),
        "output": str(tmp_path / "e"),
        "log": str(tmp_path / "l"),
        "batch": [1, 1, 1],
    }


def children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stream:
                    fields = stream.read().rsplit(")", 1)[1].split()
                if int(fields[1]) == os.getpid() and fields[0] != "Z":
                    found.append(int(entry))
            except OSError:
                continue
    return found


def test_a_killed_builder_is_named_by_its_signal(tmp_path):
    before = set(children())

    def kill() -> None:
        while not (new := set(children()) - before):
            time.sleep(0.05)
        os.kill(new.pop(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BuildError) as error:
        building.run_child(slow_request(tmp_path), lambda text: None, 60)
    killer.join()
    assert error.value.code == "VP502"
    assert "SIGKILL" in error.value.message
    assert "workspace" in error.value.next_step


def test_timeout_and_interrupt_stop_the_child(tmp_path, monkeypatch):
    before = set(children())
    with pytest.raises(BuildError, match="VP501"):
        building.run_child(slow_request(tmp_path), lambda text: None, 0.5)
    assert set(children()) <= before


def test_ctrl_c_during_a_build_leaves_no_engine(bundle_copy, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "run_child", interrupted)
    before = sorted(path.name for path in bundle_copy.iterdir())
    with pytest.raises(KeyboardInterrupt):
        engines.build_engine(open_bundle(bundle_copy), targets.load("onnxruntime-cpu"))
    assert sorted(path.name for path in bundle_copy.iterdir()) == before
    open_bundle(bundle_copy)


def with_old_engine(path):
    """A bundle with an engine of other bytes than a build would give."""
    bundle = open_bundle(path)
    folder = bundle.engine_path("onnxruntime-cpu")
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"old")
    bundle.list_engine("onnxruntime-cpu")
    return bundle, folder


@pytest.mark.parametrize("failure", ["refused", "interrupted", "manifest"])
def test_a_build_that_fails_keeps_the_old_engine(bundle_copy, monkeypatch, failure):
    """Also when the engine is complete and the manifest cannot be written any more."""
    bundle, folder = with_old_engine(bundle_copy)
    manifest = (bundle_copy / "manifest.json").read_bytes()
    seen = []

    def fails(request, *_args):
        seen.append((folder / "model.onnx").read_bytes())
        raise BuildError(504, "the builder failed") if failure == "refused" else KeyboardInterrupt

    def full(*_args):
        seen.append((folder / "model.onnx").read_bytes())
        raise OSError(28, "No space left on device")

    if failure == "manifest":
        monkeypatch.setattr("vitprune.bundle.write_atomic", full)
    else:
        monkeypatch.setattr(building, "run_child", fails)
    raised = {"refused": BuildError, "interrupted": KeyboardInterrupt, "manifest": RecipeError}[failure]
    with pytest.raises(raised):
        engines.build_engine(bundle, targets.load("onnxruntime-cpu"), force=True)
    assert len(seen) == 1
    assert (seen[0] == b"old") == (failure != "manifest")
    assert [path.name for path in folder.parent.iterdir()] == ["onnxruntime-cpu"]
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("model.onnx", b"old")]
    assert (bundle_copy / "manifest.json").read_bytes() == manifest


def test_force_replaces_the_old_engine(bundle_copy):
    bundle, folder = with_old_engine(bundle_copy)
    (folder / "stale").write_text("")
    document = engines.build_engine(bundle, targets.load("onnxruntime-cpu"), force=True)
    assert document["engine_bytes"] == (folder / "model.onnx").stat().st_size > 1000
    assert not (folder / "stale").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["onnxruntime-cpu"]
    listed = open_bundle(bundle_copy).manifest.files
    assert listed["engines/onnxruntime-cpu/model.onnx"] == document["engine_sha256"]


def test_another_tensorrt_than_the_one_here_is_refused():
    class Installed:
        def version(self):
            return "10.16.2.10"

    desktop = targets.load("desktop")
    requirements.require_release(targets.choose(desktop), Installed())
    requirements.require_release(targets.choose(desktop, tensorrt="10.16"), Installed())
    with pytest.raises(TargetError, match="VP213") as error:
        requirements.require_release(targets.choose(desktop, tensorrt="11.4"), Installed())
    assert "10.16.2.10, not 11.4" in error.value.message


def test_targets_that_cannot_be_built(monkeypatch):
    with pytest.raises(TargetError) as error:
        targets.load("jetson-orinn")
    assert error.value.code == "VP202"
    assert "jetson-orin" in error.value.cause
    monkeypatch.setattr(backends.get("tensorrt_rtx"), "missing", lambda: "tensorrt_rtx is not installed")
    with pytest.raises(TargetError) as error:
        requirements.require_backend(targets.load("rtx"))
    assert error.value.code == "VP211"
    assert "vitprune[rtx]" in error.value.next_step


def test_fixed_batch_refuses_another_profile(tmp_path):
    import vitprune
    from helpers import ats, tiny

    recipe = vitprune.Recipe.load({**ats(stages=[1]), "graph": {"batch": 2}})
    bundle = vitprune.export(tiny(), recipe, tmp_path / "bundle")
    with pytest.raises(RecipeError, match="VP108"):
        engines.build_engine(bundle, targets.load("onnxruntime-cpu"), batch=(1, 4, 8))


def test_engine_document_is_json(bundle_copy):
    bundle = open_bundle(bundle_copy)
    engines.build_engine(bundle, targets.load("onnxruntime-cpu"))
    document = json.loads((bundle.engine_path("onnxruntime-cpu") / "engine.json").read_text())
    assert document["model_sha256"] == bundle.manifest.files["model.onnx"]
