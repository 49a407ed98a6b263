"""finetune: a dense model and a recipe to a trained checkpoint and the recipe that exports it."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune import methods
from vitprune.bundle import write_atomic
from vitprune.errors import RecipeError
from vitprune.recipe import Recipe
from vitprune.support import extras
from vitprune.vit.loading import LoadedModel, require_torch

RECIPE, FACTS, MARKER = "recipe.yaml", "train.json", ".vitprune-finetune"


@dataclass(frozen=True)
class Result:
    """The folder, its facts (`train.json`), and whether this process is the one that wrote it."""

    folder: Path
    facts: dict[str, Any]
    main: bool


def require_accelerate() -> None:
    """Raise TargetError VP201 when accelerate is not installed."""
    extras.require("finetune", "train", "accelerate")


def prepare(folder: Path, resume: bool, force: bool) -> None:
    """Make the output folder, or refuse what is there.

    Raises:
        RecipeError: VP106 it holds something, VP107 it cannot be written, VP163 there is nothing to resume.
    """
    filled = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    begun_by_us = (folder / MARKER).is_file()
    if filled and not (begun_by_us and (resume or force)):
        raise RecipeError(
            106,
            f"output '{folder}' exists",
            cause="it holds a run already" if begun_by_us else "it holds something other than a run",
            next_step="--resume to go on, --force to start again" if begun_by_us else "choose another -o",
        )
    if resume and not begun_by_us:
        raise RecipeError(
            163, f"nothing to resume in '{folder}'", cause="it holds no run", next_step="run without --resume to start"
        )
    try:
        if filled and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise RecipeError(
            107, f"cannot write '{folder}'", cause=error.strerror or str(error), next_step="choose another -o"
        ) from error


def finetune(
    model: str | None,
    recipe: Recipe,
    data: Path,
    output: Path,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    resume: bool = False,
    force: bool = False,
    setting: Any = None,
    warn: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Result:
    """Train a model with its pruning method.

    Args:
        model: timm name (None = the recipe's). recipe: its `train:` section says how; the method's defaults otherwise.
        data: see `sources.open_split`. output: folder for checkpoint, logs, weights and recipe.
        pretrained, weights: what to start from, as for `export`. resume: go on with a run in `output`; force: replace it.
        setting: an `engine.Setting`. warn, progress: called in the main process.

    Raises:
        RecipeError: VP106, VP107 output; VP16x the run. LoadError: VP62x data. ExportError: VP30x, VP31x the model.
        TrainError: VP801 diverged. TargetError: VP201 packages are missing.
    """
    recipe.require_logits("finetune")
    require_torch("finetune")
    require_accelerate()
    from vitprune.data.sources import open_split
    from vitprune.training.engine import Run, Setting
    from vitprune.training.feeding import Feed, seed_all
    from vitprune.training.launching import accelerator_for
    from vitprune.training.reduction import Reduction

    keys = recipe.training
    kind = methods.get(recipe.prune.method).training or Reduction
    start = kind.load(recipe, model, pretrained=pretrained, seed=keys.seed, weights=weights)
    classes = int(start.module.shape.classes if hasattr(start.module, "shape") else start.module.num_classes)
    source = open_split(data, "train", classes, start.preprocessing.get("classes", ()))
    assert source is not None
    assert source.labels is not None
    held_out = open_split(data, "val", classes, source.classes)
    feed = Feed(source, start.preprocessing, keys.augment, keys.seed)
    judged = None if held_out is None else Feed(held_out.first(keys.validation_images), start.preprocessing, None, keys.seed)
    accelerator = accelerator_for(kind, keys.precision)
    if accelerator.is_main_process:
        prepare(output, resume, force)
    accelerator.wait_for_everyone()
    teacher = copy.deepcopy(start.module)
    seed_all(keys.seed, 5)
    behaviour = kind(start.module, recipe)
    labels = hashlib.sha256(source.labels.tobytes()).hexdigest()
    identity = {
        "recipe": _comparable(recipe), "data": {"images": len(source), "labels": labels},
        "start": {key: value for key, value in start.source.items() if isinstance(value, str | int)},
    }  # fmt: skip
    run = Run(
        accelerator, behaviour, teacher if behaviour.wants_teacher else None,
        feed, judged, output, identity, setting or Setting(), warn if accelerator.is_main_process else _silent, progress,
    )  # fmt: skip
    if resume:
        run.resume()
    state = run.train(resume)
    facts = {
        "method": recipe.prune.method, "start": start.source, "data": {"origin": source.origin, "images": len(source)},
        "validation_images": 0 if run.held_out is None else len(run.held_out.source), "unreadable": run.bad.found,
        "steps": state.step, "epochs": run.epochs, "seconds": round(state.seconds, 1), "processes": accelerator.num_processes,
        "device": str(accelerator.device), "precision": keys.precision, "history": state.history,
    }  # fmt: skip
    if accelerator.is_main_process:
        write(output, run.best_known.trained(), recipe, start, facts, source.classes)
    accelerator.wait_for_everyone()
    result = Result(output, facts, bool(accelerator.is_main_process))
    accelerator.end_training()
    return result


def _silent(text: str) -> None:
    """Other processes say nothing."""


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that change training."""
    plain = recipe.to_dict()
    plain["train"] = recipe.training.model_dump(mode="json")
    return {key: plain[key] for key in ("model", "prune", "train")}


def write(folder: Path, trained: Any, recipe: Recipe, start: LoadedModel, facts: dict[str, Any], classes: list[str]) -> None:
    """Weights, recipe and facts; the recipe last, so that its presence means a finished run. classes: names, where the data has any."""
    from safetensors.torch import save

    for name, tensors in trained.files.items():
        write_atomic(folder / name, save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
    plain = recipe.to_dict()
    plain["model"] |= {"classes": classes} if classes else {}
    for path, value in {"model.name": start.name, **trained.changes}.items():
        section, key = path.split(".")
        plain[section][key] = value
    finished = Recipe.load(plain)
    head = f"# Trained with vitprune finetune: {recipe.prune.method}, {facts['epochs']} epochs; files lie beside this recipe.\n"
    write_atomic(folder / RECIPE, (head + finished.to_yaml()).encode())
