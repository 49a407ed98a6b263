"""Whole runs: outputs, exact resume, kill -9, two processes, refusals."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_support import PRUNE, class_folders, idx, recipe, tensors, write_recipe

import vitprune
from vitprune.errors import ExportError, RecipeError, TrainError
from vitprune.recipe import Recipe

pytest.importorskip("accelerate")

from vitprune.training.engine import Setting  # noqa: E402
from vitprune.training.finetuning import finetune  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # accelerate, torch.distributed and tensorboard warn of themselves


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return idx(tmp_path_factory.mktemp("idx"))


def run(one, data, out, **more):
    return finetune(None, one, data, out, pretrained=False, **more)


@pytest.mark.parametrize("method", sorted(PRUNE))
def test_a_trained_checkpoint_goes_through_export_and_validate(method, data, tmp_path, monkeypatch):
    from vitprune.pipelines import validate

    done = run(recipe(method, {"epochs": 1, "ema": 0.5}), data, tmp_path / "out")
    assert done.facts["history"][0]["val_top1"] >= 0
    trained = Recipe.load(tmp_path / "out" / "recipe.yaml")
    bundle = vitprune.export(None, trained, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "out")  # where the weights named by the bundle lie
    verdict = validate(bundle, reference="torch" if method != "dynamicvit" else "stored")
    assert verdict.passed
    assert (tmp_path / "out" / "steps.csv").is_file()


def test_training_learns(tmp_path):
    one = recipe("topk", {"epochs": 10, "lr": 3e-3, "smoothing": 0.0, "validation_images": 40})
    done = run(one, idx(tmp_path / "idx", train=128, held_out=48), tmp_path / "out", setting=Setting(log_steps=4))
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "out" / "steps.csv").open())]
    assert losses[-1] < losses[0] - 0.2
    assert done.facts["history"][-1]["val_top1"] > 50
    assert done.facts["validation_images"] == 40


def test_resume_after_an_interrupt_gives_the_same_weights(data, tmp_path):
    one = recipe("dynamicvit", {"ema": 0.9, "augment": {"kind": "timm"}})
    run(one, data, tmp_path / "whole", setting=Setting(log_steps=3))

    def interrupt(done, total, text):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, data, tmp_path / "cut", setting=Setting(log_steps=3, checkpoint_steps=1), progress=interrupt)
    run(one, data, tmp_path / "cut", setting=Setting(log_steps=3), resume=True)
    for name in ("model.safetensors", "predictor.safetensors"):
        whole, cut = tensors(tmp_path / "whole" / name), tensors(tmp_path / "cut" / name)
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert (tmp_path / "whole" / "steps.csv").read_text() == (tmp_path / "cut" / "steps.csv").read_text()


def command(tmp_path: Path, data: Path, out: Path, one: Recipe, *more: str) -> list[str]:
    file = write_recipe(tmp_path / "recipe.yaml", one)
    return ["-m", "vitprune", "finetune", "-r", str(file), "--data", str(data), "-o", str(out), "--no-pretrained", *more]


def environment(**more: str) -> dict[str, str]:
    source = str(Path(vitprune.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def test_kill_9_at_a_random_step_and_resume_gives_the_same_weights(data, tmp_path):
    one = recipe("asvit", {"epochs": 8, "ema": 0.9})
    run(one, data, tmp_path / "whole", setting=Setting(log_steps=1))
    call = [sys.executable, *command(tmp_path, data, tmp_path / "cut", one, "--checkpoint-steps", "1", "--log-steps", "1")]
    child = subprocess.Popen(call, env=environment(), stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "cut" / "checkpoint.pt"
    limit = time.monotonic() + 60
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "cut" / "recipe.yaml").exists(), "the run was over before it was killed"
    run(one, data, tmp_path / "cut", resume=True, setting=Setting(log_steps=1))
    whole, cut = tensors(tmp_path / "whole" / "model.safetensors"), tensors(tmp_path / "cut" / "model.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert Recipe.load(tmp_path / "whole" / "recipe.yaml").prune == Recipe.load(tmp_path / "cut" / "recipe.yaml").prune


def test_two_processes_give_the_loss_curve_of_one(data, tmp_path):
    one = recipe("asvit", {"budget_weight": 0.0})  # every process takes the budget over its own images
    run(one, data, tmp_path / "one", setting=Setting(log_steps=1))
    call = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        *command(tmp_path, data, tmp_path / "two", one, "--log-steps", "1"),
    ]  # fmt: skip
    done = subprocess.run(call, env=environment(ACCELERATE_USE_CPU="true"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "train.json").read_text())["processes"] == 2
    curves = [[float(row["loss"]) for row in csv.DictReader((tmp_path / name / "steps.csv").open())] for name in ("one", "two")]
    assert len(curves[0]) == len(curves[1]) == 8
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)


def test_a_changed_recipe_or_other_data_is_not_resumed(data, tmp_path):
    run(recipe("topk", {"epochs": 1}), data, tmp_path / "out")
    with pytest.raises(RecipeError) as error:
        run(recipe("topk", {"epochs": 1, "lr": 5e-4}), data, tmp_path / "out", resume=True)
    assert error.value.code == "VP164"
    assert "recipe.train.lr was 0.001, now it is 0.0005" in error.value.cause
    with pytest.raises(RecipeError) as error:
        run(recipe("topk", {"epochs": 1}), idx(tmp_path / "more", train=40), tmp_path / "out", resume=True)
    assert "data.images was 32, now it is 40" in error.value.cause


def test_an_existing_run_is_not_replaced_without_force(data, tmp_path):
    one = recipe("topk", {"epochs": 1})
    run(one, data, tmp_path / "out")
    with pytest.raises(RecipeError) as error:
        run(one, data, tmp_path / "out")
    assert error.value.code == "VP106"
    run(one, data, tmp_path / "out", force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(RecipeError):
        run(one, data, tmp_path / "other", force=True)
    with pytest.raises(RecipeError) as error:
        run(one, data, tmp_path / "nothing", resume=True)
    assert error.value.code == "VP163"


def test_divergence_is_warned_of_and_stops_with_the_cause(data, tmp_path):
    said: list[str] = []
    with pytest.raises(TrainError) as error:
        run(recipe("topk", {"lr": 1e30, "epochs": 3}), data, tmp_path / "out", warn=said.append)
    assert error.value.code == "VP801"
    assert "in ce" in error.value.cause
    assert any("not finite" in text for text in said)


def test_checkpoint_of_another_architecture_is_refused(data, tmp_path):
    from safetensors.torch import save_file

    save_file({"cls_token": torch.zeros(1, 1, 8)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ExportError) as error:
        run(recipe("topk"), data, tmp_path / "out", weights=str(tmp_path / "other.safetensors"))
    assert error.value.code == "VP303"


def test_batches_that_do_not_fit(data, tmp_path):
    with pytest.raises(RecipeError) as error:
        run(recipe("topk", {"batch": 64}), data, tmp_path / "out")
    assert error.value.code == "VP161"
    with pytest.raises(RecipeError) as error:
        run(recipe("topk", {"batch": 8, "accumulate": 3}), data, tmp_path / "out", force=True)
    assert error.value.code == "VP160"


def test_accumulation_gives_the_whole_batch_s_step(data, tmp_path):
    for name, pieces in (("one", 1), ("four", 4)):
        run(recipe("topk", {"epochs": 1, "accumulate": pieces}), data, tmp_path / name)
    one, four = (tensors(tmp_path / name / "model.safetensors") for name in ("one", "four"))
    assert all(torch.allclose(one[key], four[key], atol=2e-4) for key in one)


def test_command_line_names_a_bad_image_and_skips_it_on_demand(tmp_path, capsys):
    from vitprune.cli import run as cli

    class_folders(tmp_path / "set", per_class=6)
    broken = tmp_path / "set" / "train" / "class1" / "1.png"
    broken.write_bytes(b"not an image")
    file = write_recipe(tmp_path / "r.yaml", recipe("topk", {"epochs": 1, "augment": {"kind": "none", "mixup": 0, "cutmix": 0}}))
    call = ["finetune", "-r", str(file), "--data", str(tmp_path / "set"), "--no-pretrained", "-o"]
    assert cli([*call, str(tmp_path / "a")]) == 2
    assert "1.png" in capsys.readouterr().err.replace("\n", "")
    assert cli([*call, str(tmp_path / "b"), "--bad-images", "skip"]) == 0
    assert list(json.loads((tmp_path / "b" / "train.json").read_text())["unreadable"]) == [str(broken)]
    assert cli([*call, str(tmp_path / "c"), "--bad-images", "maybe"]) == 2


def test_unknown_training_key_gets_a_suggestion():
    with pytest.raises(RecipeError) as error:
        recipe("asvit", {"budget_wieght": 1})
    assert error.value.code == "VP102"
    assert "did you mean 'budget_weight'" in error.value.cause
    with pytest.raises(RecipeError) as error:
        recipe("ats", {"budget": 0.5})
    assert error.value.code == "VP102"
    with pytest.raises(RecipeError) as error:
        recipe("ats", {"augment": {"cutmx": 0}})
    assert "did you mean 'cutmix'" in error.value.cause


def test_t2t_members_train(data, tmp_path):
    """What the papers keep fixed stays so: random features and positions."""
    import safetensors.torch

    from vitprune.methods.dvt import members

    args = {"img_size": 32, "grid": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 32, "depth": 2, "num_heads": 2}
    plain = recipe(
        "dvt", {"epochs": 1, "augment": {"kind": "none", "mixup": 0, "cutmix": 0}}, grids=[2, 3, 4], backbone="t2t"
    ).model_dump()
    one = Recipe.load(plain | {"model": {"name": "t2t_vit_7", "args": args, "mean": [0.5], "std": [0.5]}})
    run(one, data, tmp_path / "out")
    trained = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    rows = trained["normal_token.tokens_to_token.attention1.w"]
    torch.testing.assert_close(rows @ rows.T, 32 * torch.eye(32), atol=1e-4, rtol=0)
    assert not trained["less_less_token.pos_embed"][0, 0, 0::2].any()
    assert trained["normal_token.relation_reuse_conv.2.weight"].any()
    again = members.load(None, Recipe.load(tmp_path / "out" / "recipe.yaml"), pretrained=False, seed=0, weights=None)
    assert torch.equal(again.module.normal_token.tokens_to_token.attention1.w, rows)
