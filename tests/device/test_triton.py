"""Triton model repositories: the configuration is held against the model, and the model answers as the bundle does."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vitprune import cli, open_bundle
from vitprune.backends.onnxruntime import make_session
from vitprune.device import triton, triton_config
from vitprune.device.pbtxt import parsed, written
from vitprune.errors import ExportError, RecipeError, TargetError


@pytest.fixture(scope="module")
def repository(made_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert cli.run(["package", str(made_bundle.path), "--triton", str(folder)]) == 0
    return folder


def test_the_model_is_plain_and_answers_as_the_bundle(made_bundle, repository):
    place = repository / made_bundle.manifest.name
    model = onnx.load(str(place / "1" / "model.onnx"))
    assert not model.functions
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    stored = made_bundle.samples()
    for count in (1, 3):  # any batch up to the largest
        (found,) = make_session(model.SerializeToString()).run(None, {"image": stored["images"][:count]})
        np.testing.assert_allclose(found, stored["logits"][:count], atol=1e-4)
    config = parsed((place / "config.pbtxt").read_text())
    assert config == {
        "name": made_bundle.manifest.name, "backend": "onnxruntime", "default_model_filename": "model.onnx", "max_batch_size": 8,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 64, 64]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": 1000},
    }  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        triton.package_triton(made_bundle, repository)
    assert caught.value.code == "VP106"
    assert triton.package_triton(made_bundle, repository, force=True) == [made_bundle.manifest.name]
    assert [path.name for path in repository.iterdir()] == [made_bundle.manifest.name]


PLANTED = {
    "dims": ("dims: [ 10 ]", "dims: [ 11 ]"),
    "rank": ("dims: [ 3, 64, 64 ]", "dims: [ 1, 3, 64, 64 ]"),
    "type": ("data_type: TYPE_FP32", "data_type: TYPE_FP16"),
    "name of an input": ('name: "image"', 'name: "images"'),
    "batch": ("max_batch_size: 8", "max_batch_size: 0"),
    "no output": ('output {\n  name: "logits"\n  data_type: TYPE_FP32\n  dims: [ 10 ]\n}\n', ""),
    "no field": ("max_batch_size", "max_batchsize"),
    "a field twice": ("max_batch_size: 8", "max_batch_size: 8\nmax_batch_size: 8"),
    "no type": ("TYPE_FP32", "FP32"),
    "not closed": ("dims: [ 10 ]", "dims: [ 10 "),
    "text": ("max_batch_size: 8", 'max_batch_size: "8"'),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_wrong_configuration_is_seen(made_bundle, repository, tmp_path, what):
    import shutil

    place = tmp_path / made_bundle.manifest.name
    shutil.copytree(repository / made_bundle.manifest.name, place)
    triton_config.check(place)
    text, (right, wrong) = (place / "config.pbtxt").read_text(), PLANTED[what]
    assert right in text
    (place / "config.pbtxt").write_text(text.replace(right, wrong, 1))
    with pytest.raises(ExportError) as caught:
        triton_config.check(place)
    assert caught.value.code == "VP340"


def test_another_model_than_the_bundles_is_seen(made_bundle, repository, tmp_path):
    model = onnx.load(str(repository / made_bundle.manifest.name / "1" / "model.onnx"))
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.1), weights.name))
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ExportError, match="answers otherwise"):
        triton._same_answers(made_bundle, tmp_path / "model.onnx")


def test_a_fixed_batch_has_no_dynamic_batching():
    image = {"name": "image", "dtype": "float16", "shape": [4, 3, 64, 64]}
    config = triton_config.configuration(
        "m", "onnxruntime", [image], [{"name": "logits", "dtype": "float", "shape": [4, 10]}], (4, 4, 4)
    )
    assert config["max_batch_size"] == 0
    assert config["input"][0] == {"name": "image", "data_type": "TYPE_FP16", "dims": [4, 3, 64, 64]}
    assert "dynamic_batching" not in config
    assert parsed(written(config)) == config


def test_engines_of_tensorrt(bundle_copy, tmp_path):
    def engine(outputs=("logits",), **facts):
        place = bundle_copy / "engines" / "server"
        place.mkdir(parents=True, exist_ok=True)
        (place / "model.engine").write_bytes(b"an engine")
        document = {
            "engine": "model.engine",
            "backend": "tensorrt",
            "batch": [1, 2, 16],
            "facts": {"outputs": list(outputs), **facts},
        }
        (place / "engine.json").write_text(json.dumps(document))
        open_bundle(bundle_copy).list_engine("server")
        return open_bundle(bundle_copy)

    bundle = engine()
    names = triton.package_triton(bundle, tmp_path / "models")
    assert names == [bundle.manifest.name, f"{bundle.manifest.name}-server"]
    place = tmp_path / "models" / names[1]
    assert (place / "1" / "model.plan").read_bytes() == b"an engine"
    config = parsed((place / "config.pbtxt").read_text())
    assert (config["backend"], config["max_batch_size"]) == ("tensorrt", 16)
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}]
    plugin = {"file": "libvitprune_plugin.so", "sha256": "0" * 64, "name": "n", "version": "1", "namespace": "vitprune"}
    with pytest.raises(TargetError, match="plugin library"):
        triton.package_triton(engine(plugin=plugin), tmp_path / "more")
    with pytest.raises(TargetError, match="outputs"):
        triton.package_triton(engine(outputs=("logits", "kept_1")), tmp_path / "more")
    bundle = engine()
    (bundle_copy / "engines" / "server" / "model.engine").write_bytes(b"another")
    with pytest.raises(TargetError, match="damaged"):
        triton.package_triton(bundle, tmp_path / "more")


@pytest.fixture(scope="module")
def protobuf(tmp_path_factory):
    """Triton's own ModelConfig, out of its client's package, which cannot be installed beside what is used here."""
    folder = tmp_path_factory.mktemp("client")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "tritonclient>=2.70,<3"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=300)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip("pip could not fetch tritonclient, which has Triton's protobuf")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (folder / "model_config_pb2.py").write_bytes(wheel.read("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", folder / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generated for an older runtime of protobuf, which it says
        spec.loader.exec_module(module)
    return module


def test_configurations_are_read_by_tritons_own_protobuf(made_bundle, repository, protobuf):
    from google.protobuf import text_format

    text = (repository / made_bundle.manifest.name / "config.pbtxt").read_text()
    ours, theirs = parsed(text), text_format.Parse(text, protobuf.ModelConfig())
    assert (theirs.name, theirs.backend, theirs.max_batch_size) == (ours["name"], ours["backend"], ours["max_batch_size"])
    assert [list(entry.dims) for entry in theirs.input] == [entry["dims"] for entry in ours["input"]]
    assert [protobuf.DataType.Name(entry.data_type) for entry in theirs.output] == [
        entry["data_type"] for entry in ours["output"]
    ]
    assert list(theirs.dynamic_batching.preferred_batch_size) == ours["dynamic_batching"]["preferred_batch_size"]
    rule = {"name": "m", "backend": "python", "parameters": [{"key": "k", "value": {"string_value": '[0.5, "a\\"b"]'}}]}
    read = text_format.Parse(written(rule), protobuf.ModelConfig())
    assert read.parameters["k"].string_value == rule["parameters"][0]["value"]["string_value"]
    for name, (right, wrong) in PLANTED.items():  # what our reader refuses for its form, so does theirs
        if name in ("no field", "a field twice", "no type", "not closed", "text"):
            with pytest.raises(text_format.ParseError):
                text_format.Parse(text.replace(right, wrong, 1), protobuf.ModelConfig())
