"""The command line: exit codes, JSON, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny
from vitprune import cli, console

SIZES = "{img_size: 64, patch_size: 8, embed_dim: 64, depth: 4, num_heads: 4, num_classes: 10}"


@pytest.fixture(autouse=True)
def _fresh_settings():
    before = vars(console.settings).copy()
    yield
    for name, value in before.items():
        setattr(console.settings, name, value)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: vit_tiny_patch16_224, args: {SIZES}}}\nprune: {{method: ats, stages: [1, 2], num_samples: 30}}\n"
    )
    return path


def call(capsys, *arguments: str) -> tuple[int, dict]:
    """Run with --json; returns the exit code and the one document on stdout."""
    code = cli.run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def failing(capsys, *arguments: str) -> dict:
    code, document = call(capsys, *arguments)
    assert code == 2
    error = document["error"]
    assert error["message"]
    assert error["next_step"] or error["cause"]
    return error


def test_export_build_validate(capsys, recipe, tmp_path):
    out = tmp_path / "out"
    code, document = call(capsys, "export", "--no-pretrained", "--seed", 0, "-r", recipe, "-o", out)
    assert (code, document["status"]) == (0, "ok")
    code, document = call(capsys, "build-engine", out, "--target", "onnxruntime-cpu")
    assert (code, document["engine"]["target"]) == (0, "onnxruntime-cpu")
    code, document = call(capsys, "validate", out, "--junit", tmp_path / "junit.xml")
    assert (code, document["status"]) == (0, "passed")
    assert "<testsuites" in (tmp_path / "junit.xml").read_text()
    assert failing(capsys, "export", "--no-pretrained", "-r", recipe, "-o", out)["code"] == "VP106"
    code, _ = call(capsys, "export", "--no-pretrained", "-r", recipe, "-o", out, "--force")
    assert code == 0
    assert not (out / "engines").exists()


def test_a_failed_gate_is_exit_1(capsys, bundle_copy):
    from vitprune.bundle import open_bundle

    bundle = open_bundle(bundle_copy)
    arrays = bundle.samples()
    arrays["logits"] = arrays["logits"] + 0.1
    np.savez(bundle_copy / "samples.npz", **arrays)
    bundle.add_files(["samples.npz"])
    code, document = call(capsys, "validate", bundle_copy, "--reference", "stored")
    assert (code, document["status"]) == (1, "failed")
    code, _ = call(capsys, "validate", bundle_copy, "--reference", "stored", "--exit-zero")
    assert code == 0


def test_rewrite_of_a_foreign_graph(capsys, tmp_path, recipe, tiny_dense):
    import onnx

    onnx.save(tiny_dense, str(tmp_path / "dense.onnx"))
    code, document = call(capsys, "rewrite", tmp_path / "dense.onnx", "-r", recipe, "-o", tmp_path / "out")
    assert code == 0
    assert document["notes"]["check"]["canonical_max_abs"] < 1e-5
    code, document = call(capsys, "validate", tmp_path / "out")
    assert code == 0
    assert document["evidence"] == "graph = reference on CPU"
    assert document["reference"] == "stored results of the reference built from the graph"


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "cnn"])
def test_bad_onnx(capsys, tmp_path, recipe, tiny_dense, damage):
    path = tmp_path / "dense.onnx"
    data = tiny_dense.SerializeToString()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        path.write_text("this is not ONNX")
    elif damage == "cnn":
        import timm

        from vitprune.exporting.dense import dense_onnx
        from vitprune.recipe import Recipe

        net = timm.create_model("resnet18", num_classes=3).eval()
        path.write_bytes(dense_onnx(net, (3, 64, 64), Recipe.load(recipe)).SerializeToString())
    error = failing(capsys, "rewrite", path, "-r", recipe, "-o", tmp_path / "out")
    assert error["code"] == ("VP321" if damage == "cnn" else "VP604")
    assert not (tmp_path / "out").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".out")]


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (["prune.num_sampels=3"], "VP102"),
        (["prune.stages=[1,9]"], "VP110"),
        (["prune.num_samples=0"], "VP102"),
        (["prune.num_samples=-4"], "VP102"),
    ],
)
def test_bad_recipes_leave_nothing(capsys, tmp_path, recipe, overrides, code):
    arguments = [argument for text in overrides for argument in ("--set", text)]
    assert failing(capsys, "export", "--no-pretrained", "-r", recipe, "-o", tmp_path / "out", *arguments)["code"] == code
    assert not (tmp_path / "out").exists()


def test_bad_models(capsys, tmp_path, recipe):
    error = failing(capsys, "export", "deit_smal_patch16_224", "--no-pretrained", "-r", recipe, "-o", tmp_path / "out")
    assert error["code"] == "VP300"
    assert "deit_small_patch16_224" in error["cause"]
    assert failing(capsys, "export", "-r", recipe, "-o", tmp_path / "out", "--weights", tmp_path / "none.pth")["code"] == "VP302"
    import torch

    torch.save(tiny(depth=2).state_dict(), tmp_path / "other.pth")
    error = failing(capsys, "export", "-r", recipe, "-o", tmp_path / "out", "--weights", tmp_path / "other.pth")
    assert error["code"] == "VP303"
    assert "blocks.2" in error["cause"]


def test_a_damaged_bundle_and_unwritable_outputs(capsys, bundle_copy, recipe, tmp_path):
    data = bytearray((bundle_copy / "model.onnx").read_bytes())
    data[1000] ^= 0x40
    (bundle_copy / "model.onnx").write_bytes(data)
    for command in (["validate", bundle_copy], ["build-engine", bundle_copy, "--target", "onnxruntime-cpu"]):
        error = failing(capsys, *command)
        assert error["code"] == "VP601"
        assert "model.onnx" in error["message"]
    (tmp_path / "file").write_text("in the way")
    assert failing(capsys, "export", "--no-pretrained", "-r", recipe, "-o", tmp_path / "file" / "out")["code"] == "VP107"
    assert failing(capsys, "validate", tmp_path / "nowhere")["code"] == "VP600"


def test_command_line_mistakes(capsys, made_bundle):
    assert failing(capsys, "build-engine", made_bundle.path, "--target", "rtxx")["code"] == "VP202"
    assert failing(capsys, "build-engine", made_bundle.path, "--target", "onnxruntime-cpu", "--batch", "8:1")["code"] == "VP108"
    assert failing(capsys, "build-engine", made_bundle.path, "--target", "onnxruntime-cpu", "--workspace", "2")["code"] == "VP108"
    assert failing(capsys, "validate", made_bundle.path, "--nonsense")["code"] == "VP199"
    assert failing(capsys, "validate", made_bundle.path, "--backend", "onnxrt")["code"] == "VP610"


def test_lists(capsys):
    for command, key in (("methods", "methods"), ("targets", "targets"), ("recipes", "recipes")):
        code, document = call(capsys, command)
        assert code == 0
        assert document[key]


def test_help_is_quick_to_import():
    """--help must not import torch, onnx or onnxruntime."""
    code = "import sys; from vitprune import cli; cli.run(['--help']); print([m for m in ('torch', 'onnx', 'onnxruntime', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip().endswith("[]")


def test_ctrl_c_leaves_nothing(recipe, tmp_path):
    """Interrupt a running export: exit 130 and no trace of the output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitprune", "export", "--no-pretrained", "-r", str(recipe), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert "export" in process.stderr.readline()
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_unknown_command_points_at_the_list_of_commands(capsys):
    assert failing(capsys, "frobnicate")["next_step"] == "vitprune --help"


def test_a_name_like_no_other_does_not_list_a_thousand(capsys, recipe, tmp_path):
    error = failing(capsys, "export", "qqqq", "-r", recipe, "-o", tmp_path / "out")
    assert error["code"] == "VP300"
    assert "no similar name among" in error["cause"]


def test_switches_of_one_line_do_not_stay_for_the_next(capsys):
    """A notebook or a test runs several lines in one process."""
    assert cli.run(["methods", "--quiet"]) == 0
    assert "ward_merge" not in capsys.readouterr().err
    assert cli.run(["methods", "--json"]) == 0
    told = capsys.readouterr()
    assert "ward_merge" in told.err
    assert json.loads(told.out)
    assert cli.run(["methods"]) == 0
    assert capsys.readouterr().out == ""
