"""A timm model from a name, a checkpoint or an instance, with everything needed to make it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitprune.errors import ExportError
from vitprune.recipe import ModelSection
from vitprune.support import extras
from vitprune.support.hashing import sha256_of
from vitprune.support.resources import SHIPPED as SHIPPED
from vitprune.support.resources import located
from vitprune.support.suggestions import did_you_mean


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


def weights_path(text: str) -> Path:
    """Resolve a weights entry; "shipped:" names files that come with vitprune."""
    return located(text)


def preprocessing_of(module: Any, section: ModelSection) -> dict[str, Any]:
    """Input size, mean, std, interpolation and crop of a timm model; the recipe's mean and std win."""
    from timm import data

    resolve: Callable[..., dict[str, Any]] = data.resolve_data_config
    config = resolve(model=module)  # timm's defaults (ImageNet) for a model that carries no pretrained_cfg
    embed = module.patch_embed
    size = embed.img_size or config["input_size"][1:]
    channels = image_channels(module) or config["input_size"][0]
    mean, std = section.mean or list(config["mean"]), section.std or list(config["std"])
    return {
        "input_size": [int(channels), int(size[0]), int(size[1])],
        "mean": [float(v) for v in (mean * channels)[:channels]] if len(mean) != channels else [float(v) for v in mean],
        "std": [float(v) for v in (std * channels)[:channels]] if len(std) != channels else [float(v) for v in std],
        "interpolation": config["interpolation"],
        "crop_pct": float(config["crop_pct"]),
    }


def image_channels(module: Any) -> int | None:
    """Channels of the image a model with a patch embedding reads, or None where it does not tell."""
    embed = module.patch_embed
    channels: int | None = getattr(embed, "in_chans", None) or getattr(embed.proj, "in_channels", None)
    return channels


def from_module(module: Any, section: ModelSection, name: str = "") -> LoadedModel:
    """Wrap an instance of the user's own; it cannot be made again from a bundle, so its samples carry the reference."""
    module = module.eval()
    label = name or section.name or type(module).__name__.lower()
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
        ExportError: VP300 unknown name, VP301 arguments do not fit, VP302 weights cannot be had, VP303 weights do not fit.
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
        load_weights(module, path)
        source |= {"weights": "file", "file": file if file.startswith(SHIPPED) else path.name, "sha256": weights_digest(path)}
    else:
        source |= {"weights": "pretrained"} if fetch else {"weights": "random", "seed": seed}
    return LoadedModel(module, name, preprocessing_of(module, section), source)


def shards(path: Path) -> list[Path]:
    """The files that hold the weights: the file itself, or what an index in Hugging Face's format names, beside it."""
    if path.suffix != ".json":
        return [path]
    names = json.loads(path.read_text())["weight_map"].values()
    return [path.parent / name for name in sorted({Path(name).name for name in names})]


def weights_digest(path: Path) -> str:
    """sha256 of a weights file; of an index, that of the digests of its shards; empty when one is missing."""
    try:
        parts = shards(path)
        return sha256_of(path) if parts == [path] else hashlib.sha256("".join(map(sha256_of, parts)).encode()).hexdigest()
    except (OSError, ValueError, KeyError):
        return ""


def read_weights(path: Path) -> dict[str, Any]:
    """State dict of a .safetensors, .pth or .pt file, or of the shards that a .safetensors.index.json names.

    Raises:
        ExportError: VP302 when it is missing or not a state dict.
    """
    if not path.is_file():
        raise ExportError(
            302, f"weights file '{path}' not found", cause="no such file", next_step="check --weights or model.weights"
        )
    try:
        if path.suffix in (".safetensors", ".json"):
            from safetensors.torch import load_file

            return {name: value for part in shards(path) for name, value in load_file(str(part)).items()}
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ExportError(
            302,
            f"weights file '{path}' cannot be read",
            cause=str(error).splitlines()[0],
            next_step="give a .safetensors or .pth state dict",
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise ExportError(
            302,
            f"weights file '{path}' holds no state dict",
            cause=f"found {type(state).__name__}",
            next_step="give a .safetensors or .pth state dict",
        )
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(module: Any, path: Path) -> None:
    """Load a weights file strictly.

    Raises:
        ExportError: VP303 naming the first difference.
    """
    state = read_weights(path)
    if hasattr(module, "convert_state"):  # a model of ours whose published checkpoints have other names
        state = module.convert_state(state)
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, shape in own.items():
        if name not in state:
            raise ExportError(
                303,
                f"'{path.name}' does not fit the model",
                cause=f"it has no '{name}'",
                next_step="check model.name and model.args against the checkpoint",
            )
        if tuple(state[name].shape) != shape:
            raise ExportError(
                303,
                f"'{path.name}' does not fit the model",
                cause=f"'{name}' is {tuple(state[name].shape)}, the model wants {shape}",
                next_step="check model.name and model.args against the checkpoint",
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise ExportError(
            303,
            f"'{path.name}' does not fit the model",
            cause=f"it has '{extra[0]}', which the model lacks",
            next_step="check model.name and model.args against the checkpoint",
        )
    module.load_state_dict(state)
