"""Whether a model of given arguments can be made at all, before its memory is taken."""

from __future__ import annotations

from typing import Any

from vitprune.support.limits import limits, require


def require_makeable(args: dict[str, Any]) -> None:
    """Refuse arguments whose model would fill the memory: those of a timm VisionTransformer, as far as they are given as numbers.

    Raises:
        BeyondLimit: weights or tokens.
    """

    def number(name: str, default: float) -> float:
        value = args.get(name, default)
        return max(1.0, float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else default

    width = number("embed_dim", 768)
    block = width * width * (4 + 2 * number("mlp_ratio", 4))
    weights = number("depth", 12) * block + width * (number("num_classes", 1000) + 3 * number("patch_size", 16) ** 2)
    require("the model", int(weights), limits.weights, "weights")
    patches = (number("img_size", 224) / number("patch_size", 16)) ** 2
    require("an image of the model", int(patches), limits.tokens, "patches")
