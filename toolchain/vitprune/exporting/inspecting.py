"""Anatomy, token and MAC curve, files and engines of a bundle, as one document."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitprune import methods
from vitprune.backends._engines import FACTS, built_targets, read, state
from vitprune.bundle import Bundle
from vitprune.methods.base import BlockTokens, Geometry
from vitprune.methods.cost import block_macs, dense_blocks, model_macs
from vitprune.preflight import launch_model
from vitprune.targets import Choice


def inspect(bundle: Bundle) -> dict[str, Any]:
    """Everything a bundle tells without running it.

    Returns:
        JSON-ready: name, method, geometry, sites (block, limit, mean kept patches of the stored reference), blocks (tokens that
        enter, query rows and MLP rows at those means, MACs pruned and dense), macs (per image), files (bytes), engines (facts and state).

    Raises:
        LoadError: VP638 when an engine.json cannot be read.
    """
    geometry = Geometry(**bundle.manifest.model["geometry"])
    method = methods.get(bundle.recipe.prune.method)
    sites = method.sites(bundle.recipe.prune, geometry)
    samples = bundle.samples()
    kept = [float((samples[f"kept_{site.block}"] >= 0).sum(axis=1).mean()) for site in sites]
    pruned, dense = method.block_tokens(sites, geometry, kept), dense_blocks(geometry)
    total, full = model_macs(geometry, pruned), model_macs(geometry, dense)
    return {
        "name": bundle.manifest.name,
        "method": method.name,
        "geometry": bundle.manifest.model["geometry"],
        "shapes": bundle.recipe.graph.shapes,
        "precision": bundle.recipe.precision.mode,
        "sites": [{**site, "kept_mean": mean} for site, mean in zip(bundle.manifest.sites, kept, strict=True)],
        "blocks": [_block(i, *pair, geometry) for i, pair in enumerate(zip(pruned, dense, strict=True))],
        "macs": {"pruned": total, "dense": full, "ratio": total / full},
        "files": {name: _size(bundle.path / name) for name in bundle.manifest.files},
        "engines": {name: _engine(bundle, name) for name in built_targets(bundle.path)},
    }


def launches(bundle: Bundle, choice: Choice, batch: int = 1) -> dict[str, Any]:
    """Kernels that a bundle and its dense model start on a target, block by block, and the time that the launch model makes of them.

    Args:
        bundle: an opened bundle. choice: target and module. batch: images in one run, for the model.

    Returns:
        JSON-ready: target, module, unknown (why nothing was counted, else ""), blocks (block -1 is what stands before them; norm and head
        count with the last), dense and pruned (sums), model (None without constants of the module), plugin (None where no site can be a
        plugin node: sites, how many are one with `--sites plugin`; pruned and model, as they are then).
    """
    target, module = choice.target, choice.module
    answer: dict[str, Any] = {"target": target.name, "module": choice.module_name, "unknown": "", "blocks": [], "model": None}
    answer |= {"dense": None, "pruned": None, "plugin": None}
    try:
        counted = launch_model.count(bundle, None, target.backend)
        plugins = launch_model.with_plugins(bundle, None, counted, target.backend)
    except ValueError as error:
        return {**answer, "unknown": str(error)}
    pairs = list(zip(counted.dense, counted.pruned, strict=True))
    answer["blocks"] = [{"block": i - 1, "dense": asdict(one), "pruned": asdict(other)} for i, (one, other) in enumerate(pairs)]
    for name, parts in (("dense", counted.dense), ("pruned", counted.pruned)):
        answer[name] = asdict(sum(parts[1:], parts[0]))

    def modelled(one: launch_model.Counted) -> dict[str, Any] | None:
        if target.launch is None or module is None or module.speed is None:
            return None
        made = launch_model.estimate(bundle, one, target.launch, module.speed, batch)
        return None if made is None else {**made.document(), "text": made.text()}

    answer["model"] = modelled(counted)
    if plugins is not None:
        other, made = plugins
        pruned = asdict(sum(other.pruned[1:], other.pruned[0]))
        answer["plugin"] = {"sites": made, "pruned": pruned, "model": modelled(other)}
    return answer


def _engine(bundle: Bundle, target: str) -> dict[str, Any]:
    """An engine's engine.json, with "state": "whole", or what is wrong with its files, of which then nothing is believed."""
    why, file = state(bundle, target), bundle.engine_path(target) / FACTS
    if why or not file.is_file():
        return {"state": why or "only a package"}
    return {**read(file).document, "state": "whole"}


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _block(number: int, pruned: BlockTokens, dense: BlockTokens, geometry: Geometry) -> dict[str, float]:
    macs = (block_macs(tokens, geometry.width, geometry.mlp_hidden) for tokens in (pruned, dense))
    return {
        "block": number, "entering": pruned.entering, "queries": pruned.queries, "mlp": pruned.mlp,
        **dict(zip(("macs", "dense_macs"), macs, strict=True)),
    }  # fmt: skip
