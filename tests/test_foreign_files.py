"""Bundles that somebody else made or changed: nothing of them runs, nothing is written outside, nothing damaged passes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitprune import backends, cli, engines, targets
from vitprune.backends._engines import find
from vitprune.bundle import check_output, folder_in_place, open_bundle
from vitprune.bundle_parts.manifest import Manifest
from vitprune.errors import LoadError, RecipeError, TargetError
from vitprune.exporting.inspecting import inspect
from vitprune.support import trust

TARGET = "onnxruntime-cpu"


def resealed(bundle: Path, **changes: Any) -> None:
    """Change the manifest and seal it again, as somebody who means it would."""
    body = json.loads((bundle / "manifest.json").read_text()) | changes
    (bundle / "manifest.json").write_text(Manifest.model_construct(**body).sealed().text())


def refused(code: str, bundle: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        open_bundle(bundle)
    assert caught.value.code == code
    return caught.value


@pytest.fixture(scope="module")
def built(made_bundle, tmp_path_factory) -> Path:
    """A bundle with an engine for ONNX Runtime."""
    folder = Path(shutil.copytree(made_bundle.path, tmp_path_factory.mktemp("built") / "bundle"))
    engines.build_engine(open_bundle(folder), targets.load(TARGET), plugin="none")
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_the_engine_of_a_target_is_validated(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["validate", str(copy), "--target", TARGET, "--reference", "stored", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    engine = json.loads((copy / "engines" / TARGET / "engine.json").read_text())
    assert engine["engine_sha256"] in json.dumps(document)


def test_a_target_without_engine_or_of_another_backend_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["validate", str(copy), "--target", "desktop", "--reference", "stored", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP630"
    with pytest.raises(LoadError, match="VP630"):
        backends.session(open_bundle(copy), "torch", TARGET)


@pytest.mark.parametrize("name", ["model.onnx", "engine.json"])
def test_a_changed_engine_is_neither_run_nor_shown_as_fine(copy: Path, name: str) -> None:
    file = copy / "engines" / TARGET / name
    file.write_bytes(file.read_bytes() + b" ")
    bundle = open_bundle(copy)
    with pytest.raises(LoadError, match="VP629"):
        backends.session(bundle, "onnxruntime", TARGET)
    assert inspect(bundle)["engines"][TARGET]["state"] == f"engines/{TARGET}/{name}: its sha256 does not match the manifest"


def test_a_whole_engine_is_shown_as_whole(copy: Path) -> None:
    assert inspect(open_bundle(copy))["engines"][TARGET]["state"] == "whole"


@pytest.mark.parametrize("name", ["libvitprune_plugin.so", "json.py", "sub/extra"])
def test_a_file_in_an_engine_that_nobody_lists_is_refused(copy: Path, name: str) -> None:
    file = copy / "engines" / TARGET / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("planted")
    with pytest.raises(LoadError, match="VP629") as error:
        backends.session(open_bundle(copy), "onnxruntime", TARGET)
    assert "does not list it" in error.value.cause


def test_an_engine_folder_that_was_dropped_in_is_refused(copy: Path) -> None:
    shutil.copytree(copy / "engines" / TARGET, copy / "engines" / "dropped")
    with pytest.raises(LoadError, match="VP629"):
        backends.session(open_bundle(copy), "onnxruntime", "dropped")
    with pytest.raises(LoadError, match="VP629"):
        find(open_bundle(copy), "onnxruntime")


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "a/b", "", ".hidden", 3, None])
def test_an_engine_or_plugin_is_named_plainly(copy: Path, name: Any) -> None:
    for place in ("engine", "plugin"):
        file = copy / "engines" / TARGET / "engine.json"
        text = file.read_text()
        document = json.loads(text)
        plugin = {"file": name, "sha256": "0" * 64, "name": "TokenSample", "version": "1", "namespace": "vitprune"}
        changed = (
            document | {"engine": name} if place == "engine" else document | {"facts": document["facts"] | {"plugin": plugin}}
        )
        file.write_text(json.dumps(changed))
        open_bundle(copy).list_engine(TARGET)
        with pytest.raises(LoadError, match="VP638"):
            backends.session(open_bundle(copy), "onnxruntime", TARGET)
        file.write_text(text)


@pytest.mark.parametrize("key", ["name", "engine_file"])
@pytest.mark.parametrize("text", ["../x", "/tmp/x", "a/b", ".x", "x\ny", "", "engine.json"])
def test_a_target_names_plain_files(tmp_path: Path, key: str, text: str) -> None:
    if (key, text) == ("name", "engine.json"):
        pytest.skip("a folder may be called so")
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"name": "mine", "summary": "s", "backend": "onnxruntime", key: text}))
    with pytest.raises(TargetError, match="VP203"):
        targets.load(str(file))


@pytest.mark.parametrize("name", ["reports", "engines"])
def test_links_in_a_bundle_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    shutil.move(copy / name, tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    assert name in refused("VP601", copy).message


@pytest.mark.parametrize("name", ["model.onnx", "recipe.yaml", "samples.npz"])
def test_a_manifest_lists_what_a_bundle_is(copy: Path, name: str) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    del files[name]
    resealed(copy, files=files)
    assert refused("VP601", copy).cause == f"it does not list {name}"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_lists_files_inside(copy: Path, name: str) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    resealed(copy, files=files | {name: "0" * 64})
    refused("VP601", copy)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg", "cache_dir", "pretrained"])
def test_a_manifest_cannot_make_timm_read_files(copy: Path, tmp_path: Path, key: str) -> None:
    model = json.loads((copy / "manifest.json").read_text())["model"]
    model["source"]["args"][key] = {"file": str(tmp_path / "x")} if "cfg" in key else str(tmp_path / "x")
    resealed(copy, model=model)
    assert key in refused("VP601", copy).cause
    from vitprune.recipe import Recipe

    with pytest.raises(RecipeError, match="VP102"):
        Recipe.load({"model": {"name": "vit_tiny_patch16_224", "args": {key: "x"}}, "prune": {"method": "ats", "stages": [1]}})


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": [{"block": "x"}]}, {"io": {}}, {"io": {"inputs": [], "outputs": []}}, {"preprocessing": {"input_size": [3, -1, 64]}},
        {"preprocessing": {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [1, 0, 1]}},
        {"preprocessing": {"input_size": [1 << 20, 64, 64]}}, {"model": {"source": {"kind": "timm"}, "geometry": {}}}, {"model": {}},
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    resealed(copy, **changes)
    assert refused("VP601", copy).cause


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', '{"name": 1, "name": 2}', '"\\ud800"', "9" * 10_000, ""])
def test_odd_json_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    refused("VP601", copy)


def relisted(bundle: Path, name: str) -> None:
    from vitprune.support.hashing import sha256_of

    files = json.loads((bundle / "manifest.json").read_text())["files"]
    resealed(bundle, files=files | {name: sha256_of(bundle / name)})


def test_the_recipe_of_a_bundle_extends_nothing(copy: Path) -> None:
    (copy / "recipe.yaml").write_text("extends: /etc/passwd\n" + (copy / "recipe.yaml").read_text())
    relisted(copy, "recipe.yaml")
    assert "extends" in refused("VP601", copy).cause


@pytest.mark.parametrize("change", ["no logits", "other images", "nan", "pickle", "cut off", "bomb"])
def test_samples_fit_the_manifest(copy: Path, change: str) -> None:
    arrays = open_bundle(copy).samples()
    file = copy / "samples.npz"
    if change == "no logits":
        del arrays["logits"]
    elif change == "other images":
        arrays["images"] = arrays["images"][:, :, :32]
    elif change == "nan":
        arrays["logits"][0, 0] = np.nan
    elif change == "pickle":
        arrays["extra"] = np.asarray([{}], object)
    np.savez(file, **arrays)
    if change == "cut off":
        file.write_bytes(file.read_bytes()[:-300])
    elif change == "bomb":
        bomb(file)
    relisted(copy, "samples.npz")
    with pytest.raises(LoadError, match="VP601"):
        open_bundle(copy).samples()


def bomb(file: Path) -> None:
    """An .npz of some kilobytes whose header promises 3 GB."""
    import zipfile

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (3000000000,), }".ljust(127) + b"\n"
        archive.writestr("images.npy", header + bytes(1 << 20))


def test_force_replaces_bundles_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    check_output(copy, force=True)
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "A web app", "icons": []}')
    (app / "index.html").write_text("precious")
    for place, why in ((app, "valid manifest"), (tmp_path / "link", "symbolic link")):
        if place.name == "link":
            place.symlink_to(copy)
        with pytest.raises(RecipeError, match="VP106") as error, folder_in_place(place, force=True):
            pass
        assert why in error.value.cause
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="VP106") as error:
        check_output(copy, force=True)
    assert "notes.txt" in error.value.cause
    assert (app / "index.html").read_text() == "precious"


def test_of_two_writers_one_gets_the_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="VP106"), folder_in_place(tmp_path / "out") as one:
        (one / "who").write_text("first")
        with folder_in_place(tmp_path / "out") as other:
            (other / "who").write_text("second")
    assert (tmp_path / "out" / "who").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_builds_at_once_list_both_engines(bundle_copy: Path) -> None:
    """Both have read the manifest before either writes it."""
    opened = [open_bundle(bundle_copy) for _ in range(2)]
    started = threading.Barrier(2)

    def build(number: int) -> None:
        target = targets.load(TARGET).model_copy(update={"name": f"cpu{number}"})
        started.wait()
        engines.build_engine(opened[number], target)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = open_bundle(bundle_copy).manifest.files
    assert {name.split("/")[1] for name in files if name.startswith("engines/")} == {"cpu0", "cpu1"}


def test_a_bundle_that_was_replaced_meanwhile_is_not_written_to(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    resealed(bundle_copy, name="another")
    with pytest.raises(LoadError, match="VP608"):
        engines.build_engine(bundle, targets.load(TARGET))
    assert not (bundle_copy / "engines").exists()


def test_builders_import_nothing_from_the_current_folder(bundle_copy: Path, tmp_path: Path) -> None:
    for name in ("json", "onnx", "yaml", "numpy", "ctypes", "sitecustomize", "vitprune"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write('{name} ')\nraise ImportError\n")
    code = "import sys; sys.path.remove(''); from vitprune.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build-engine", str(bundle_copy), "--target", TARGET], cwd=tmp_path, text=True,
        capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": str(Path(engines.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "RAN").exists(), (tmp_path / "RAN").read_text()


def test_native_code_of_elsewhere_needs_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitprune.backends._engines import BuiltEngine
    from vitprune.backends._native import require_ours

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = tmp_path / "libvitprune_plugin.so"
    library.write_bytes(b"native")
    digest = hashlib.sha256(b"native").hexdigest()
    with pytest.raises(LoadError, match="VP646"):
        require_ours(BuiltEngine(library, {}), library, digest)
    require_ours(BuiltEngine(library, {}, foreign=True), library, digest)
    trust.remember(library)
    require_ours(BuiltEngine(library, {}), library, digest)


def test_text_of_files_does_not_reach_the_terminal_as_commands(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resealed(copy, name="\x1b]0;owned\x07\x1b[2J[/bold]\u202egnp")
    assert cli.run(["inspect", str(copy)]) == 0
    shown = capsys.readouterr().err
    assert not set(shown) & set("\x1b\x07\u202e")
    assert "\\x1b]0;owned\\x07" in shown
    assert "[/bold]" in shown


@pytest.mark.parametrize("fault", ["input sizes", "weights elsewhere", "a node that does not fit"])
def test_a_graph_that_cannot_run_is_named_whatever_understanding_it_met(
    tiny_dense, tmp_path: Path, fault: str, monkeypatch
) -> None:
    import onnx

    from vitprune.exporting.runnable import require_runnable
    from vitprune.graph import surgery
    from vitprune.pipelines import rewrite
    from vitprune.recipe import Recipe

    model = onnx.ModelProto.FromString(tiny_dense.SerializeToString())
    file = tmp_path / "dense.onnx"
    file.write_bytes(model.SerializeToString())
    require_runnable(file)
    if fault == "input sizes":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    elif fault == "weights elsewhere":
        tensor = next(one for one in model.graph.initializer if len(one.raw_data) > 64)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "missing.bin"
    else:
        node = next(one for one in model.graph.node if one.op_type == "MatMul")
        node.input[1] = model.graph.input[0].name
    file.write_bytes(model.SerializeToString())

    def fails(*_: object, **__: object) -> None:
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr(surgery, "rewrite", fails)
    with pytest.raises(LoadError) as error:
        rewrite(file, Recipe.load({"prune": {"method": "ats", "stages": [1]}}), tmp_path / "out")
    assert error.value.code in ("VP604", "VP612")
    file.write_bytes(tiny_dense.SerializeToString())
    with pytest.raises(TypeError):  # a defect stays one
        rewrite(file, Recipe.load({"prune": {"method": "ats", "stages": [1]}}), tmp_path / "out")


def test_a_manifest_that_names_another_input_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    io = json.loads((copy / "manifest.json").read_text())["io"]
    io["inputs"][0]["name"] = "another"
    resealed(copy, io=io)
    assert cli.run(["validate", str(copy), "--reference", "stored"]) == 2
    assert "VP617" in capsys.readouterr().err
