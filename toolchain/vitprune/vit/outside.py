"""Why a model of timm is no plain ViT, read off what it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from vitprune.errors import ExportError

WINDOWS = "its blocks attend within windows of the image, and tokens that leave would tear the windows"
OTHERS = {
    "VisionTransformerSAM": WINDOWS,
    "SwinTransformer": WINDOWS,
    "Cait": "its attention mixes the heads (TalkingHeadAttn), and its last blocks attend from the CLS token alone",
    "Xcit": "its blocks attend over channels (XCA), not over tokens, and filter the image between them",
    "ConVit": "its attention is gated by positions (GPSA), which belong to tokens in their places",
    "TNT": "a second transformer attends within each patch (attn_in) and feeds the tokens block by block, in their places",
    "VOLO": "its first blocks attend within neighbourhoods of the image (OutlookAttention), and tokens that leave would tear them",
}
WORDS = ("attn", "attention", "gpsa", "xca", "litemla", "shsa")
OTHER_WORDS = (
    "pool",
    "eca",
    "squeeze",
    "channel",
    "block",
    "stage",
    "layer",
)  # of gates over channels, and of what holds attentions
KINDS = "VisionTransformer, Eva, Beit, VisionTransformerRelPos"


def why_outside(model: nn.Module) -> str:
    """The reason for which a model that is not of timm's plain kinds cannot be pruned, naming the part that stands against it."""
    name = type(model).__name__
    if name in OTHERS:
        return OTHERS[name]
    attentions = list(_attentions(model))
    if not attentions:
        return f"{name} has no attention between tokens; its parts are {_parts(model)}"
    label, first = next(((label, one) for label, one in attentions if _in_windows(one)), attentions[0])
    kind = f"{name} is not one of timm's plain ViTs ({KINDS}): '{label}' ({type(first).__name__})"
    if _in_windows(first):
        return f"{kind} attends within windows of the image, and tokens that leave would tear the windows"
    if any(isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1) for _, one in attentions for part in one.modules()):
        return f"{kind} has convolutions over the image, which need every token in its place"
    widths = {part.in_features for _, one in attentions for part in one.modules() if isinstance(part, nn.Linear)}
    convolutions = sum(isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1) for part in model.modules())
    if len(widths) > 2 or convolutions > 1:
        return f"{kind} stands in stages between which the grid of tokens changes, which needs every token in its place"
    return f"{kind} is of another form than attention of all tokens to all tokens"


def require_plain(model: nn.Module) -> None:
    """Refuse a model that is none of timm's plain ViTs.

    Raises:
        ExportError: VP310 with the reason.
    """
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    if not isinstance(model, VisionTransformer | Eva | Beit | VisionTransformerRelPos):
        raise ExportError(
            310,
            f"nothing to patch in {type(model).__name__}",
            cause=why_outside(model),
            next_step="use a timm VisionTransformer such as deit_small_patch16_224; vitprune models lists what works",
        )


def _attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Parts that attend, by their type's name, the outermost of each, with channel gates (squeeze and excitation) left out."""
    inside = ""
    for label, part in model.named_modules():
        name = type(part).__name__.lower()
        attends = any(word in name for word in WORDS) and not any(word in name for word in OTHER_WORDS)
        if label and attends and not (inside and label.startswith(f"{inside}.")):
            inside = label
            yield label, part


def _in_windows(part: Any) -> bool:
    return "window" in type(part).__name__.lower() or any(
        bool(getattr(part, name, None)) for name in ("window_size", "window_area", "grid_size") if not isinstance(getattr(part, name, None), nn.Module)
    )  # fmt: skip


def _parts(model: nn.Module) -> str:
    """The model's own parts by type, the first few."""
    kinds = dict.fromkeys(type(part).__name__ for part in model.modules() if part is not model)
    return ", ".join([kind for kind in kinds if not hasattr(nn, kind)][:3] or list(kinds)[:3])
