"""The search from arguments to files: study.db, tune.json, recipe.yaml and front/*.yaml in one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitprune.bundle_parts.output import unwritable
from vitprune.data import images as image_data
from vitprune.errors import RecipeError
from vitprune.recipe import Recipe
from vitprune.support.files import write_atomic
from vitprune.support.hashing import sha256_of
from vitprune.support.locking import locked
from vitprune.tuning.budget import Budget
from vitprune.tuning.candidates import Candidate, chosen_methods, of_methods, of_recipe
from vitprune.tuning.outcome import Outcome, best, front, within

Report = Callable[[int, int, str], None]
CACHE = "dense.npz"
OURS = (CACHE, "study.db", "tune.json", "recipe.yaml", "front", "report.html", "front.svg")


@dataclass(frozen=True)
class Options:
    """What a search is asked for.

    source: recipe, bundle or timm name. data: images. output: folder. samples: images. methods: names, none = all without training.
    recipes: given beside them. trials, seed, storage, study: of the study. weights, pretrained, overrides: of the model.
    target, batch: whose latency is meant, and of how many images at once. table: of latencies measured elsewhere.
    """

    source: str
    data: Path
    output: Path
    budget: Budget
    trials: int = 100
    samples: int = 1024
    methods: Sequence[str] = ()
    recipes: Sequence[str] = ()
    seed: int = 0
    storage: str | None = None
    study: str = "vitprune"
    weights: str | None = None
    pretrained: bool = True
    overrides: list[str] = field(default_factory=list)
    target: str | None = None
    batch: int = 1
    table: Path | None = None


@dataclass(frozen=True)
class Tuned:
    """outcomes: everything that was evaluated, in order. chosen: None where nothing meets the budget. why: in words. document: tune.json."""

    outcomes: list[Outcome]
    chosen: Outcome | None
    front: list[Outcome]
    why: str
    document: dict[str, Any]


def tune(options: Options, report: Report) -> Tuned:
    """Search, then write.

    Raises:
        RecipeError: VP104, VP175, VP176, VP179 methods and recipes, VP106, VP107 the output, VP177, VP178 the storage. LoadError:
            VP62x data, VP6xx a bundle. ExportError: VP3xx the model. TargetError: VP201 a package is missing.
    """
    from vitprune.support import extras
    from vitprune.vit.loading import require_torch

    require_folder(options.output)
    if options.budget.latency is None and (options.target is not None or options.table is not None):
        option = "--target" if options.target is not None else "--latency-table"
        raise RecipeError(
            182, f"{option} goes with --budget-latency", cause="MACs are the same everywhere", next_step=f"leave out {option}"
        )
    names = chosen_methods(options.methods)
    require_torch("tune")
    extras.require("tune", "tune", "optuna", "sqlalchemy")
    from vitprune.tuning import study as studies
    from vitprune.tuning import trial as trials
    from vitprune.tuning.evaluating import dense_logits, scouts_first
    from vitprune.tuning.latency import CpuLatency, require_batch, require_here
    from vitprune.tuning.opening import fitting, model_of, sizes
    from vitprune.tuning.table import table_for

    if options.table is None:
        require_here(options.target)

    report(0, options.trials, "loading")
    found_there = model_of(options.source, options.weights, options.pretrained, list(options.overrides))
    base, module, preprocessing = found_there.recipe, found_there.module, found_there.preprocessing
    shape = sizes(module)
    if options.budget.latency is not None:
        require_batch(base, options.batch)
    if options.table is not None:
        table_for(options.table, options.batch, shape)
    given = [of_recipe(one, lambda r: fitting(r, preprocessing, shape, options.pretrained)) for one in options.recipes]
    candidates = [*_distinct(given), *of_methods(base, module, names, shape)]
    inputs = image_data.load(options.data, preprocessing, options.samples, classes=None, splits=("train",))
    pixels, scouts = scouts_first(inputs.pixels)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        dense, digest = dense_logits(module, pixels, options.output / CACHE)
    except OSError as error:
        raise unwritable(options.output, error) from error
    identity = {
        "model and images": digest, "budget": [options.budget.macs, options.budget.latency], "shapes": base.graph.shapes, "precision": base.precision.mode,
        "table": None if options.table is None else sha256_of(options.table), "batch": None if options.budget.latency is None else options.batch, "methods": [one.name for one in candidates if not one.given], "seed": options.seed,
        "recipes": [[one.name, one.recipe.digest()] for one in candidates if one.given],
    }  # fmt: skip
    study = studies.open_study(options.storage, options.output, options.study, options.seed, identity)
    studies.release_abandoned(study)
    measured = options.budget.latency is not None and options.table is None
    latency = CpuLatency(pixels, options.batch) if measured else None
    spending = latency or (trials.Macs() if options.table is None else table_for(options.table, options.batch, shape))
    search = trials.Search(candidates, pixels, scouts, dense, shape, options.budget, spending, options.trials)
    while True:
        with studies.running(study, options.trials) as place:
            if place is None:
                break
            trial, where = place
            report(where, options.trials, told(trials.outcomes(study), options.budget))
            trials.carry_out(search, study, trial, trials.propose(search, study, trial, where))
    with locked(options.output / CACHE):  # of several processes the last one to write knows all
        found = trials.outcomes(study)
        report(options.trials, options.trials, told(found, options.budget))
        names_of = {one.name: one for one in candidates}
        checked = None if latency is None else confirmed(found, names_of, options.budget.share, latency)
        chosen = best(found, options.budget.share) if checked is None else checked.chosen
        return _written(options, names_of, found, chosen, checked, len(pixels), inputs.origin, base)


@dataclass(frozen=True)
class Confirmed:
    """Fresh interleaved runs of the best settings: the first that meets the budget again, and every one's ratio by trial."""

    chosen: Outcome | None
    ratios: dict[int, float]


def confirmed(found: list[Outcome], names: dict[str, Candidate], share: float, latency: Any, most: int = 8) -> Confirmed:
    """Measure again, best first: what was fast once by chance is not what is wanted."""
    from vitprune.tuning.latency import FRESH_ROUNDS

    ratios: dict[int, float] = {}
    for one in sorted(within(found, share), key=lambda one: one.rank)[:most]:
        candidate = names[one.candidate]
        ratios[one.number] = latency.ratio(candidate.module, candidate.with_keys(one.prune), FRESH_ROUNDS)
        if ratios[one.number] <= share:
            return Confirmed(one, ratios)
    return Confirmed(None, ratios)


def told(found: list[Outcome], budget: Budget) -> str:
    """Best so far, for the progress bar."""
    one = best(found, budget.share)
    return "nothing yet" if one is None else f"best: {summary(one)}"


def summary(one: Outcome) -> str:
    """An outcome in a few words."""
    agreed = "" if one.agreement is None else f"{100 * one.agreement:.2f} % agree, "
    return f"{one.candidate} ({one.kind}) {agreed}error {one.error:.5f}, {one.spent:.3f}x"


def require_folder(output: Path) -> None:
    """Refuse an output that is not a folder of an earlier search, an empty one, or a new one.

    Raises:
        RecipeError: VP106, VP107.
    """
    try:
        if not os.path.lexists(output):
            parent = next(one for one in output.absolute().parents if one.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(13, f"'{parent}' cannot be written")
            return
        inside = sorted(entry.name for entry in output.iterdir() if not entry.name.startswith("."))
    except NotADirectoryError as error:
        raise RecipeError(106, f"output '{output}' exists", cause="it is a file", next_step="choose another -o") from error
    except OSError as error:
        raise unwritable(output, error) from error
    strange = [name for name in inside if name not in OURS and not name.startswith("study.db")]
    if strange:
        raise RecipeError(
            106, f"output '{output}' exists", cause=f"it holds '{strange[0]}', which is of no search",
            next_step="choose another -o; a search goes on in its own folder",
        )  # fmt: skip


def _distinct(given: list[Candidate]) -> list[Candidate]:
    """Recipes under names of their own, also where files in different folders have one name or that of a method."""
    found: list[Candidate] = []
    for one in given:
        name, number = f"{one.name}.yaml", 2
        while any(other.name == name for other in found):
            name, number = f"{one.name}-{number}.yaml", number + 1
        found.append(Candidate(name, one.recipe, one.load, given=True))
    return found


def _written(
    options: Options, names: dict[str, Candidate], found: list[Outcome], chosen: Outcome | None, checked: Confirmed | None,
    images: int, origin: str, base: Recipe,
) -> Tuned:  # fmt: skip
    line = front(found if checked is None else [one for one in found if one.spent < 1])
    why = _why(chosen, found, options.budget, images, checked)
    document = {
        "schema_version": 1, "model": base.model.name, "data": origin, "images": images,
        "budget": {"macs": options.budget.macs, "latency": options.budget.latency}, "trials": options.trials, "seed": options.seed,
        "evaluated": len(found), "chosen": None if chosen is None else chosen.document(), "why": why,
        "front": [one.document() for one in line], "outcomes": [one.document() for one in found],
    }  # fmt: skip
    if checked is not None:
        document["fresh_ratios"] = {str(number): round(ratio, 4) for number, ratio in checked.ratios.items()}
    try:
        (options.output / "front").mkdir(exist_ok=True)
        recipes = {f"{one.spent:.3f}-{one.method}-{one.number}.yaml": one for one in line}
        for name, one in recipes.items():
            write_atomic(options.output / "front" / name, _recipe(names, one, options, images))
        for old in (options.output / "front").glob("*.yaml"):
            if old.name not in recipes:
                old.unlink(missing_ok=True)
        if chosen is not None:
            write_atomic(options.output / "recipe.yaml", _recipe(names, chosen, options, images))
        else:
            (options.output / "recipe.yaml").unlink(missing_ok=True)
        write_atomic(options.output / "tune.json", (json.dumps(document, indent=1) + "\n").encode())
    except OSError as error:
        raise unwritable(options.output, error) from error
    return Tuned(found, chosen, line, why, document)


def _recipe(names: dict[str, Candidate], one: Outcome, options: Options, images: int) -> bytes:
    plain = names[one.candidate].recipe.to_dict()
    recipe = Recipe.load(plain | {"prune": one.prune})
    agreed = "" if one.agreement is None else f"{100 * one.agreement:.2f} % of the dense model's predictions, "
    head = (
        f"# Found with vitprune tune (trial {one.number}, {one.kind}) on {images} images without labels: {agreed}error of the outputs "
        f"{one.error:.5f}, {one.spent:.4f} of the {options.budget.what}, {one.macs:.4f} of the dense MACs.\n"
    )
    return (head + recipe.to_yaml()).encode()


def _why(chosen: Outcome | None, found: list[Outcome], budget: Budget, images: int, checked: Confirmed | None) -> str:
    """The reason for the choice, from what was found."""
    again = [] if checked is None else list(checked.ratios.values())
    if chosen is None:
        cheapest = min(found, key=lambda one: one.spent, default=None)
        text = f"nothing meets {budget.share:g} of the {budget.what}"
        if again:
            text += f" in a fresh run (the best of what had met it before took {min(again):.3f})"
        text += "" if cheapest is None else f"; the cheapest, {summary(cheapest)}, costs {cheapest.spent:.3f} of it"
        faster = budget.latency is None or any(one.spent < 1 for one in found)
        return text if faster else f"nothing is faster than the dense model here; {text}"
    failed = [] if checked is None else [number for number, ratio in checked.ratios.items() if ratio > budget.share]
    inside = [one for one in within(found, budget.share) if one.number not in failed]
    rivals = [one for one in inside if one.method != chosen.method]
    beaten = min(rivals, key=lambda one: one.rank, default=None)
    calibrated = min((one for one in inside if one.kind in ("recipe", "calibrated")), key=lambda one: one.rank, default=None)
    text = f"{chosen.candidate} agrees best of {len(inside)} settings within {budget.share:g} of the {budget.what} on {images} images"
    if again:
        text += f" and took {again[-1]:.3f} of it in a fresh interleaved run"
        text += f" ({len(again) - 1} better ones did not meet the budget again)" if len(again) > 1 else ""
    if calibrated is not None and calibrated is not chosen:
        text += f"; the best without a search was {summary(calibrated)}"
    if beaten is not None:
        text += f"; the best of another method was {summary(beaten)}"
    return text
