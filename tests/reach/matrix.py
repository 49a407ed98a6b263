"""Which plain ViTs of timm work with which methods: every form once, small, with random weights.

    python tests/reach/matrix.py --store                      # all forms and methods, into recipes/models.json
    python tests/reach/matrix.py --only Beit --methods tome   # some, printed
    python tests/reach/matrix.py --rtx one --store            # one case a form again, built by TensorRT-RTX too

A form is a combination of model, block, attention, MLP, norms, LayerScale, pooling, prefix tokens and positions; the smallest member of each is
made with four blocks of width 64, 36 patches and weights that give uneven attention. A case is one form, one method, one kind of shapes:
graph against reference with pruning on, nothing pruned against the dense model, an image alone against the same image in a batch.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from vitprune.reports.models import failure
from vitprune.support.files import write_atomic

MODULES = (
    "vision_transformer", "deit", "vision_transformer_hybrid", "vitamin", "eva", "naflexvit", "vision_transformer_relpos", "beit",
    "vision_transformer_sam",
)  # fmt: skip
STORED = Path(__file__).parents[2] / "recipes" / "models.json"
SCORING, MERGING = ("ats", "topk", "evit"), ("tome", "tome_threshold", "ward_merge")
PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [1, 2], "num_samples": [24, 14]},
    "topk": {"stages": [1, 2], "keep_rate": 0.6},
    "evit": {"stages": [1, 2], "keep_rate": 0.6},
    "tome": {"r": 5},
    "tome_threshold": {"tau": 0.2, "r_max": 8},
    "ward_merge": {"stages": [1, 2], "mu": 2.0},
}
GRID = 6


def names() -> list[str]:
    """Names of timm's plain ViTs."""
    from timm import list_models

    return [name for module in MODULES for name in list_models(module=module)]


def kind(part: Any) -> str:
    return "" if part is None or type(part).__name__ == "Identity" else type(part).__name__


def form(model: Any) -> str:
    """What distinguishes a model for pruning, in words."""
    block = model.blocks[0]
    attn = getattr(block, "attn", None)
    mlp = getattr(block, "mlp", None)
    inner = attn if attn is not None else block
    embeds = getattr(model, "embeds", model)
    rope = kind(getattr(model, "rope", None))
    scaled = (
        getattr(block, "gamma_1", None) is not None or kind(getattr(block, "ls1", getattr(block, "ls", None))) == "LayerScale"
    )
    biased = any(
        getattr(owner, name, None) is not None
        for owner, name in ((model, "rel_pos_bias"), (model, "shared_rel_pos"), (attn, "rel_pos"), (attn, "relative_position_bias_table"))
    )  # fmt: skip
    parts = [
        type(model).__name__, type(block).__name__, kind(attn), kind(mlp), "sub-norm" if kind(getattr(mlp, "norm", None)) else "",
        kind(getattr(block, "norm1", getattr(block, "in_norm", None))), "qk-norm" if kind(getattr(inner, "q_norm", None)) else "",
        "norm before projection" if kind(getattr(inner, "norm", None)) else "",
        "separate" if getattr(inner, "q_proj", None) is not None else "", "LayerScale" if scaled else "",
        f"pool {model.global_pool}", kind(getattr(model, "attn_pool", None)), "CLS" if getattr(embeds, "cls_token", None) is not None else "",
        "absolute" if getattr(embeds, "pos_embed", None) is not None else "", rope, "half" if rope and getattr(attn, "rotate_half", False) else "",
        "position bias" if biased else "", "windows" if any(getattr(one, "window_size", 0) for one in model.blocks) and "SAM" in type(model).__name__ else "",
        kind(getattr(model, "patch_embed", embeds)),
    ]  # fmt: skip
    return ", ".join(part for part in parts if part)


def grouped() -> dict[str, list[str]]:
    """Names by form, the smallest member first. Made without weights; takes minutes."""
    import timm

    found: dict[str, list[tuple[int, str]]] = {}
    for name in names():
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name)
        size = sum(parameter.numel() for parameter in model.parameters())
        found.setdefault(form(model), []).append((size, name))
    return {key: [name for _, name in sorted(members)] for key, members in sorted(found.items())}


@cache
def small(name: str) -> Any:
    """A name's model with four narrow blocks and 36 patches, random weights that give uneven attention."""
    import timm

    from vitprune.vit.naflex import at_size

    with torch.device("meta"):
        whole = timm.create_model(name)
    embeds = getattr(whole, "patch_embed", None) or whole.embeds
    patch = (
        round(whole.default_cfg["input_size"][1] / embeds.grid_size[0]) if hasattr(embeds, "backbone") else embeds.patch_size[0]
    )
    args: dict[str, Any] = {"depth": 4, "embed_dim": 64, "num_heads": 4, "num_classes": 5}
    if name.startswith("vitamin"):  # its embedding has the width of its blocks
        args = {"depth": 4, "num_classes": 5}
    if "sapiens" in name:
        args["num_kv_heads"] = 2
    if "tipsv2" in name:  # its own ratio gives an odd hidden width here, which cannot be halved into gate and value
        args["mlp_ratio"] = 4
    if hasattr(whole, "embeds"):
        args["pos_embed_grid_size"] = (GRID, GRID)
    else:
        args["img_size"] = GRID * patch
    torch.manual_seed(7)
    model = timm.create_model(name, **args).eval()
    model.side = GRID * patch
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "rope" in label or "backbone" in label:
                continue
            if parameter.ndim == 2 and "table" not in label:
                parameter.copy_(noise * (2.0 / parameter.shape[1]) ** 0.5)
            elif parameter.ndim == 4 and "pos" not in label:
                parameter.copy_(noise * (1.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_((0.5 if "table" in label else 0.2) * noise)
    fixed = at_size(model, GRID * patch)
    if fixed is not model:
        object.__setattr__(fixed, "judge", model)  # a NaFlexVit as it came
        fixed.side = GRID * patch
    return fixed


def images(model: Any, count: int = 4) -> torch.Tensor:
    """Random images of a model's size."""
    return torch.randn(count, 3, model.side, model.side, generator=torch.Generator().manual_seed(3))


def has_cls(model: Any) -> bool:
    return getattr(getattr(model, "embeds", model), "cls_token", None) is not None


def recipe(model: Any, method: str, shapes: str) -> Any:
    from vitprune.recipe import Recipe

    prune = {"method": method, **PRUNE[method]}
    if method in SCORING and not has_cls(model):
        prune["score"] = "mean_attention"
    return Recipe.load({"prune": prune, "graph": {"shapes": shapes, "batch": "1:4:8"}})


@cache
def dense(name: str, exporter: str = "torchscript") -> onnx.ModelProto:
    """By torch's TorchScript exporter, which takes a tenth of the time, or as `export` makes it ("dynamo")."""
    from vitprune.exporting.dense import dense_onnx
    from vitprune.recipe import Recipe

    model = small(name)
    # Unknown to the old one; or written as BatchNormalization in training mode, which TensorRT-RTX refuses.
    unknown = ("RmsNorm", "RotaryEmbeddingMixed", "StdConv2d", "StdConv2dSame")
    if exporter == "dynamo" or any(type(part).__name__ in unknown for part in model.modules()):
        return dense_onnx(model, (3, model.side, model.side), Recipe.load({"prune": {"method": "tome", "r": 0}}))
    fused = [
        part for part in model.modules() if getattr(part, "fused_attn", False)
    ]  # which this exporter cannot write with a mask
    for part in fused:
        part.fused_attn = False
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (images(model, 2),), target, dynamo=False, opset_version=18, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    for part in fused:
        part.fused_attn = True
    return onnx.load_from_string(target.getvalue())


def session(model: onnx.ModelProto) -> Any:
    from vitprune.backends.onnxruntime import make_session

    return make_session(model.SerializeToString())


def case(name: str, method: str, shapes: str, exporter: str = "torchscript") -> dict[str, Any]:
    """Differences of one case: parity, noop, batch, and by how much pruning changes the logits at all."""
    from vitprune.graph.surgery import canonical, rewrite
    from vitprune.vit.pruned import PrunedViT

    model = small(name)
    rules, x = recipe(model, method, shapes), images(model)
    oracle = PrunedViT(model, rules).eval()
    with torch.no_grad():
        logits, plain = oracle(x).numpy(), getattr(model, "judge", model)(x).numpy()
    pruned = rewrite(dense(name, exporter), rules, has_cls=oracle.geometry.has_cls)[0]
    run = session(pruned)
    got, *lists = run.run(None, {"image": x.numpy()})
    alone = np.concatenate([run.run(None, {"image": x[i : i + 1].numpy()})[0] for i in range(len(x))])
    same = len(lists) >= len(oracle.kept) and all(
        _sets(ours) == _sets(theirs.numpy()) for ours, theirs in zip(lists, oracle.kept, strict=False)
    )
    scale = max(1.0, float(np.abs(plain).max()))
    whole = session(canonical(dense(name, exporter), rules)).run(None, {"image": x.numpy()})[0]
    return {
        "parity": float(np.abs(got - logits).max()) / scale, "noop": float(np.abs(whole - plain).max()) / scale,
        "batch": float(np.abs(alone - got).max()) / scale, "pruned": float(np.abs(logits - plain).max()) / scale, "kept": same,
        "_graph": pruned,
    }  # fmt: skip


def _sets(rows: np.ndarray) -> list[list[int]]:
    return [sorted(int(one) for one in row if one >= 0) for row in rows]


def attempt(name: str, method: str, shapes: str, rtx: bool = False, exporter: str = "torchscript") -> dict[str, Any]:
    """A case, or why there is none."""
    from vitprune.errors import VitpruneError

    try:
        found = case(name, method, shapes, exporter)
        graph = found.pop("_graph")
        if rtx:
            found["rtx"] = built(graph)
    except VitpruneError as error:
        return {"refused": f"{error.code}: {error.cause or error.message}"[:200]}
    except Exception as error:
        return {"refused": f"crash: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    return {key: round(value, 9) if isinstance(value, float) else value for key, value in found.items()}


def built(graph: onnx.ModelProto) -> str:
    """ "built", or why TensorRT-RTX does not build a graph."""
    from vitprune.backends import tensorrt_rtx

    if tensorrt_rtx.missing():
        return "not installed"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        onnx.save(graph, place / "model.onnx")
        request = {
            "model": place / "model.onnx",
            "output": place / "engine",
            "log": place / "log",
            "batch": (1, 4, 8),
            "precision": "fp32",
        }
        tensorrt_rtx.build(request, lambda text: None)
    return "built"


def forms(stored: dict[str, Any] | None = None) -> dict[str, list[str]]:
    """Names by form: as stored where timm's names are the same, else made anew."""
    known = {row["form"]: row["names"] for row in (stored or {}).get("forms", [])}
    if sorted(name for members in known.values() for name in members) == sorted(names()):
        return known
    return grouped()


def cases(groups: dict[str, list[str]], only: str, methods: list[str], shapes: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """All cases, in such an order that a run that is cut off has seen every form, those with most names first."""
    turns = [(method, (shapes + shapes)[turn + place % 2]) for turn in range(len(shapes)) for place, method in enumerate(methods)]
    for method, shape in turns:
        for label, members in sorted(groups.items(), key=lambda item: -len(item[1])):
            if only in label or only in members:
                yield label, members[0], method, shape


def one_a_form(every: Iterator[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """Of all cases one a form, methods and shapes in turn."""
    of: dict[str, list[tuple[str, str, str, str]]] = {}
    for one in every:
        of.setdefault(one[0], []).append(one)
    return [these[place % len(these)] for place, these in enumerate(of.values())]


def write(stored: dict[str, Any], place: Path | None) -> None:
    if place:
        write_atomic(place, (json.dumps(stored, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word of the form, or a name")
    parser.add_argument("--methods", nargs="*", default=[*SCORING, *MERGING])
    parser.add_argument("--shapes", nargs="*", default=["dynamic", "padded"])
    parser.add_argument("--exporter", choices=["torchscript", "dynamo"], default="torchscript", help="of the dense graph")
    parser.add_argument("--rtx", choices=["none", "one", "all"], default="none")
    parser.add_argument("--store", type=Path, nargs="?", const=STORED, help="file to store in, and to go on from")
    parser.add_argument("--again", action="store_true", help="also what is stored already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(args.store.read_text()) if args.store and args.store.exists() else {"forms": []}
    groups = forms(stored)
    rows = {row["form"]: row for row in stored["forms"]}
    rows = {
        label: {"form": label, "names": members, "cases": rows.get(label, {}).get("cases", {})}
        for label, members in groups.items()
    }
    import timm

    stored = {"timm": timm.__version__, "methods": {"scoring": SCORING, "merging": MERGING}, "forms": list(rows.values())}
    write(stored, args.store)
    chosen = cases(groups, args.only, args.methods, args.shapes)
    for label, name, method, shape in one_a_form(chosen) if args.rtx == "one" else chosen:
        key = f"{method} {shape}" + (" dynamo" if args.exporter == "dynamo" else "")
        known = rows[label]["cases"].get(key)
        if known is not None and not args.again and (args.rtx == "none" or "rtx" in known or "refused" in known):
            continue
        began = time.time()
        found = attempt(name, method, shape, args.rtx != "none", args.exporter)
        rows[label]["cases"][key] = found
        print(f"{name:44} {key:24} {time.time() - began:5.1f} s  {failure(found) or 'passes'}", flush=True)
        write(stored, args.store)


if __name__ == "__main__":
    sys.exit(main())
