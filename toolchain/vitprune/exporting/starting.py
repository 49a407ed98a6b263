"""A recipe to start from: a model's name and a method's defaults, with what every key means as comments."""

from __future__ import annotations

import inspect
import json
from typing import Any

import yaml

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.methods.base import Geometry, Method
from vitprune.recipe import Recipe
from vitprune.vit.loading import load

WIDTH = 120


def starting_recipe(name: str, method_name: str) -> str:
    """A commented recipe for a model, which has been read as a recipe and laid on the model's blocks.

    Args:
        name: a timm name, `./folder` or `hf:owner/name`; its weights are not fetched from timm. method_name: as `vitprune methods` lists it.

    Raises:
        RecipeError: VP104 no such method, VP137 a method that no recipe with defaults can start. ExportError: VP30x the model, VP31x the
            method does not fit it.
    """
    from vitprune.model_section import ModelSection
    from vitprune.vit.pruned import check_supported
    from vitprune.vit.timm_vit import TimmViT

    method = methods.get(method_name)
    _require_startable(method)
    module = load(ModelSection(name=name), pretrained=False).module
    by_cls = None if "score" not in method.params.model_fields else module.cls_token is not None
    check_supported(module, method, by_cls)
    return text_for(name, method, TimmViT(module).geometry)


def text_for(name: str, method: Method, geometry: Geometry) -> str:
    """The recipe's text for a model of these sizes; errors as `starting_recipe`."""
    _require_startable(method)
    prune = _prune(method, geometry)
    recipe = Recipe.load({"model": {"name": name}, "prune": prune})
    sites = method.sites(recipe.prune, geometry)
    resolved = recipe.to_dict()
    others = [one for one in methods.names() if one != method.name]
    lines = [
        f"# Start for {method.name} on {name}: {geometry.depth} blocks, {geometry.patches} patches, width {geometry.width}.",
        "# Defaults, neither calibrated nor measured on this model: see vitprune calibrate, vitprune tune.",
        "version: 1",
        "model:",
        f"  name: {_value(name)}",
        "  # weights: FILE           a checkpoint; default: those that belong to the name",
        "  # image_size: 384         pixels; positions are resampled",
        "  # mean, std, interpolation, crop_pct, classes: where they are not what the model's source says",
        "prune:",
        f"  # {method.summary}",
        *_wrapped(f"others: {', '.join(others)}"),
        f"  method: {method.name}",
        *[f"  # {line}".rstrip() for line in _meanings(method)],
        f"  # Sites of this recipe: blocks {', '.join(str(site.block) for site in sites)}, counted from 0.",
        *[f"  {key}: {_value(value)}" for key, value in resolved["prune"].items() if key != "method"],
        "graph:",
        "  # shapes: dynamic, or padded where the engine needs constant ones; batch: min:opt:max, or one number",
        f"  opset: {resolved['graph']['opset']}",
        f"  shapes: {resolved['graph']['shapes']}",
        f"  batch: {_value(resolved['graph']['batch'])}",
        "precision:",
        "  # fp32, fp16, bf16, int8 or fp8; decisions stay in FP32",
        f"  mode: {recipe.precision.mode}",
        "validate:",
        "  # images to run, and limits that validate enforces; top1_drop (points of accuracy lost) and dense_top1 (accuracy that the",
        "  # dense model must have, in percent) need labels and are off",
        f"  samples: {recipe.validation.samples}",
        "  gates:",
        f"    logits_max_abs: {recipe.validation.gates.logits_max_abs}",
        f"    top1_agreement: {recipe.validation.gates.top1_agreement}",
        "    # top1_drop: 1.0",
        "    # dense_top1: 79.0",
    ]
    text = "\n".join(lines) + "\n"
    read = yaml.safe_load(text)
    if Recipe.load(read) != recipe:
        raise AssertionError("the recipe's text does not say what the recipe does")
    return text


def _require_startable(method: Method) -> None:
    required = [
        field.alias or key for key, field in method.params.model_fields.items() if field.is_required() and key != "method"
    ]
    if method.pipeline is not None or required:
        why = "it runs several models, trained together" if method.pipeline is not None else f"it needs {', '.join(required)}"
        raise RecipeError(
            137, f"defaults alone make no recipe for {method.name}", cause=f"{why}, which only its checkpoint tells",
            next_step=f"begin with a shipped recipe (vitprune recipes), or train one: vitprune finetune; see docs/methods/{method.name}.md",
        )  # fmt: skip


def _prune(method: Method, geometry: Geometry) -> dict[str, Any]:
    """Method and what depends on the model: stages at quarters of the depth, scores that need no CLS token where there is none."""
    found: dict[str, Any] = {"method": method.name}
    field = method.params.model_fields["stages"]
    if isinstance(usual := field.get_default(), list):
        parts = (1, 2, 3) if len(usual) > 1 else (2,)
        quarters = sorted({max(1, geometry.depth * part // 4) for part in parts} & set(range(geometry.depth)))
        found[field.alias or "stages"] = quarters or [0]
    if "score" in method.params.model_fields and not geometry.has_cls:
        found["score"] = "mean_attention"
    return found


def _meanings(method: Method) -> list[str]:
    """What the keys mean, as the class of the keys says it."""
    documents = [
        inspect.cleandoc(kind.__doc__ or "") for kind in method.params.__mro__ if kind.__module__.startswith("vitprune.methods.")
    ]
    found: list[str] = []
    for document in documents[:2]:
        found += [line for line in document.splitlines()[1:] if line.strip()]
    return found


def _wrapped(text: str) -> list[str]:
    import textwrap

    return [f"  # {line}" for line in textwrap.wrap(text, WIDTH)]


def _value(value: Any) -> str:
    """A value as YAML on one line; JSON is YAML."""
    return json.dumps(value)
