"""PyTorch: runs the reference of a bundle whose weights can be had again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.backends import Result
from vitprune.backends._inputs import images
from vitprune.errors import LoadError, VitpruneError
from vitprune.support.answers import shapes_of

if TYPE_CHECKING:
    from vitprune.bundle import Bundle


def missing() -> str:
    """Why the backend cannot be used here, or ""."""
    import importlib.util

    absent = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed (extra 'torch')" if absent else ""


def version() -> str:
    """Version of PyTorch."""
    import torch

    return str(torch.__version__)


def dense_module(bundle: Bundle, weights: str | None = None) -> Any:
    """The dense timm model a bundle was exported from.

    Raises:
        LoadError: VP613 when its weights are not at hand or are others.
    """
    from vitprune.vit.loading import SHIPPED, load, weights_digest, weights_path

    source = bundle.manifest.model["source"]
    if source["kind"] == "hugging_face":
        return _of_folder(bundle, source, weights)
    if source["kind"] != "timm":
        raise LoadError(
            613,
            "the PyTorch model cannot be made again",
            cause="the bundle was exported from an instance or an ONNX file; its stored samples carry the reference",
            next_step="vitprune validate without --reference torch",
        )
    file = weights or source.get("file")
    section = bundle.recipe.model.model_copy(
        update={"name": source["name"], "args": source["args"], "image_size": source.get("resampled_to"), "weights": None}
    )
    if source["weights"] == "file":
        path = weights_path(file or "")
        if not path.is_file() or weights_digest(path) != source["sha256"]:
            where = "is not here" if not path.is_file() else "is not the file the bundle was exported from"
            raise LoadError(
                613,
                "the PyTorch model cannot be made again",
                cause=f"weights '{file}' {where}",
                next_step="--weights FILE with the original checkpoint",
            )
        file = file if str(file).startswith(SHIPPED) else str(path)
    return load(
        section,
        pretrained=source["weights"] == "pretrained",
        seed=source.get("seed", 0),
        weights=file if source["weights"] == "file" else None,
    ).module


def _of_folder(bundle: Bundle, source: dict[str, Any], weights: str | None) -> Any:
    """The dense model of a Hugging Face folder; weights: that folder, or the checkpoint that was loaded on top of it."""
    from vitprune.vit.hub import folder_of
    from vitprune.vit.loading import folder_digest, from_folder, weights_digest, weights_path

    section = bundle.recipe.model
    stated = section.name if section.name and Path(section.name).name == Path(source["folder"]).name else None
    on_top = source["weights"] == "file"
    places = [weights if not on_top or (weights and Path(weights).is_dir()) else None, source["folder"], stated]
    folder = None
    for place in filter(None, places):
        try:
            found = folder_of(str(place), fetch=False)
            if folder_digest(found, weights_path(str(found)).name) == source["sha256"]:
                folder = found
                break
        except (VitpruneError, OSError):
            continue
    file = (weights or section.weights or source.get("file")) if on_top else None
    changed = bool(file) and weights_digest(weights_path(str(file))) != source["file_sha256"]
    if folder is None or changed:
        raise LoadError(
            613,
            "the PyTorch model cannot be made again",
            cause=f"'{file if changed else source['folder']}' is not here or is not what the bundle was exported from",
            next_step="--weights FILE with the original checkpoint" if changed else "--weights FOLDER with the original model",
        )
    update = {"name": source["folder"], "args": {}, "image_size": source["image_size"], "weights": None}
    return from_folder(
        section.model_copy(update=update), pretrained=source["weights"] == "folder", seed=source["seed"],
        weights=str(file) if file else None, folder=folder,
    ).module  # fmt: skip


class Session:
    """The reference on the CPU."""

    def __init__(self, bundle: Bundle, module: Any = None, target: str | None = None) -> None:
        from vitprune.vit.pruned import PrunedViT

        if target is not None:
            raise LoadError(
                630,
                f"the bundle has no engine of '{target}' for PyTorch",
                cause="PyTorch runs the reference and no engines",
                next_step="leave --target out, or name the --backend of that target",
            )

        self._shape = tuple(bundle.manifest.preprocessing["input_size"])
        features = bundle.recipe.output.features
        self._names = list(shapes_of(bundle.manifest.io["outputs"])) if features else []
        self.model = PrunedViT(module if module is not None else dense_module(bundle), bundle.recipe).eval()

    def run(self, x: Any) -> Result:
        """Run images float32 [B,C,H,W]."""
        import torch

        with torch.inference_mode():
            logits = self.model(torch.from_numpy(images(x, self._shape)))
        kept = [kept.numpy() for kept in self.model.kept]
        return Result(
            logits.numpy(), kept, features=dict(zip(self._names, (f.numpy() for f in self.model.features), strict=True))
        )
