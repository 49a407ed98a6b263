"""Pictures of kept tokens: images as PNG data URIs, dropped patches darkened."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.data.preprocessing import for_show, normalisation


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H,W,3] as PNG (RFC 2083: 8-bit RGB, no filter)."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def displayable(image: NDArray[np.float32], preprocessing: dict[str, Any]) -> NDArray[np.uint8]:
    """Undo the normalisation of [C,H,W]; uint8 [H,W,3]."""
    mean, std = normalisation(for_show(preprocessing))
    pixels = (np.clip(image * std + mean, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]


def with_dropped(pixels: NDArray[np.uint8], kept: NDArray[np.int64], grid: tuple[int, int], scale: int = 1) -> NDArray[np.uint8]:
    """Enlarge an image and tint the patches that are not kept; kept holds patch numbers, -1 is padding."""
    large = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    alive = np.zeros(grid[0] * grid[1], bool)
    alive[kept[kept >= 0]] = True
    height, width = large.shape[0] // grid[0], large.shape[1] // grid[1]
    mask = np.repeat(np.repeat(alive.reshape(grid), height, axis=0), width, axis=1)
    gone = ~mask[..., None]
    tint = np.array([38, 50, 78], np.float32)
    area = large[: mask.shape[0], : mask.shape[1]]
    return np.where(gone, (0.18 * area + 0.82 * tint), area).astype(np.uint8)


def with_depth(pixels: NDArray[np.uint8], share: NDArray[np.float64], grid: tuple[int, int], scale: int = 1) -> NDArray[np.uint8]:
    """Enlarge an image and darken every patch by how early it ended; share: float [P], 1 = it stayed to the end."""
    large = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    height, width = large.shape[0] // grid[0], large.shape[1] // grid[1]
    light = np.repeat(np.repeat(share.reshape(grid), height, axis=0), width, axis=1)[..., None]
    area, tint = large[: grid[0] * height, : grid[1] * width], np.array([38, 50, 78], np.float32)
    return (light * area + (1 - light) * (0.1 * area + 0.9 * tint)).astype(np.uint8)


def with_groups(pixels: NDArray[np.uint8], group: NDArray[np.int64], grid: tuple[int, int], scale: int = 1) -> NDArray[np.uint8]:
    """Enlarge an image and paint every group of merged patches in its mean colour, with thin lines between groups.

    Args:
        pixels: uint8 [H,W,3]. group: int64 [P], for every patch the patch that represents it, -1 where a capacity lost it.
        grid: patch rows and columns. scale: enlargement.
    """
    large = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    height, width = large.shape[0] // grid[0], large.shape[1] // grid[1]
    area = large[: grid[0] * height, : grid[1] * width].astype(np.float32)
    names = np.repeat(np.repeat(group.reshape(grid), height, axis=0), width, axis=1)
    painted = area.copy()
    for name in np.unique(group):
        members = names == name
        if name < 0:
            painted[members] = (38, 50, 78)
        elif (group == name).sum() > 1:  # a patch on its own stays as it is
            painted[members] = area[members].mean(axis=0)
    edge = np.zeros(names.shape, bool)
    edge[1:] |= names[1:] != names[:-1]
    edge[:, 1:] |= names[:, 1:] != names[:, :-1]
    painted[edge] = 0.6 * painted[edge] + 0.4 * np.array((230, 140, 30), np.float32)
    return painted.astype(np.uint8)
