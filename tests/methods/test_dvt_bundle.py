"""DVT: the same commands as for every method, on a bundle of three models."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from dvt_support import lively_cascade, pixels, recipe, spread_thresholds

import vitprune
from vitprune import cli, console
from vitprune.bundle import Manifest, seal
from vitprune.errors import ExportError, LoadError, RecipeError
from vitprune.methods.dvt.members import again


@pytest.fixture(autouse=True)
def _plain_console():
    """The command line keeps its switches in one object; every test starts with them off."""
    yield
    console.settings = console.Settings()


@pytest.fixture(scope="module")
def cascade():
    return lively_cascade()


@pytest.fixture(scope="module")
def limits(cascade):
    return [round(limit, 6) for limit in spread_thresholds(cascade, pixels(24))]


@pytest.fixture(scope="module")
def root(tmp_path_factory, cascade, limits):
    """A folder with a checkpoint, a recipe, labelled images and a bundle exported from them on the command line."""
    folder = tmp_path_factory.mktemp("dvt")
    torch.save({"model": {f"module.{name}": value for name, value in cascade.state_dict().items()}}, folder / "weights.pth")
    chosen = recipe(limits, single_graph=True, validate={"samples": 24}).to_dict()
    chosen["model"]["args"]["mlp_ratio"] = 2
    (folder / "recipe.yaml").write_text(yaml.safe_dump(chosen))
    images = pixels(24)
    with torch.inference_mode():
        labels = cascade(torch.from_numpy(images))[2].argmax(1).numpy()
    np.savez(folder / "data.npz", images=images, labels=labels)
    arguments = ["export", "-r", str(folder / "recipe.yaml"), "--weights", str(folder / "weights.pth"), "-o", str(folder / "b")]
    assert cli.run([*arguments, "--data", str(folder / "data.npz"), "--quiet"]) == 0
    return folder


@pytest.fixture
def copy(root, tmp_path):
    shutil.copytree(root / "b", tmp_path / "b")
    return tmp_path / "b"


def document(capsys):
    return json.loads(capsys.readouterr().out)


def test_manifest_lists_every_model(root):
    bundle = vitprune.open_bundle(root / "b")
    names = ["exit1.onnx", "exit2.onnx", "exit3.onnx", "cascade.onnx"]
    assert bundle.model_files == names
    assert set(names) <= set(bundle.manifest.files)
    models = bundle.manifest.io["models"]
    assert [v["name"] for v in models["exit2.onnx"]["inputs"]] == ["image", "z1", "r1"]
    assert models["exit2.onnx"]["outputs"][2]["shape"] == ["batch", 4, 101, 101]
    assert models["cascade.onnx"]["inputs"][0]["shape"] == [1, 3, 56, 56]
    assert not any(str(root) in (root / "b" / name).read_text() for name in ("manifest.json", "recipe.yaml"))


def test_run_returns_the_logits_of_the_exit_that_answers(root, cascade, limits):
    x = pixels(24)
    result = vitprune.open_bundle(root / "b").run(x)
    oracle = vitprune.reference(cascade, recipe(limits))
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(x)).numpy()
    assert result.kept == []
    assert set(result.exits.tolist()) == {1, 2, 3}
    assert result.exits.tolist() == oracle.exits.tolist()
    np.testing.assert_allclose(result.logits, logits, atol=1e-4)


def test_wrong_input_shape(root):
    with pytest.raises(LoadError, match="VP603"):
        vitprune.open_bundle(root / "b").run(np.zeros((1, 3, 28, 28), np.float32))


@pytest.mark.parametrize("reference", ["stored", "auto"])
def test_validate_passes(root, reference, capsys):
    weights = ["--weights", str(root / "weights.pth")] if reference == "auto" else []
    assert cli.run(["validate", str(root / "b"), "--reference", reference, *weights, "--json"]) == 0
    found = document(capsys)
    assert {gate["name"] for gate in found["gates"]} == {"decisions", "logits_max_abs", "top1_agreement", "routing"}
    evidence = found["comparison"]["evidence"]
    assert sum(evidence["exits"]) == 24
    assert min(evidence["exits"]) > 0
    assert found["reference"].startswith("PyTorch" if weights else "stored")
    assert found["comparison"]["accuracy"]["dense"] == 100.0


def test_validate_without_the_checkpoint_uses_stored_samples(root, capsys, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert cli.run(["validate", str(root / "b"), "--json"]) == 0
    assert "weights.pth" in document(capsys)["reference"]
    with pytest.raises(LoadError, match="VP613"):
        vitprune.open_bundle(root / "b").run(pixels(1), backend="torch")


def test_validate_notices_a_wrong_member(copy, capsys):
    """A model of the right form with other weights fails the gates, even if no image reaches it."""
    import onnx

    model = onnx.load(str(copy / "exit3.onnx"))
    bias = next(t for t in model.graph.initializer if t.dims == [6])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    onnx.save(model, str(copy / "exit3.onnx"))
    manifest = Manifest.model_validate_json((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    seal(copy, manifest)
    assert cli.run(["validate", str(copy), "--reference", "stored", "--json"]) == 1
    failed = [gate["name"] for gate in document(capsys)["gates"] if not gate["passed"]]
    assert failed == ["logits_max_abs"]


def test_validate_notices_wrong_exits(copy):
    """Samples whose exits do not follow from the thresholds are illegal decisions."""
    arrays = dict(np.load(copy / "samples.npz"))
    arrays["exits"] = np.where(arrays["exits"] == 1, 2, 1)
    np.savez(copy / "samples.npz", **arrays)
    manifest = Manifest.model_validate_json((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    seal(copy, manifest)
    assert cli.run(["validate", str(copy), "--reference", "stored", "--quiet"]) == 1


@pytest.mark.parametrize("name", ["exit1.onnx", "exit2.onnx", "exit3.onnx"])
def test_a_missing_model_is_named(copy, name, capsys):
    (copy / name).unlink()
    assert cli.run(["validate", str(copy), "--json"]) == 2
    error = document(capsys)["error"]
    assert error["code"] == "VP601"
    assert name in error["message"]
    assert error["cause"]
    assert error["next_step"]


def test_a_model_the_manifest_does_not_list(copy, capsys):
    (copy / "exit2.onnx").unlink()
    manifest = Manifest.model_validate_json((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    seal(copy, manifest)
    assert cli.run(["validate", str(copy), "--reference", "stored", "--json"]) == 2
    error = document(capsys)["error"]
    assert error["code"] == "VP601"
    assert "exit2.onnx" in error["cause"]
    assert error["next_step"]


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_build_engines_rtx(copy, capsys):
    assert cli.run(["build-engine", str(copy), "--target", "rtx", "--batch", "1:2:4", "--json"]) == 0
    found = document(capsys)["engine"]
    assert found["engine"] == ["exit1.engine", "exit2.engine", "exit3.engine", "cascade.engine"]
    bundle = vitprune.open_bundle(copy)
    assert all(f"engines/rtx/{name}" in bundle.manifest.files for name in found["engine"])
    assert found["parts"][1]["facts"]["inputs"] == ["image", "z1", "r1"]
    assert found["parts"][1]["facts"]["outputs"] == ["logits", "z2", "r2"]


def test_build_engines_for_onnxruntime_and_run_them(copy):
    from vitprune.methods.dvt.host import open_session

    assert cli.run(["build-engine", str(copy), "--target", "onnxruntime-cpu", "--quiet"]) == 0
    bundle = vitprune.open_bundle(copy)
    facts = json.loads((copy / "engines/onnxruntime-cpu/engine.json").read_text())["parts"]
    assert facts[2]["facts"]["attention"] == 2  # the last member hands no logits on, so its attention can be fused
    x = pixels(8)
    ours, theirs = open_session(bundle, "onnxruntime", bundle.engine_path("onnxruntime-cpu")).run(x), bundle.run(x)
    assert ours.exits.tolist() == theirs.exits.tolist()
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)


def test_backend_that_cannot_run_a_cascade(root):
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    with pytest.raises(LoadError) as caught:
        vitprune.open_bundle(root / "b").run(pixels(1), backend="tensorrt-rtx")
    assert caught.value.code == "VP616"
    assert caught.value.next_step


def test_thresholds_command(root, capsys):
    data = str(root / "data.npz")
    assert cli.run(["thresholds", str(root / "b"), "--data", data, "--accuracy", "100", "--json"]) == 0
    exact = document(capsys)
    assert exact["accuracy"] == 100.0
    assert exact["judged_by"] == "labels"
    assert cli.run(["thresholds", str(root / "b"), "--data", data, "--budget", str(exact["mean_cost"] * 0.5), "--json"]) == 0
    cheap = document(capsys)
    assert cheap["mean_cost"] <= exact["mean_cost"] * 0.5
    assert cheap["accuracy"] < 100
    assert cli.run(["thresholds", str(root / "b"), "--data", data, "--json"]) == 2
    assert document(capsys)["error"]["code"] == "VP154"


def test_random_members_with_a_fixed_batch_in_padded_shapes(tmp_path):
    """Nothing varies inside a member, so padded shapes are the same graphs; a batch of 3 is fed in twos."""
    chosen = recipe([0.0, None], graph={"shapes": "padded", "batch": "2"}, validate={"samples": 3})
    chosen = chosen.with_("model.args.depth", 1)
    bundle = vitprune.export(None, chosen, tmp_path / "b", pretrained=False, seed=5)
    assert bundle.manifest.io["models"]["exit2.onnx"]["inputs"][1]["shape"] == [2, 50, 32]
    x = pixels(3)
    live = again(bundle.manifest.model["source"], bundle.recipe)
    with torch.inference_mode():
        first = live(torch.from_numpy(x))[0].numpy()
    result = bundle.run(x)
    assert result.exits.tolist() == [1, 1, 1]
    np.testing.assert_allclose(result.logits, first, atol=1e-5)
    assert cli.run(["validate", str(tmp_path / "b"), "--quiet"]) == 0
    np.testing.assert_allclose(bundle.run(x, backend="torch").logits, first, atol=1e-6)


def test_instance_whose_graphs_disagree_is_refused(cascade, tmp_path, monkeypatch):
    """The parity check at export looks at every exit; nothing is written when it fails."""
    from vitprune.methods.dvt import exporting

    def wrong(module, chosen, report, dense):
        return ["first", "second", "third"]

    def shifted(graphs, static):
        from vitprune.methods.dvt.host import torch_members

        good = torch_members(cascade)
        return [*good[:2], lambda feeds: {"logits": good[2](feeds)["logits"] + 1e-3}]

    monkeypatch.setattr(exporting, "member_graphs", wrong)
    monkeypatch.setattr(exporting, "_members", shifted)
    with pytest.raises(ExportError, match="VP330"):
        vitprune.export(cascade, recipe(), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_no_published_weights(tmp_path):
    with pytest.raises(ExportError) as caught:
        vitprune.export("deit_tiny_patch16_224", recipe(), tmp_path / "b")
    assert caught.value.code == "VP302"
    assert "--no-pretrained" in caught.value.next_step


def test_rewrite_is_refused(tmp_path):
    with pytest.raises(RecipeError) as caught:
        vitprune.rewrite(tmp_path / "dense.onnx", recipe(), tmp_path / "b")
    assert caught.value.code == "VP153"
    assert caught.value.next_step


def test_a_single_model_is_not_a_cascade():
    import timm

    module = timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=1)
    with pytest.raises(ExportError, match="VP314"):
        vitprune.reference(module, recipe())


def test_listed_as_a_method(capsys):
    assert cli.run(["methods", "--json"]) == 0
    listed = {entry["name"]: entry for entry in document(capsys)["methods"]}
    assert listed["dvt"]["training"] == "required"
    assert "models" in listed["dvt"]["varies"]


def test_shipped_recipe_loads():
    chosen = vitprune.Recipe.load("dvt_deit_small")
    assert chosen.prune.grids == [7, 10, 14]
    assert chosen.prune.thresholds == [0.8, 0.7]


def test_the_rule_in_triton_answers_as_the_bundle(root, tmp_path, monkeypatch):
    """model.py as the server would run it: a stand-in for the server's module runs the members on ONNX Runtime."""
    import importlib.util
    import sys
    from types import SimpleNamespace

    from vitprune.backends.onnxruntime import make_session
    from vitprune.device.pbtxt import parsed
    from vitprune.device.triton import package_triton

    bundle = vitprune.open_bundle(root / "b")
    names = package_triton(bundle, tmp_path)
    rule = bundle.manifest.name
    assert names == [f"{rule}-exit1", f"{rule}-exit2", f"{rule}-exit3", rule]
    sessions = {name: make_session((tmp_path / name / "1" / "model.onnx").read_bytes()) for name in names[:3]}
    asked = []

    class Request:
        def __init__(self, model_name, requested_output_names, inputs, preferred_memory):
            self.name, self.outputs, self.feeds = model_name, requested_output_names, {one.name: one.array for one in inputs}

        def exec(self):
            asked.append((self.name, len(self.feeds["image"])))
            found = dict(zip(self.outputs, sessions[self.name].run(self.outputs, self.feeds), strict=True))
            return SimpleNamespace(has_error=lambda: False, tensors={name: Tensor(name, value) for name, value in found.items()})

    class Tensor:
        def __init__(self, name, array):
            self.name, self.array = name, array

        def as_numpy(self):
            return self.array

    server = SimpleNamespace(
        InferenceRequest=Request, Tensor=Tensor, PreferredMemory=lambda kind, place: None, TRITONSERVER_MEMORY_CPU=0,
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(tensors={one.name: one for one in output_tensors}, error=error),
        get_input_tensor_by_name=lambda request, name: request.tensors[name], get_output_tensor_by_name=lambda answer, name: answer.tensors[name],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    spec = importlib.util.spec_from_file_location("served", tmp_path / rule / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = parsed((tmp_path / rule / "config.pbtxt").read_text())
    assert [entry["name"] for entry in config["output"]] == ["logits", "exit"]
    served = module.TritonPythonModel()
    parameters = {entry["key"]: entry["value"] for entry in config["parameters"]}
    served.initialize({"model_config": json.dumps({"parameters": parameters})})
    images = bundle.samples()["images"]
    expected = bundle.run(images)
    assert set(expected.exits) == {1, 2, 3}
    requests = [SimpleNamespace(tensors={"image": Tensor("image", part)}) for part in (images[:1], images)]
    for answer, part in zip(served.execute(requests), (slice(0, 1), slice(None)), strict=True):
        np.testing.assert_allclose(answer.tensors["logits"].as_numpy(), expected.logits[part], atol=1e-5)
        np.testing.assert_array_equal(answer.tensors["exit"].as_numpy()[:, 0], expected.exits[part])
    whole = dict(asked[-3:])
    assert whole[f"{rule}-exit3"] == int((expected.exits == 3).sum()), "a member runs for the images that need it alone"
