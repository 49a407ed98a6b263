"""A timm model from a name, a checkpoint or an instance, with everything needed to make it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vitprune.data.preprocessing import describe, imagenet_names, plain
from vitprune.errors import ExportError, RecipeError
from vitprune.recipe import ModelSection
from vitprune.support import extras
from vitprune.support.resources import SHIPPED as SHIPPED
from vitprune.support.suggestions import did_you_mean
from vitprune.vit.fitting import check_module
from vitprune.vit.fitting import load_weights as load_weights
from vitprune.vit.weights import read_weights as read_weights
from vitprune.vit.weights import shards as shards
from vitprune.vit.weights import weights_digest as weights_digest
from vitprune.vit.weights import weights_path as weights_path


@dataclass(frozen=True)
class LoadedModel:
    """A dense model in evaluation mode.

    source says how to make it again: {"kind": "timm", "name", "args", "weights": "pretrained" | "random" | "file", ...} or
    {"kind": "module"} for an instance of the user's own.
    """

    module: Any
    name: str
    preprocessing: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.preprocessing["input_size"]
        return channels, height, width


def require_torch(purpose: str) -> None:
    """Import torch and timm, with T2T-ViT among the models timm knows; raise TargetError VP201 when one is not installed."""
    extras.import_torch(purpose)
    from vitprune.vit import t2t as t2t


def preprocessing_of(module: Any, section: ModelSection) -> dict[str, Any]:
    """The description (see `data.preprocessing`) of a timm model; what the recipe states wins.

    A model that carries no pretrained_cfg was not made by timm's create_model: what it was trained on is then the recipe's to say.
    """
    from timm import data

    own = getattr(module, "pretrained_cfg", None)
    resolve: Callable[..., dict[str, Any]] = data.resolve_data_config
    config = resolve(model=module)  # ImageNet's mean and std where it knows nothing
    size = module.patch_embed.img_size or config["input_size"][1:]
    channels = image_channels(module) or config["input_size"][0]
    name = str((own or {}).get("architecture", ""))
    found = describe((channels, *size), section, plain(config) if own else None, f"timm {name}".strip())
    if section.classes is not None and len(section.classes) > module.num_classes:
        raise RecipeError(
            128,
            f"model.classes has {len(section.classes)} names",
            cause=f"the model has {module.num_classes} classes",
            next_step="give the names of the model's classes, in its order",
        )
    return found


def image_channels(module: Any) -> int | None:
    """Channels of the image a model with a patch embedding reads, or None where it does not tell."""
    embed = module.patch_embed
    channels: int | None = getattr(embed, "in_chans", None) or getattr(embed.proj, "in_channels", None)
    return channels


def from_module(module: Any, section: ModelSection, name: str = "") -> LoadedModel:
    """Wrap an instance of the user's own; it cannot be made again from a bundle, so its samples carry the reference.

    Raises:
        ExportError: VP306 weights that are no finite float32 numbers.
    """
    module = module.eval()
    label = name or section.name or type(module).__name__.lower()
    check_module(module, label)
    if not hasattr(module, "patch_embed"):
        return LoadedModel(module, label, {}, {"kind": "module"})
    return LoadedModel(module, label, preprocessing_of(module, section), {"kind": "module"})


def load(section: ModelSection, *, pretrained: bool = True, seed: int = 0, weights: str | None = None) -> LoadedModel:
    """Create a timm model.

    Args:
        section: the recipe's model section; `name` must be set.
        pretrained: take timm's weights when no weights file is given.
        seed: random seed of the weights when neither.
        weights: a file that wins over the recipe's.

    Raises:
        ExportError: VP300 unknown name, VP301 arguments do not fit, VP302 weights cannot be had, VP303 weights do not fit, VP305
            positions of another grid, VP306 weights that are no finite real numbers. RecipeError: VP128 more class names than classes.
    """
    require_torch("loading a model")
    import timm
    import torch

    name = section.name or ""
    if not timm.is_model(name):
        raise ExportError(
            300,
            f"timm has no model '{name}'",
            cause=did_you_mean(name, timm.list_models()[:5000]) if name else "no model was named",
            next_step="give a timm model name, for example deit_small_patch16_224",
        )
    args = dict(section.args) | ({"img_size": section.image_size} if section.image_size else {})
    file = weights or section.weights
    source: dict[str, Any] = {"kind": "timm", "name": name, "args": args}
    fetch = pretrained and not file
    torch.manual_seed(seed)
    try:
        module = timm.create_model(name, pretrained=fetch, **args).eval()
    except (TypeError, AssertionError, ValueError) as error:
        raise ExportError(
            301,
            f"cannot create '{name}' with {args}",
            cause=str(error).splitlines()[0],
            next_step="correct model.args in the recipe",
        ) from error
    except Exception as error:
        if not fetch:
            raise
        raise ExportError(
            302,
            f"no pretrained weights for '{name}'",
            cause=str(error).splitlines()[0],
            next_step="--weights FILE, or --no-pretrained --seed 0 for random ones",
        ) from error
    if file:
        path = weights_path(file)
        source |= load_weights(module, path, resample=section.image_size)
        source |= {"weights": "file", "file": file if file.startswith(SHIPPED) else path.name, "sha256": weights_digest(path)}
    else:
        source |= {"weights": "pretrained"} if fetch else {"weights": "random", "seed": seed}
    check_module(module, name)
    preprocessing = preprocessing_of(module, section)
    if fetch and "classes" not in preprocessing and (names := imagenet_names(module)):
        preprocessing["classes"] = names
    return LoadedModel(module, name, preprocessing, source)
