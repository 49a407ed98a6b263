"""A timm model from a name, a checkpoint or an instance, with everything needed to make it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitprune.data.preprocessing import STATED, describe, imagenet_names, of_hugging_face, plain, side_of_hugging_face
from vitprune.errors import ExportError, RecipeError
from vitprune.recipe import ModelSection
from vitprune.support import extras
from vitprune.support.hashing import sha256_of
from vitprune.support.resources import SHIPPED as SHIPPED
from vitprune.support.suggestions import did_you_mean
from vitprune.vit.fitting import check_module
from vitprune.vit.fitting import load_weights as load_weights
from vitprune.vit.hub import folder_of
from vitprune.vit.hub import is_folder_name as is_folder_name
from vitprune.vit.naflex import at_size, of_vision_transformer
from vitprune.vit.outside import require_plain
from vitprune.vit.weights import read_weights as read_weights
from vitprune.vit.weights import shards as shards
from vitprune.vit.weights import weights_digest as weights_digest
from vitprune.vit.weights import weights_path as weights_path


@dataclass(frozen=True)
class LoadedModel:
    """A dense model in evaluation mode.

    source says how to make it again: {"kind": "timm", "name", "args", "weights": "pretrained" | "random" | "file", ...} or
    {"kind": "module"} for an instance of the user's own; {"kind": "hugging_face", "folder", "sha256" of config.json and weights, ...}.
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
    _require_classes(section, module)
    return found


def _require_classes(section: ModelSection, module: Any) -> None:
    if section.classes is not None and len(section.classes) > module.num_classes:
        raise RecipeError(
            128,
            f"model.classes has {len(section.classes)} names",
            cause=f"the model has {module.num_classes} classes",
            next_step="give the names of the model's classes, in its order",
        )


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
    module = at_size(module, section.image_size)
    if not hasattr(module, "patch_embed"):
        return LoadedModel(module, label, {}, {"kind": "module"})
    require_plain(module)
    return LoadedModel(module, label, preprocessing_of(module, section), {"kind": "module"})


def load(section: ModelSection, *, pretrained: bool = True, seed: int = 0, weights: str | None = None) -> LoadedModel:
    """Create a timm model, or one of a Hugging Face folder (`./folder`, `hf:owner/name`), see `from_folder`.

    Args:
        section: the recipe's model section; `name` must be set.
        pretrained: take timm's weights when no weights file is given.
        seed: random seed of the weights when neither.
        weights: a file that wins over the recipe's.

    Raises:
        ExportError: VP300 unknown name, VP301 arguments do not fit, VP302 weights cannot be had, VP303 weights do not fit, VP305
            positions of another grid, VP306 weights that are no finite real numbers, VP310 no plain ViT. RecipeError: VP128 more class
            names than classes.
    """
    require_torch("loading a model")
    import timm
    import torch

    name = section.name or ""
    if is_folder_name(name):
        return from_folder(section, pretrained=pretrained, seed=seed, weights=weights)
    if not timm.is_model(name):
        raise ExportError(
            300,
            f"timm has no model '{name}'",
            cause=did_you_mean(name, timm.list_models()[:5000]) if name else "no model was named",
            next_step="give a timm model name, for example deit_small_patch16_224, or ./FOLDER that transformers saved",
        )
    flexible = name.startswith("naflexvit")  # of any size until `naflex.at_size`
    args = dict(section.args) | ({"img_size": section.image_size} if section.image_size and not flexible else {})
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
        if flexible and of_vision_transformer(read_weights(path)):  # what finetune saves: trained at one size
            module = at_size(module, section.image_size)
        source |= load_weights(module, path, resample=section.image_size)
        source |= {"weights": "file", "file": file if file.startswith(SHIPPED) else path.name, "sha256": weights_digest(path)}
    else:
        source |= {"weights": "pretrained"} if fetch else {"weights": "random", "seed": seed}
    check_module(module, name)
    module = at_size(module, section.image_size)
    require_plain(module)
    preprocessing = preprocessing_of(module, section)
    if fetch and "classes" not in preprocessing and (names := imagenet_names(module)):
        preprocessing["classes"] = names
    return LoadedModel(module, name, preprocessing, source)


def from_folder(
    section: ModelSection, *, pretrained: bool = True, seed: int = 0, weights: str | None = None, folder: Path | None = None
) -> LoadedModel:
    """A ViT or DINOv2 that transformers saved, with the preprocessing of its preprocessor_config.json.

    Args:
        section: `name` is `./folder` or `hf:owner/name`; `image_size` wins over what the preprocessing makes. pretrained: False gives
            random weights in the same sizes. seed: theirs. weights: a checkpoint with timm's names (of `finetune`). folder: where it
            is, where that is known already.

    Raises:
        ExportError: VP301 model.args, VP302 to VP308 as `hugging_face.make`, VP309 the hub. LoadError: VP621 preprocessing that is not
            understood. RecipeError: VP128 more class names than classes.
    """
    require_torch("loading a model")
    import torch

    from vitprune.vit import hugging_face

    name = section.name or ""
    folder = folder or folder_of(name)
    label = name.removeprefix("hf:").rstrip("/").rsplit("/", 1)[-1] or folder.resolve().name
    label = folder.resolve().name if label in (".", "..") else label
    if section.args:
        raise ExportError(
            301, f"'{label}' takes no arguments", cause=f"model.args has {', '.join(section.args)}, and config.json gives the sizes",
            next_step="remove model.args from the recipe",
        )  # fmt: skip
    processor = folder / "preprocessor_config.json"
    config = hugging_face.read_config(folder)
    if not processor.is_file() and any(getattr(section, key) is None for key in STATED):
        raise hugging_face.missing(folder, processor.name)
    given = of_hugging_face(processor) if processor.is_file() else None
    side = section.image_size or (side_of_hugging_face(processor) if processor.is_file() else None)
    if config["model_type"] == "vit" and section.image_size is None and side not in (None, config.get("image_size")):
        raise ExportError(
            305, f"the image processor of '{label}' makes images of another size",
            cause=f"it makes {side} pixels, the model was trained on {config.get('image_size')}",
            next_step=f"--set model.image_size={config.get('image_size')} for images of the model's size, or {side} to resample its positions",
        )  # fmt: skip
    torch.manual_seed(seed)
    file = weights or section.weights
    module, config, weights_name = hugging_face.make(folder, side, trained=pretrained and not file)
    source: dict[str, Any] = {
        "kind": "hugging_face",
        "name": label,
        "args": {},
        "folder": _shown(name),
        "image_size": module.patch_embed.img_size[0],
    }
    source |= {"sha256": folder_digest(folder, weights_name), "seed": seed, "weights": "folder" if pretrained else "random"}
    if file:
        path = weights_path(file)
        load_weights(module, path)
        source |= {"weights": "file", "file": path.name, "file_sha256": weights_digest(path)}
    check_module(module, label)
    height, width = module.patch_embed.img_size
    found = describe((image_channels(module) or 3, height, width), section, given, processor.name)
    _require_classes(section, module)
    names = hugging_face.class_names(config, module.num_classes)
    return LoadedModel(module, label, found | ({"classes": names} if names and "classes" not in found else {}), source)


def folder_digest(folder: Path, weights_name: str) -> str:
    """sha256 of config.json's and the weights' digests: what makes the model of a folder."""
    parts = [sha256_of(folder / "config.json"), weights_digest(folder / weights_name)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _shown(name: str) -> str:
    """A hub's name, or a path below the working directory, as given; of another path the last part."""
    if name.startswith("hf:"):
        return name
    path = Path(name).expanduser()
    return path.resolve().name if path.is_absolute() or ".." in path.parts or not path.name else path.as_posix()
