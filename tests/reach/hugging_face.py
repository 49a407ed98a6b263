"""Which vision models of transformers work through `rewrite`, by exporter, attention and method: small, with random weights.

    python tests/reach/hugging_face.py --store                              # all, into recipes/hugging_face.json
    python tests/reach/hugging_face.py --only DINOv3 --exporters "dynamo 18" --attentions sdpa   # some, printed

A case is one model, one exporter, one implementation of attention, one method: the pruned graph against the reference built from the
dense graph's weights, with nothing pruned against the model in PyTorch, an image alone against the same image in a batch. Where a head reads prefix tokens only there is a further judge, which knows nothing of graphs: transformers' own
layers on all tokens, with those hidden as keys that the graph says have left.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hugging_face_models import PATCH, SIDE, ZOO, Answer, image
from torch.nn import functional

from vitprune.reports.hugging_face import failure
from vitprune.support.files import write_atomic

STORED = Path(__file__).parents[2] / "recipes" / "hugging_face.json"
EXPORTERS = ("torchscript 17", "dynamo 18", "dynamo 20", "dynamo 23")
ATTENTIONS = ("eager", "sdpa")
PRUNE: dict[str, dict[str, Any]] = {"tome": {"r": 5}, "topk": {"stages": [1, 2], "keep_rate": 0.6}}


@cache
def model(name: str, attention: str) -> Answer:
    """ValueError where transformers has no such attention of it."""
    return Answer(ZOO[name], attention)


@lru_cache(2)
def traced(name: str, attention: str) -> Any:
    """The program that torch.export makes of a model, with an open batch; the newer exporter writes it in any opset."""
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with quietly():
        return torch.export.export(model(name, attention), (image(2),), dynamic_shapes={"image": batch})


@lru_cache(2)
def dense(name: str, exporter: str, attention: str) -> onnx.ModelProto:
    """The dense graph with an open batch, as an exporter writes it; kept in the folder GRAPHS where one is named."""
    kept = Path(os.environ.get("GRAPHS", "")) / f"{name} {exporter} {attention}.onnx" if "GRAPHS" in os.environ else None
    if kept is not None and kept.exists():
        return onnx.load(kept)
    made = _exported(name, exporter, attention)
    if kept is not None:
        onnx.save(made, kept)
    return made


def _exported(name: str, exporter: str, attention: str) -> onnx.ModelProto:
    kind, opset = exporter.split()
    target = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["answer"], "opset_version": int(opset)}
    if kind == "dynamo":
        program = traced(name, attention)
        with quietly():
            made: onnx.ModelProto = torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto
        return made
    axes = {"image": {0: "batch"}, "answer": {0: "batch"}}
    with quietly():
        torch.onnx.export(model(name, attention), (image(2),), target, dynamo=False, dynamic_axes=axes, **names)
    return onnx.load_from_string(target.getvalue())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what torch and transformers say on the way; of a failure torch prints the whole graph, past Python."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    said, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, old in zip((1, 2), said, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(null)


@lru_cache(2)
def taken(name: str, exporter: str, attention: str) -> tuple[onnx.ModelProto, Any]:
    """The dense graph as the passes take it, and the reference's model made of it; one of each for all methods."""
    from vitprune.exporting.graph_vit import GraphViT
    from vitprune.graph import families
    from vitprune.graph.intake import take_in

    made = take_in(dense(name, exporter, attention), rules(name, "tome")).model
    family = families.of(made)
    return made, GraphViT(made, family.find_dense(made) if ZOO[name].features else family.find(made))


def rules(name: str, method: str, score: str | None = None) -> Any:
    """Recipe of a case."""
    from vitprune.recipe import Recipe

    made: dict[str, Any] = {"prune": {"method": method, **PRUNE[method]}, "graph": {"batch": "1:4:8"}}
    if score:
        made["prune"]["score"] = score
    if ZOO[name].features:
        made["output"] = {"kind": "features"} | ({} if method == "tome" else {"fill": "last"})
    return Recipe.load(made)


def case(name: str, exporter: str, attention: str, method: str) -> dict[str, Any]:
    """Differences, in units of the largest answer (at least 1): parity, noop, batch, pruned, and masked where that judge knows the head.

    The model is held to have a CLS token where a method that scores by it finds one; else the score is the mean attention.
    """
    from vitprune.backends.onnxruntime import make_session
    from vitprune.graph.surgery import canonical, rewrite
    from vitprune.vit.pruned import PrunedViT

    x, (given, judge) = image(), taken(name, exporter, attention)
    score = None if judge.geometry.has_cls or method == "tome" else "mean_attention"
    chosen = rules(name, method, score)
    with torch.no_grad():
        plain = model(name, attention)(x).numpy()
        oracle = PrunedViT(judge, chosen).eval()
        wanted, kept = oracle(x).numpy(), [_sets(rows.numpy()) for rows in oracle.kept]
    scale = max(1.0, float(np.abs(plain).max()))

    def off(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one.reshape(len(x), -1) - other.reshape(len(x), -1)).max()) / scale

    session = make_session(rewrite(given, chosen)[0].SerializeToString())
    got, *lists = session.run(None, {"image": x.numpy()})
    alone = np.concatenate([session.run(None, {"image": x[i : i + 1].numpy()})[0] for i in range(len(x))])
    bare = make_session(canonical(given, chosen).SerializeToString()).run(None, {"image": x.numpy()})[0]
    found: dict[str, Any] = {
        "parity": off(got, wanted), "noop": off(bare, plain), "batch": off(alone, got), "pruned": off(got, plain),
        "kept": [_sets(rows) for rows in lists[: len(kept)]] == kept, "score": score or "",
    }  # fmt: skip
    hidden = masked(name, lists, x) if method == "topk" and ZOO[name].cls and not ZOO[name].features and not score else None
    return found | ({} if hidden is None else {"masked": off(hidden, got)})


def _sets(rows: np.ndarray) -> list[list[int]]:
    return [sorted(int(one) for one in row if one >= 0) for row in rows]


def masked(name: str, kept: list[np.ndarray], x: torch.Tensor) -> np.ndarray | None:
    """The model's answer on all tokens, with those hidden as keys behind each stage that are not in its list.

    None where its attention does not go through transformers' interface, so that nothing can be hidden.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    net, calls = model(name, "eager").net, 0
    gone = dict(zip((stage + 1 for stage in PRUNE["topk"]["stages"]), kept, strict=True))
    now: torch.Tensor | None = None

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any) -> Any:
        nonlocal calls, now
        if calls in gone:
            now = torch.zeros(len(x), 1, 1, key.shape[2])
            patches = now[..., -((SIDE // PATCH) ** 2) :].fill_(-torch.inf)
            for row, numbers in enumerate(gone[calls]):
                patches[row, 0, 0, torch.as_tensor(numbers[numbers >= 0])] = 0.0
        calls += 1
        masks = [mask for mask in (attention_mask, now) if mask is not None]
        context = functional.scaled_dot_product_attention(query, key, value, sum(masks) if masks else None, scale=scaling)
        return context.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("hidden_keys", attend)
    configs = {id(one.config): one.config for one in net.modules() if hasattr(one, "config")}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "hidden_keys"
    with torch.no_grad():
        answer: np.ndarray = model(name, "eager")(x).numpy()
    for config, one in zip(configs, before, strict=True):
        config._attn_implementation = one
    return answer if calls == len(gone) + 2 else None


def attempt(name: str, exporter: str, attention: str, method: str) -> dict[str, Any]:
    """A case, or why there is none."""
    from vitprune.errors import VitpruneError

    try:
        model(name, attention)
    except ValueError as error:
        if "does not support an attention implementation" not in str(error):
            raise
        return {"absent": "transformers has no such attention of it"}
    try:
        dense(name, exporter, attention)
    except Exception as error:
        return {"absent": f"the exporter cannot write it: {str(error).splitlines()[0]}"[:200]}
    try:
        found = case(name, exporter, attention, method)
    except VitpruneError as error:
        return {"refused": f"{error.code}: {error.message}; {error.cause}"[:300]}
    except Exception as error:
        return {"refused": f"crash: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
    return {key: round(value, 9) if isinstance(value, float) else value for key, value in found.items()}


def cases(only: str, exporters: list[str], attentions: list[str], methods: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """All cases; those of one graph follow each other."""
    for attention in attentions:
        for exporter in exporters:
            for name in ZOO:
                for method in methods:
                    if only in name:
                        yield name, exporter, attention, method


def write(stored: dict[str, Any], place: Path | None) -> None:
    if place:
        write_atomic(place, (json.dumps(stored, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--methods", nargs="*", default=list(PRUNE))
    parser.add_argument("--exporters", nargs="*", default=list(EXPORTERS))
    parser.add_argument("--attentions", nargs="*", default=list(ATTENTIONS))
    parser.add_argument("--store", type=Path, nargs="?", const=STORED, help="file to store in, and to go on from")
    parser.add_argument("--again", choices=["none", "failed", "all"], default="none", help="of what is stored already")
    args = parser.parse_args()
    import transformers

    torch.set_num_threads(1)
    stored = json.loads(args.store.read_text()) if args.store and args.store.exists() else {"models": {}}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    stored = {**versions, "exporters": EXPORTERS, "models": {name: stored["models"].get(name, {}) for name in ZOO}}
    for name, exporter, attention, method in cases(args.only, args.exporters, args.attentions, args.methods):
        rows, key = stored["models"][name], f"{exporter} {attention} {method}"
        if key in rows and (args.again == "none" or (args.again == "failed" and not failure(rows[key]))):
            continue
        began = time.process_time()
        rows[key] = attempt(name, exporter, attention, method)
        print(
            f"{name:24} {key:28} {time.process_time() - began:5.1f} s  {failure(rows[key]) or rows[key].get('absent', 'passes')}",
            flush=True,
        )
        write(stored, args.store)


if __name__ == "__main__":
    sys.exit(main())
