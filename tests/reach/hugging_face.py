"""Which vision models of transformers work through `rewrite`, by exporter, attention and method: small, with random weights.

    python tests/reach/hugging_face.py --store                              # all, into recipes/hugging_face.json
    python tests/reach/hugging_face.py --only DINOv3 --exporters "dynamo 18" --attentions sdpa   # some, printed

A case is one model, one exporter, one implementation of attention, one method, by what `vitprune rewrite` calls: the pruned graph against
the reference built from the dense graph's weights and with nothing pruned against the dense graph, as the command itself compares them; then the
bundle's answers and kept patches against tests/reach/hidden_tokens.py, which knows no graph: transformers' own layers on all
tokens, with what has left hidden as keys and what has merged made equal; and an image alone against the same image in a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hidden_tokens import Judge, ToMe, TopK
from hugging_face_models import LAYERS, PATCH, SIDE, ZOO, Answer, image

from vitprune.reports.hugging_face import failure
from vitprune.support.files import write_atomic

STORED = Path(__file__).parents[2] / "recipes" / "hugging_face.json"
EXPORTERS = ("torchscript 17", "dynamo 18", "dynamo 20", "dynamo 23")
ATTENTIONS = ("eager", "sdpa")
SCRATCH = tempfile.TemporaryDirectory()
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
def written(name: str, exporter: str, attention: str) -> Path:
    """The dense graph as a file, which is what the command reads."""
    place = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "dense.onnx"
    onnx.save(dense(name, exporter, attention), place)
    return place


def rules(name: str, method: str, score: str | None = None) -> Any:
    """Recipe of a case."""
    from vitprune.recipe import Recipe

    made: dict[str, Any] = {"prune": {"method": method, **PRUNE[method]}, "graph": {"batch": "1:4:8"}, "validate": {"samples": 8}}
    if score:
        made["prune"]["score"] = score
    if ZOO[name].features:
        made["output"] = {"kind": "features"} | ({} if method == "tome" else {"fill": "last"})
    return Recipe.load(made)


def rewritten(name: str, exporter: str, attention: str, method: str) -> tuple[Any, str]:
    """The bundle, and what it scores by ("" where nothing is scored): the mean attention where the command finds no CLS token."""
    from vitprune.errors import VitpruneError
    from vitprune.pipelines import rewrite

    dense_graph = written(name, exporter, attention)
    place = dense_graph.with_name(method)
    try:
        return rewrite(dense_graph, rules(name, method), place, force=True), "" if method == "tome" else "cls"
    except VitpruneError as error:
        if error.code != "VP312":
            raise
    return rewrite(dense_graph, rules(name, method, "mean_attention"), place, force=True), "mean_attention"


def judged(name: str, method: str, score: str, x: torch.Tensor) -> tuple[np.ndarray, list[list[list[int]]]]:
    """Answer, and kept patches in those blocks that the answer is made of, by the judge that knows no graph."""
    settings = PRUNE[method]
    rule = ToMe(settings["r"]) if method == "tome" else TopK(settings["stages"], settings["keep_rate"], score)
    asked = Answer(ZOO[name], "eager")
    judge = Judge(asked.net, LAYERS["num_hidden_layers"], LAYERS["num_attention_heads"], (SIDE // PATCH) ** 2, rule)
    answer = judge.answer(asked, x).numpy()
    return answer, [kept for block, kept in rule.kept.items() if block < LAYERS["num_hidden_layers"] - ZOO[name].unread]


def case(name: str, exporter: str, attention: str, method: str) -> dict[str, Any]:
    """Differences, in units of the largest answer (at least 1): parity, noop, judge, batch, pruned; parity of features as `rewrite` gives it."""
    x = image()
    bundle, score = rewritten(name, exporter, attention, method)
    check = json.loads((bundle.path / "reports" / "export.json").read_text())["check"]
    with np.load(bundle.path / "samples.npz") as samples, torch.no_grad():
        plain, dense_answers = model(name, attention)(x).numpy(), samples["dense_logits"]
        given = model(name, attention)(torch.from_numpy(samples["images"])).numpy().reshape(dense_answers.shape)
    scale = max(1.0, float(np.abs(plain).max()))

    def off(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one.reshape(len(x), -1) - other.reshape(len(x), -1)).max()) / scale

    found = bundle.run(x.numpy())
    alone = np.concatenate([bundle.run(x[i : i + 1].numpy()).logits for i in range(len(x))])
    wanted, kept = judged(name, method, score, x)
    features = check["features"]
    return {
        "parity": max(one["max_abs"] for one in features) if features else check["logits_max_abs"] / scale,
        "noop": check["canonical_max_abs"] / scale + float(np.abs(given - dense_answers).max()) / max(1.0, float(np.abs(given).max())),
        "judge": off(found.logits, wanted), "batch": off(alone, found.logits),
        "pruned": off(found.logits, plain), "kept": [_sets(rows) for rows in found.kept] == kept, "score": score,
    }  # fmt: skip


def _sets(rows: np.ndarray) -> list[list[int]]:
    return [sorted(int(one) for one in row if one >= 0) for row in rows]


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
