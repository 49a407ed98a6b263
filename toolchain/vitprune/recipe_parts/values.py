"""Values of recipes and manifests that need a look of their own."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator

# Arguments of timm.create_model that name files, folders and download sources, or change what the weights are.
FOREIGN_ARGS = frozenset(
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir", "model_name")
    + ("scriptable", "exportable", "no_jit", "features_only", "feature_cfg", "file", "url", "hf_hub_id", "kwargs_filter")
)


def _model_args(args: dict[str, Any]) -> dict[str, Any]:
    for name, value in args.items():
        if name in FOREIGN_ARGS or name.startswith("_"):
            raise ValueError(f"'{name}' is no argument of a model's shape; weights are named by model.weights")
        if isinstance(value, int) and abs(value) > 1 << 20:
            raise ValueError(f"'{name}' is {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"'{name}' is not a finite number")
    return args


ModelArgs = Annotated[dict[str, Any], AfterValidator(_model_args)]


def read_profile(text: str) -> tuple[int, int, int]:
    """(min, opt, max) of "min:opt:max" or of one number.

    Raises:
        ValueError: with what a profile is.
    """
    if re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5}:[0-9]{1,5})?", text) is None:
        raise ValueError("batch is one number or min:opt:max, for example 1:4:8")
    low, opt, high = (int(part) for part in (text.split(":") if ":" in text else [text] * 3))
    if not 0 < low <= opt <= high:
        raise ValueError("batch min:opt:max must ascend, from 1")
    return low, opt, high
