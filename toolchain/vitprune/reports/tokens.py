"""Pictures of what became of the tokens: kept patches, merged groups, the depth that patches reach, the exit that answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import methods
from vitprune.bundle import Bundle
from vitprune.errors import VitpruneError
from vitprune.reports.parts import Section
from vitprune.reports.pictures import data_uri, displayable, with_depth, with_dropped, with_groups

SHOWN = 6  # images of a gallery
SIDE = 112  # pixels that a picture has at least
Picture = tuple[str, str]


def sections(name: str, bundle: Bundle) -> list[Section]:
    """The galleries of a bundle's stored samples; one that says why where there can be none."""
    if len(bundle.model_files) > 1:
        return [_exits(name, bundle)]
    patches, blocks = int(bundle.manifest.model["geometry"]["patches"]), [int(site["block"]) for site in bundle.manifest.sites]
    side = int(np.sqrt(patches))
    if side * side != patches or not blocks:
        return [Section(f"Tokens in pictures: {name}", "the patches are no square grid, or nothing is dropped: no pictures")]
    arrays = bundle.samples()
    chosen = _fewest_and_most(arrays, blocks)
    groups = _groups(bundle, arrays["images"][chosen]) if methods.get(bundle.recipe.prune.method).places == "map" else None
    rows = []
    for place, image in enumerate(chosen):
        pixels = displayable(arrays["images"][image], bundle.manifest.preprocessing)
        scale, grid = max(1, SIDE // pixels.shape[0]), (side, side)
        row: list[Picture] = [(f"image {image}", data_uri(with_dropped(pixels, np.arange(patches), grid, scale)))]
        for number, block in enumerate(blocks):
            kept = arrays[f"kept_{block}"][image]
            shown = (
                with_dropped(pixels, kept, grid, scale)
                if groups is None
                else with_groups(pixels, groups[number][place], grid, scale)
            )
            row.append((f"block {block}: {int((kept >= 0).sum())} left", data_uri(shown)))
        if _by_depth(bundle):
            depth = _depths([arrays[f"kept_{block}"][image] for block in blocks], patches)
            row.append(
                (
                    f"depth, mean {depth.mean():.1f} of {len(blocks)} sites",
                    data_uri(with_depth(pixels, depth / len(blocks), grid, scale)),
                )
            )
        rows.append(tuple(row))
    return [Section(f"Tokens in pictures: {name}", _note(bundle, groups is not None), pictures=tuple(rows))]


def _fewest_and_most(arrays: dict[str, NDArray[Any]], blocks: list[int]) -> list[int]:
    """Images that keep the fewest patches over all sites and those that keep the most, in that order."""
    total = np.sum([(arrays[f"kept_{block}"] >= 0).sum(axis=1) for block in blocks], axis=0)
    order = np.argsort(total, kind="stable")
    chosen = np.unique(np.concatenate([order[: SHOWN // 2], order[-(SHOWN // 2) :]]))
    return sorted((int(image) for image in chosen), key=lambda image: int(total[image]))


def _note(bundle: Bundle, grouped: bool) -> str:
    dark = "stored samples; dropped patches are dark"
    if grouped:
        return "stored samples; patches that merged have their mean colour, lines part the groups"
    if methods.get(bundle.recipe.prune.method).places == "map":
        return f"{dark}; groups that merged are shown where the PyTorch model is at hand"
    return f"{dark}; the last picture is the darker the earlier a patch halts" if _by_depth(bundle) else dark


def _by_depth(bundle: Bundle) -> bool:
    return methods.get(bundle.recipe.prune.method).varies.startswith("depth")


def _depths(kept: list[NDArray[np.int64]], patches: int) -> NDArray[np.int64]:
    """int64 [P]: at how many sites each patch was still there."""
    depth = np.zeros(patches, np.int64)
    for site in kept:
        depth[site[site >= 0]] += 1
    return depth


def _groups(bundle: Bundle, images: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """Per site int64 [n,P], which patch stands for every patch, by the reference; None where it is not at hand."""
    from vitprune.backends import torch as torch_backend

    try:
        if torch_backend.missing():
            return None
        module = torch_backend.dense_module(bundle)
    except VitpruneError:
        return None
    import torch

    from vitprune.vit.pruned import PrunedViT

    oracle = PrunedViT(module, bundle.recipe).eval()
    with torch.inference_mode():
        oracle(torch.from_numpy(images))
    found = oracle.extra.get("groups")
    return None if found is None else np.asarray(found.numpy())


def _exits(name: str, bundle: Bundle) -> Section:
    """Which exit answers the stored samples, with the first images of each."""
    arrays = bundle.samples()
    exits = arrays.get("exits")
    if exits is None:
        return Section(f"Exits: {name}", "the samples do not say which exit answers")
    numbers = range(1, len(bundle.model_files) + 1)
    rows = tuple(
        (str(number), str(int((exits == number).sum())), f"{100 * float((exits == number).mean()):.1f} %") for number in numbers
    )
    pictures = []
    for number in numbers:
        row = []
        for image in np.flatnonzero(exits == number)[:SHOWN]:
            pixels = displayable(arrays["images"][image], bundle.manifest.preprocessing)
            large = with_dropped(pixels, np.arange(1), (1, 1), max(1, SIDE // pixels.shape[0]))
            row.append((f"exit {number}: image {image}", data_uri(large)))
        if row:
            pictures.append(tuple(row))
    return Section(
        f"Exits: {name}", "stored samples, by the exit that answers them", ("exit", "images", "share"), rows, tuple(pictures)
    )
