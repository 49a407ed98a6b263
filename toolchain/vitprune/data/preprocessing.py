"""What a model was trained on: mean, std, interpolation and crop, stated by somebody or marked unknown, never made up.

A description is a mapping for the manifest: input_size [C,H,W]; mean, std (per channel, of pixels in [0,1]), interpolation, crop_pct
and crop_mode where somebody stated them; known: whether all of these are there; origin: who stated them; classes: names of the
classes in the model's order, where known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError, TargetError
from vitprune.support import extras

if TYPE_CHECKING:
    from vitprune.bundle import Bundle
    from vitprune.recipe import ModelSection

STATED = ("mean", "std", "interpolation", "crop_pct")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL.Image.Resampling
SQUARE = ("ViT", "DeiT", "BeiT", "Dinov2")  # processors of which a plain number as size means height and width


def describe(
    input_size: Sequence[int], section: ModelSection, config: dict[str, Any] | None = None, origin: str = ""
) -> dict[str, Any]:
    """The description of a model.

    Args:
        input_size: (C,H,W). section: of the recipe, which wins. config: mean, std, interpolation, crop_pct, crop_mode from elsewhere,
            any of them may be absent. origin: where `config` comes from.
    """
    found: dict[str, Any] = {"input_size": [int(size) for size in input_size]}
    mine = {key: getattr(section, key) for key in (*STATED, "classes") if getattr(section, key) is not None}
    all_of = {**(config or {}), **mine}
    for key in STATED:
        if key in all_of:
            found[key] = _per_channel(all_of[key], found["input_size"][0]) if key in ("mean", "std") else all_of[key]
    if all_of.get("crop_mode", "center") != "center" and "crop_pct" not in mine:
        found["crop_mode"] = all_of["crop_mode"]
    found["known"] = all(key in found for key in STATED)
    stated_here = [key for key in STATED if key in mine]
    sources = (["recipe"] if stated_here else []) + ([origin] if config and len(stated_here) < len(STATED) else [])
    found["origin"] = ", ".join(sources) or "nobody"
    return found | ({"classes": list(all_of["classes"])} if all_of.get("classes") else {})


def of_graph(image_shape: Sequence[int], section: ModelSection, named: str | None) -> dict[str, Any]:
    """The description of a graph from elsewhere, which carries none.

    Args:
        image_shape: (C,H,W). section: of the recipe; its timm name is asked where it does not state everything. named: what
            `--preprocessing` names, see `stated`; wins over the timm name.
    """
    complete = all(getattr(section, key) is not None for key in STATED)
    config, origin = (None, "") if named is None else stated(named)
    if config is None and section.name and not complete:
        try:
            config, origin = of_timm(section.name), f"timm {section.name}"
        except TargetError:  # without timm nothing is known of its model; gates on accuracy then say so
            config = None
    return describe(image_shape, section, config, origin)


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    own = [float(value) for value in values]
    return own if len(own) == channels else (own * channels)[:channels]


def normalisation(preprocessing: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and std, float32 [C,1,1].

    Raises:
        LoadError: VP628 they are not known.
    """
    if "mean" not in preprocessing or "std" not in preprocessing:
        raise unknown(preprocessing, "pixels cannot be normalised")
    mean, std = (np.asarray(preprocessing[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return mean, std


def for_show(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """The description with 0.5 for an unknown mean and std: for synthetic images and for pictures in reports, never for data."""
    if "mean" in preprocessing and "std" in preprocessing:
        return preprocessing
    half = [0.5] * int(preprocessing["input_size"][0])
    return preprocessing | {"mean": half, "std": half}


def of_bundle(bundle: Bundle) -> dict[str, Any]:
    """The description of a bundle; earlier versions of `rewrite` wrote 0.5, bicubic and 0.9 where nobody had stated anything."""
    stored = bundle.manifest.preprocessing
    if "known" in stored or bundle.manifest.model["source"]["kind"] != "onnx":
        return stored
    return describe(stored["input_size"], bundle.recipe.model)


def require_known(preprocessing: dict[str, Any], purpose: str) -> None:
    """Refuse a purpose that needs the whole description.

    Raises:
        LoadError: VP628.
    """
    if not preprocessing.get("known", "mean" in preprocessing):
        raise unknown(preprocessing, purpose)


def unknown(preprocessing: dict[str, Any], purpose: str) -> LoadError:
    """The error VP628: what somebody must state before `purpose` can be done."""
    absent = [key for key in STATED if key not in preprocessing]
    return LoadError(
        628,
        f"preprocessing is not known: {purpose}",
        cause=f"nobody stated {', '.join(absent)}; accuracy on wrongly prepared images means nothing",
        next_step="vitprune rewrite ... --preprocessing preprocessor_config.json or a timm name, or model.mean, std, interpolation, crop_pct",
    )


def of_timm(name: str) -> dict[str, Any] | None:
    """The data configuration of a timm model, which is not built; None where timm has no such name.

    Raises:
        TargetError: VP201 timm is not installed.
    """
    extras.import_torch(f"the preprocessing of '{name}'")
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name.split(".")[0]):
        return None
    config = get_pretrained_cfg(name, allow_unregistered=False)
    return None if config is None else plain(resolve_data_config(pretrained_cfg=config.to_dict()))


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Timm's data configuration in JSON's types."""
    return {
        "mean": [float(v) for v in config["mean"]], "std": [float(v) for v in config["std"]],
        "interpolation": str(config["interpolation"]), "crop_pct": float(config["crop_pct"]), "crop_mode": str(config["crop_mode"]),
    }  # fmt: skip


def imagenet_names(module: Any) -> list[str]:
    """Names of the folders (WordNet synsets) of a pretrained timm model's classes, in its order; [] for other data than ImageNet-1k."""
    from timm.data import ImageNetInfo

    tag = str((getattr(module, "pretrained_cfg", None) or {}).get("tag", ""))
    if module.num_classes != 1000 or not tag.endswith("in1k"):
        return []
    return [str(name) for name in ImageNetInfo("imagenet-1k").label_names()]


def stated(text: str) -> tuple[dict[str, Any], str]:
    """What `--preprocessing` names: a Hugging Face preprocessor_config.json (or its folder), or a timm name; and who that is.

    Raises:
        LoadError: VP620 there is neither, VP621 the file is not understood.
    """
    path = Path(text)
    path = path / "preprocessor_config.json" if path.is_dir() else path
    if path.is_file():
        return of_hugging_face(path), path.name
    config = None if path.suffix == ".json" else of_timm(text)
    if config is None:
        raise LoadError(
            620, f"preprocessing '{text}' not found", cause="it is neither a file nor a timm model",
            next_step="--preprocessing preprocessor_config.json, or a timm name such as vit_base_patch16_224",
        )  # fmt: skip
    return config, f"timm {text}"


def of_hugging_face(path: Path) -> dict[str, Any]:
    """A preprocessor_config.json of an image processor that resizes, crops, rescales and normalises.

    Normalisation there is (pixel * rescale_factor - mean) / std with pixels 0 to 255; here pixels are 0 to 1.

    Raises:
        LoadError: VP621 it is not understood.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
        if config.get("do_pad") or config.get("offset") or config.get("rescale_offset"):
            raise ValueError("it pads or offsets images")
        factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
        white = 255 * factor
        flat = not config.get("do_normalize", True)
        mean, std = ([0.0], [1.0]) if flat else (config["image_mean"], config["image_std"])
        found: dict[str, Any] = {
            "mean": [float(value) / white for value in _list(mean)], "std": [float(value) / white for value in _list(std)],
            "interpolation": RESAMPLE[int(config["resample"])],
        }  # fmt: skip
        numbers = np.asarray([*found["mean"], *found["std"]], np.float64)
        if not np.isfinite(numbers).all() or min(found["std"]) <= 0:
            raise ValueError("mean and std are not numbers, or std is not above 0")
        return found | _crop(config)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        cause = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise LoadError(
            621, f"preprocessing '{path}' is not understood", cause=cause,
            next_step="state model.mean, std, interpolation and crop_pct in the recipe",
        ) from error  # fmt: skip


def side_of_hugging_face(path: Path) -> int:
    """Pixels of the square images that a preprocessor_config.json makes; errors as `of_hugging_face`."""
    of_hugging_face(path)
    config = json.loads(path.read_text(encoding="utf-8"))
    size = config["crop_size"] if config.get("do_center_crop", False) else config["size"]
    if isinstance(size, dict) and size["height"] != size["width"]:
        raise LoadError(
            621, f"preprocessing '{path}' is not understood", cause="images are cropped to a rectangle",
            next_step="state model.mean, std, interpolation, crop_pct and image_size in the recipe",
        )  # fmt: skip
    return int(size["height"] if isinstance(size, dict) else size)


def _list(value: Any) -> list[float]:
    return list(value) if isinstance(value, list) else [value]


def _crop(config: dict[str, Any]) -> dict[str, Any]:
    """crop_pct and crop_mode in timm's terms: side of the crop over the side that is resized to."""
    size = config["size"]
    if isinstance(size, int):
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        if not kind.startswith((*SQUARE, "CLIP")):
            raise ValueError(f"whether size {size} is the shorter side or both is not known of '{kind or 'no processor'}'")
        size = {"shortest_edge": size} if kind.startswith("CLIP") else {"height": size, "width": size}
    if "shortest_edge" not in size and size["height"] != size["width"]:
        raise ValueError("images are resized to a rectangle")
    if not config.get("do_resize", True):
        raise ValueError("images are not resized")
    side = size.get("shortest_edge") or size["height"]
    crop = side
    if config.get("do_center_crop", False):
        crop = config["crop_size"]
        crop = crop if isinstance(crop, int) else crop["height"]
    elif "shortest_edge" in size:
        raise ValueError("images are resized by their shorter side and not cropped")
    return {"crop_pct": crop / side, "crop_mode": "center" if "shortest_edge" in size else "squash"}
