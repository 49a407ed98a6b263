"""The graphs with which a device package measures a latency table: made here, where PyTorch is, and run there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import onnx

from vitprune.bundle import Bundle
from vitprune.device.profiling import FOLDER, INDEX, WEIGHTS
from vitprune.recipe import Recipe
from vitprune.tuning.opening import model_of, sizes
from vitprune.tuning.profile import graphs_of, images, model_for, token_counts, tokens_of
from vitprune.tuning.profile import model_of as sizes_of
from vitprune.vit.dense import geometry

SMALL = 1024  # bytes of a tensor that is kept in its graph
COUNTS = 6


def profile_files(bundle: Bundle, batches: Sequence[int], counts: int = COUNTS) -> dict[str, bytes]:
    """Files of a package's profile folder by their path: the bundle's method at a row of token counts.

    Raises:
        RecipeError: VP186 a model that cannot be made for other token counts; what opening the bundle's model raises.
    """
    from vitprune.vit.loading import require_torch

    require_torch("build-engine --profile-tokens")
    found = model_of(str(bundle.path), None, False, None)
    return packed(found.recipe, found.module, sorted(set(batches)), token_counts(sizes(found.module), counts))


def packed(base: Recipe, module: Any, batches: Sequence[int], counts: Sequence[int]) -> dict[str, bytes]:
    """See `profile_files`; counts: tokens, prefix included."""
    pool, files, places = _Pool(), {}, []
    method, whole, first = base.prune.method, geometry(module), None
    for tokens in counts:
        small, shape = model_for(base, module, tokens - whole.prefix)
        first = _alike(small, first)
        graphs, recipes = graphs_of(base, small, shape, [method], max(batches))
        names = {}
        for name, graph in graphs.items():
            names[name] = f"{tokens}-{name}.pb"
            files[f"{FOLDER}/{names[name]}"] = pool.bare(graph)
        pixels, own = images(max(batches), shape), geometry(small)
        blocks = {
            str(batch): [list(asdict(one).values()) for one in tokens_of(small, own, method, recipes[method], pixels[:batch])]
            for batch in batches
        }
        places.append({"tokens": own.tokens, "shape": list(shape), "graphs": names, "blocks": {method: blocks}})
    index = {"model": asdict(sizes_of(whole)), "batches": list(batches), "places": places}
    files[f"{FOLDER}/{INDEX}"] = (json.dumps(index, indent=1) + "\n").encode()
    files[f"{FOLDER}/{WEIGHTS}"] = pool.serialised()
    return files


def _alike(small: Any, first: dict[str, Any] | None) -> dict[str, Any]:
    """Give a model the weights of the first one, where they fit, so that the package holds them once."""
    own = small.state_dict()
    if first is None:
        return {name: value.clone() for name, value in own.items()}
    small.load_state_dict({name: first[name] if first[name].shape == value.shape else value for name, value in own.items()})
    return first


class _Pool:
    """Tensors of all graphs, named by their contents."""

    def __init__(self) -> None:
        self.tensors: dict[str, onnx.TensorProto] = {}

    def bare(self, model: onnx.ModelProto) -> bytes:
        """The graph without its larger tensors, which `serialised` holds."""
        kept, names = [], {}
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < SMALL:
                kept.append(tensor)
                continue
            content = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)} ".encode() + tensor.raw_data).hexdigest()
            names[tensor.name] = f"shared/{content[:32]}"
            if names[tensor.name] not in self.tensors:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensor)
                copy.name = names[tensor.name]
                self.tensors[copy.name] = copy
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(kept)
        for node in bare.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = names.get(name, name)
        return bare.SerializeToString(deterministic=True)

    def serialised(self) -> bytes:
        """A model of nothing but the tensors: behind a bare graph's bytes it completes it (protobuf merges messages end to end)."""
        model = onnx.ModelProto()
        model.graph.initializer.extend(self.tensors[name] for name in sorted(self.tensors))
        return model.SerializeToString(deterministic=True)
