"""Pixels: which arrays are taken for what, and pictures brought to eight bits."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitprune.data.preprocessing import normalisation
from vitprune.errors import LoadError
from vitprune.support.limits import limits, require

READY, UNIT, BYTES = "ready", "0-1", "0-255"
FORMS = (READY, UNIT, BYTES)
SLACK = 2.0  # widths of the normalised range [(0-mean)/std, (1-mean)/std] that ready-made values may lie outside of it
UNKNOWN_LIMIT = 16.0  # largest ready-made magnitude where mean and std are not known


def normalise(pixels: NDArray[np.float32], preprocessing: dict[str, Any]) -> NDArray[np.float32]:
    """(pixels - mean) / std per channel; pixels [n,C,H,W] or [C,H,W] in [0,1].

    Raises:
        LoadError: VP628 mean and std are not known.
    """
    mean, std = normalisation(preprocessing)
    return ((pixels - mean) / std).astype(np.float32)


def checked(images: Any, form: str | None, preprocessing: dict[str, Any], origin: str) -> tuple[NDArray[Any], bool]:
    """What an array of images holds, or why it is not taken.

    Args:
        images: [n,...]. form: what the file says of it: "ready" (preprocessed), "0-1", "0-255", or None. preprocessing: of the
            model; {} where no model is in sight. origin: for messages.

    Returns:
        uint8 pixels, or float32 in [0,1] and False; or float32 that is preprocessed already and True.

    Raises:
        LoadError: VP621 with the reason.
    """
    if form is not None and form not in FORMS:
        raise _refused(origin, f"'pixels' says {form!r}; it is one of {', '.join(FORMS)}", "correct the entry 'pixels'")
    kind = images.dtype
    if kind == np.uint8:
        if form in (READY, UNIT):
            raise _refused(origin, f"images are uint8 and 'pixels' says {form!r}", "store them as float32")
        if images.size and images.max() == 1:
            raise _refused(
                origin, "images are uint8 and none exceeds 1: pixels 0 to 1 that were cut to integers", "store 0 to 255"
            )
        return images, False
    if kind.kind != "f":
        raise _refused(
            origin, f"images are {kind}{_why(kind)}", "store uint8 pixels 0 to 255, or float32 as the model reads them"
        )
    wrong = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1)) if images.size else np.zeros(0, int)
    if len(wrong):
        raise _refused(origin, f"image {wrong[0]} holds NaN or infinite pixels; {len(wrong)} such images", "correct the images")
    values = images.astype(np.float32)
    found = form or _guessed(values, preprocessing, origin)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if found != READY and (low < 0 or high > (1 if found == UNIT else 255)):
        raise _refused(
            origin, f"'pixels' says {found!r} but values go from {low:.4g} to {high:.4g}", "correct the entry 'pixels'"
        )
    return (values / 255 if found == BYTES else values), found == READY


def _why(kind: np.dtype[Any]) -> str:
    if kind == np.uint16:
        return ": whether 255 or 65535 is white is not known"
    return {"b": ": a mask has no grey levels", "c": ": pixels are real numbers"}.get(kind.kind, "")


def _guessed(values: NDArray[np.float32], preprocessing: dict[str, Any], origin: str) -> str:
    """Form of float images from their range, where only one is possible."""
    if not values.size:
        return READY
    low, high = float(values.min()), float(values.max())
    seen = f"float images go from {low:.4g} to {high:.4g}"
    state = "add pixels='ready' (preprocessed), '0-1' or '0-255' to numpy.savez"
    if "mean" not in preprocessing:
        if max(-low, high) <= UNKNOWN_LIMIT:
            return READY
        raise _refused(origin, f"{seen}, and what the model was trained on is not known", state)
    mean, std = normalisation(preprocessing)
    black, white = float((-mean / std).min()), float(((1 - mean) / std).max())
    room = SLACK * (white - black)
    if low < 0:
        if black - room <= low and high <= white + room:
            return READY
        raise _refused(origin, f"{seen}; preprocessed ones go from {black:.3g} to {white:.3g}", state)
    if high > white + room and high <= 255:
        return BYTES
    if black == 0 and white == 1 and high <= 1:
        return READY
    if high > 255:
        raise _refused(origin, f"{seen}; preprocessed ones go from {black:.3g} to {white:.3g}", state)
    raise _refused(origin, f"{seen}: they may be preprocessed, or pixels from 0 to {1 if high <= 1 else 255}", state)


def _refused(origin: str, cause: str, next_step: str) -> LoadError:
    return LoadError(621, f"images of '{origin}' are not taken", cause=cause, next_step=next_step)


def picture(stream: BinaryIO) -> Any:
    """The picture in an image file, as `eight_bit`; its size is looked at before its pixels are read.

    Raises:
        BeyondLimit: more pixels than are read. OSError, SyntaxError, ValueError: no image, or damaged.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # PIL's own limit knows no --no-limits
    image = Image.open(stream)
    require("the picture", image.width * image.height, limits.pixels, "pixels")
    return eight_bit(image)


def eight_bit(image: Any) -> Any:
    """A PIL image with eight bits per channel; deeper ones are scaled, where PIL's own conversion cuts them off at 255.

    Raises:
        ValueError: a 32-bit image, whose white is not known.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        deep = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(deep / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits per pixel (mode {image.mode}); which value is white is not known")
    return image
