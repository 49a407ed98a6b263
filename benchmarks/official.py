"""Pruned ONNX graphs against the official code of ToMe, EViT, ATS and A-ViT in eager PyTorch: same weights, same images, same tokens.

    git clone https://github.com/facebookresearch/ToMe  https://github.com/youweiliang/evit ... each into DIR
    python benchmarks/official.py --source DIR            # some 6 minutes on one core; then python benchmarks/report.py

DIR holds the folders ToMe, evit, ATS and A-ViT. Nothing of them is kept here, and the licences of ToMe and A-ViT forbid commercial use. Before
anything is timed, logits and token counts of both sides must agree; a pair that does not is a row that says so. One thread, CPU time, all
variants interleaved in random order, per-round ratios, medians; DeiT-S with random weights, query and key weights times four.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from speed import library, machine, store, taking_turns, uneven  # noqa: E402

from vitprune.backends.onnxruntime import make_session  # noqa: E402
from vitprune.data import images  # noqa: E402
from vitprune.exporting.dense import dense_onnx  # noqa: E402
from vitprune.graph import surgery  # noqa: E402
from vitprune.graph.lowering.onnxruntime import specialise  # noqa: E402
from vitprune.recipe import Recipe  # noqa: E402
from vitprune.vit.loading import load  # noqa: E402

OUT = Path(__file__).parent / "results" / "official.json"
MODEL, GOAL = "deit_small_patch16_224", 1.3
WITHIN = 2e-3  # of the largest logit: ATS's official softmax adds 1e-6 to every weight
Answer = tuple[np.ndarray, list[list[int]]]  # logits [B,classes], and per site that reports it the tokens of every image
Run = tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], Answer]]  # what is timed, and what is compared


@dataclass(frozen=True)
class Official:
    """One repository: folder inside --source, what makes it runnable (folder, dense model -> a run), recipe and its settings."""

    folder: str
    make: Callable[[Path, Any], Run]
    recipe: str
    settings: tuple[str, ...] = ()


@contextlib.contextmanager
def importing(folder: Path, own: tuple[str, ...], stand_ins: dict[str, types.ModuleType]) -> Iterator[None]:
    """Import from a folder, quietly; names of its modules and stand-ins for what is gone or not needed leave again.

    Args:
        folder: goes to the front of the path. own: names of its modules, which another repository may have too. stand_ins: by name.
    """
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.path.insert(0, str(folder))
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path.remove(str(folder))
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        for name in [one for one in sys.modules if one.split(".")[0] in own]:
            del sys.modules[name]


def stand_in(name: str, **contents: Any) -> types.ModuleType:
    """A module made of what is given."""
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    return module


def registry() -> dict[str, types.ModuleType]:
    """timm's registry without its memory: official code registers models under names that timm has, too."""
    return {"timm.models.registry": stand_in("timm.models.registry", register_model=lambda function: function)}


def tome(folder: Path, model: Any) -> Run:
    """ToMe: patches timm's own model."""
    with importing(folder, ("tome",), {}):
        patch = importlib.import_module("tome").patch
    patch.timm(model)
    model.r = 13

    def answer(x: torch.Tensor) -> Answer:
        logits = model(x).numpy()
        return logits, [[int(model._tome_info["size"].shape[1]) - 1] * len(logits)]

    return model, answer


def evit(folder: Path, model: Any) -> Run:
    """EViT: a model of its own, which takes timm's weights by name."""
    profile = stand_in("torchprofile", profile_macs=None)
    with importing(folder, ("evit", "helpers"), {"torchprofile": profile, **registry()}):
        module = importlib.import_module("evit")
    rates = [0.7 if block in (3, 6, 9) else 1 for block in range(12)]
    made = module.EViT(embed_dim=384, depth=12, num_heads=6, keep_rate=rates, fuse_token=True, norm_layer=_norm())
    made.load_state_dict(model.state_dict())
    made.eval()

    def answer(x: torch.Tensor) -> Answer:
        logits, kept = made(x, rates, None, True)
        names, counts = torch.arange(made.patch_embed.num_patches).expand(len(x), -1), []
        for places in kept:  # among them what earlier sites fused, which is no patch
            names = names.gather(1, places)
            counts.append((names >= 0).sum(dim=1).tolist())
            names = torch.cat([names, names.new_full((len(x), 1), -1)], dim=1)
        return logits.numpy(), counts

    return lambda x: made(x, rates), answer


def ats(folder: Path, model: Any) -> Run:
    """ATS with DROP_TOKENS; the package around the model reads configurations and sets up logging, which is left out."""
    kinds: dict[str, Any] = {}

    def register() -> Callable[[Any], Any]:
        return lambda kind: kinds.setdefault(kind.__name__, kind)

    around = {
        "libs": stand_in("libs", __path__=[str(folder / "libs")]),
        "libs.models": stand_in("libs.models", __path__=[str(folder / "libs" / "models")]),
        "libs.models.build": stand_in("libs.models.build", MODEL_REGISTRY=types.SimpleNamespace(register=register)),
    }
    with importing(folder, ("libs",), {**around, **registry()}):
        importlib.import_module("libs.models.transformers.vit")
    sizes = {
        "IMG_SIZE": 224, "PATCH_SIZE": 16, "IN_CHANNELS": 3, "NUM_CLASSES": 1000, "EMBED_DIM": 384, "DEPTH": 12, "NUM_HEADS": 6,
        "MLP_RATIO": 4.0, "QKV_BIAS": True, "QK_SCALE": None, "REPRESENTATION_SIZE": None, "DROP_RATE": 0.0, "ATTN_DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.0, "HYBRID_BACKBONE": None, "NORM_LAYER": None, "ATS_BLOCKS": list(range(3, 12)), "NUM_TOKENS": [197] * 12,
        "DROP_TOKENS": True,
    }  # fmt: skip
    made = kinds["ViT"](types.SimpleNamespace(VIT=types.SimpleNamespace(**sizes)))
    missing, unexpected = made.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("out_zero_mask") for name in missing)
    made.eval()

    def answer(x: torch.Tensor) -> Answer:
        seen: list[list[int]] = []
        hooks = [
            block.register_forward_hook(lambda _module, _given, out: seen.append((out[1].sum(dim=(1, 2)).int() - 1).tolist()))
            for block in list(made.blocks)[3:]
        ]
        logits = made(x)[0].numpy()
        for hook in hooks:
            hook.remove()
        return logits, seen

    return made, answer


def avit(folder: Path, model: Any) -> Run:
    """A-ViT: one file of its own old timm, which today's timm carries; `.cuda()` stays on the CPU."""
    layers = importlib.import_module("timm.models.layers")
    layers.ACT_Mlp = None  # type: ignore[attr-defined]  # imported there and not used for gates of tokens
    utils = stand_in("utils", get_distribution_target=None)
    file, name = folder / "timm" / "models" / "act_vision_transformer.py", "timm.models.act_vision_transformer"
    with importing(folder, ("utils",), {"utils": utils, **registry()}):
        sys.path.remove(str(folder))  # its old timm must not be found
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.path.insert(0, str(folder))
        gate = types.SimpleNamespace(act_mode=4, gate_scale=10.0, gate_center=5.0, distr_prior_alpha=0.0)
        made = module.VisionTransformer(embed_dim=384, depth=12, num_heads=6, norm_layer=_norm(), args=gate)
    made.load_state_dict(model.state_dict())
    made.eval()
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign,assignment]

    return made, lambda x: (made(x).numpy(), [])  # it masks, and tells counts of layers only


def _norm() -> Any:
    return partial(torch.nn.LayerNorm, eps=1e-6)


OFFICIAL = {
    "tome": Official("ToMe", tome, "tome_deit_small"),
    "evit": Official("evit", evit, "evit_deit_small"),
    "ats": Official("ATS", ats, "ats_deit_small", ("prune.mode=official", "prune.num_samples=196")),
    "avit": Official("A-ViT", avit, "avit_deit_small", ("prune.gate_center=5",)),
}


def dense_model(recipe: Recipe) -> Any:
    """DeiT-S of timm with random weights and uneven attention, and what it was loaded as."""
    loaded = load(recipe.model, pretrained=False, seed=0)
    uneven(loaded.module)
    return loaded


def graphs(pruned: Any, library: Path | None) -> dict[str, Callable[[np.ndarray], list[np.ndarray]]]:
    """Sessions of a pruned graph as `build-engine --target onnxruntime-cpu` lowers it: plain, and native where the library has its operators."""
    made: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {}
    for label, native in (("plain", None), ("native", library)):
        if label == "native" and native is None:
            continue
        special, facts = specialise(pruned, keep_outputs=True, native=native is not None)
        if native is None or facts["native"]:
            session = make_session(special.SerializeToString(), threads=1, spin=False, library=native)
            made[label] = lambda x, session=session: session.run(None, {"image": x})
    return made


def disagreement(answer: Answer, logits: np.ndarray, kept: list[np.ndarray]) -> str:
    """Why official and own answers are not the same computation, or "": logits, top-1, and the counts that the official code tells."""
    theirs, counts = answer
    worst = float(np.abs(theirs - logits).max())
    if not worst <= WITHIN * float(np.abs(theirs).max()):  # NaN is no agreement
        return f"logits differ by {worst:.2g}"
    if not (theirs.argmax(axis=1) == logits.argmax(axis=1)).all():
        return "another top-1"
    own = [(one >= 0).sum(axis=1).tolist() for one in kept]
    own = own[len(own) - len(counts) :]  # ToMe tells what is left at the end
    return "" if counts in ([], own) else f"tokens differ: {counts} there, {own} here"


def ratios(times: dict[str, list[float]], over: str, under: str) -> dict[str, Any]:
    """Median and quartiles of the per-round ratios of two runs."""
    found = [one / other for one, other in zip(times[over], times[under], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def measure(name: str, source: Path, batch: int, rounds: int, library: Path | None = None) -> dict[str, Any]:
    """One row; "not_run" says why there are no figures."""
    official = OFFICIAL[name]
    folder, row = source / official.folder, {"method": name, "batch": batch, "goal": GOAL}
    if not folder.is_dir():
        return {**row, "not_run": f"there is no folder {official.folder} in --source"}
    recipe = Recipe.load(official.recipe, [f'graph.batch="{batch}"', *official.settings])
    loaded = dense_model(recipe)
    pruned, _, _ = surgery.rewrite(dense_onnx(loaded.module, loaded.image_shape, recipe), recipe)
    sessions = graphs(pruned, library)
    x = images.synthetic(batch, loaded.preprocessing).pixels
    theirs, comparable = official.make(folder, loaded.module)
    row |= {"settings": list(official.settings), "commit": commit(folder)}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = torch.from_numpy(x)
        answer = comparable(given)
        for label, session in sessions.items():
            logits, *kept = session(x)
            if why := disagreement(answer, logits, kept):
                return {**row, "not_run": f"{label} graph: {why}"}
        runs: dict[str, Callable[[], Any]] = {"official": lambda: theirs(given)}
        runs |= {label: partial(session, x) for label, session in sessions.items()}
        times = taking_turns(runs, rounds)
    found = {label: ratios(times, "official", label) for label in sessions}
    best = found.get("native", found["plain"])["median"]
    return {
        **row, "rounds": rounds, "tokens": [round(float(np.mean((one >= 0).sum(axis=1))), 1) for one in kept],
        "logits_max_abs": float(np.abs(answer[0] - logits).max()),
        "median_ms": {label: round(1e3 * statistics.median(values), 2) for label, values in times.items()},
        "official_over": found, "met": best >= GOAL,
    }  # fmt: skip


def commit(folder: Path) -> str:
    """Commit of a clone, "" where it is none."""
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with clones of the official repositories")
    parser.add_argument("--only", nargs="*", default=list(OFFICIAL), choices=list(OFFICIAL))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--library", type=Path, default=library(), help="native library; default: what vitprune plugins build has left"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.only:
        for batch in arguments.batches:
            rows.append(measure(name, arguments.source, batch, arguments.rounds, arguments.library))
            print(json.dumps(rows[-1]), flush=True)
    store(arguments.out, {"model": MODEL, "threads": 1, "machine": {**machine(), "torch": torch.__version__}, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
