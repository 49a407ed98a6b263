"""Which Hugging Face and torchvision vision transformers `rewrite` takes, by exporter: small, random weights.

    python tests/reach/foreign.py                       # all, printed
    python tests/reach/foreign.py --only Dinov3 --exporters torchscript

Each is exported and rewritten with ToMe and top-k; the graph with pruning on is compared with the PyTorch reference that is built from the
dense graph's weights, nothing pruned with the model itself. What holds a feature map or all tokens is taken with `output.kind: features`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 48,
    "patch_size": 8,
}
EXPORTERS = ("torchscript", "dynamo 18", "dynamo 20")


class Answer(torch.nn.Module):
    """A model, and what of its answer is looked at."""

    def __init__(self, model: torch.nn.Module, take: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.take = model, take

    def forward(self, image: Any) -> Any:
        return self.take(self.model(image))


def hugging_face(name: str, config: str, take: str, implementation: str, **more: Any) -> Answer:
    import transformers

    described = getattr(transformers, config)(**{**SIZES, **more}, attn_implementation=implementation)
    return Answer(getattr(transformers, name)(described), lambda found: getattr(found, take))


def torchvision_vit(_: str) -> Answer:
    from torchvision.models import VisionTransformer

    return Answer(VisionTransformer(48, 8, 3, 2, 32, 64, num_classes=5), lambda found: found)


def depth(implementation: str) -> Answer:
    import transformers

    backbone = transformers.Dinov2Config(
        **SIZES, out_features=["stage1", "stage2", "stage3"], reshape_hidden_states=False, attn_implementation=implementation
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=32, reassemble_factors=[2, 1, 0.5], neck_hidden_sizes=[8, 16, 32],
        fusion_hidden_size=16, head_in_index=-1, head_hidden_size=8,
    )  # fmt: skip
    return Answer(transformers.DepthAnythingForDepthEstimation(config), lambda found: found.predicted_depth)


MODELS: dict[str, tuple[Callable[[str], Answer], bool]] = {
    "ViT": (lambda how: hugging_face("ViTForImageClassification", "ViTConfig", "logits", how), False),
    "ViT, pooler": (lambda how: hugging_face("ViTModel", "ViTConfig", "pooler_output", how), False),
    "ViT, all tokens": (lambda how: hugging_face("ViTModel", "ViTConfig", "last_hidden_state", how), True),
    "DeiT": (lambda how: hugging_face("DeiTForImageClassification", "DeiTConfig", "logits", how), False),
    "DeiT, distilled": (lambda how: hugging_face("DeiTForImageClassificationWithTeacher", "DeiTConfig", "logits", how), False),
    "DINOv2": (lambda how: hugging_face("Dinov2ForImageClassification", "Dinov2Config", "logits", how), False),
    "DINOv2, registers": (lambda how: hugging_face("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", "logits", how), False),
    "DINOv3": (lambda how: hugging_face("DINOv3ViTModel", "DINOv3ViTConfig", "pooler_output", how, num_register_tokens=4), False),
    "CLIP vision": (lambda how: hugging_face("CLIPVisionModelWithProjection", "CLIPVisionConfig", "image_embeds", how, projection_dim=16), False),
    "SigLIP": (lambda how: hugging_face("SiglipVisionModel", "SiglipVisionConfig", "pooler_output", how), False),
    "BEiT": (lambda how: hugging_face("BeitForImageClassification", "BeitConfig", "logits", how, use_relative_position_bias=True), False),
    "ViTMAE encoder": (lambda how: hugging_face("ViTMAEModel", "ViTMAEConfig", "last_hidden_state", how, mask_ratio=0.0), True),
    "I-JEPA": (lambda how: hugging_face("IJepaForImageClassification", "IJepaConfig", "logits", how), False),
    "OWL-ViT": (lambda how: hugging_face("OwlViTVisionModel", "OwlViTVisionConfig", "pooler_output", how), False),
    "Depth Anything": (depth, True),
    "torchvision": (torchvision_vit, False),
}  # fmt: skip


def uneven(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights that give uneven attention."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (2.0 / parameter.shape[1]) ** 0.5)
            elif parameter.ndim == 4:
                parameter.copy_(noise * (1.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    return model.eval()


def exported(model: torch.nn.Module, exporter: str) -> onnx.ModelProto:
    image, target = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)), io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            names: dict[str, Any] = {
                "input_names": ["image"],
                "output_names": ["out"],
                "dynamic_axes": {"image": {0: "batch"}, "out": {0: "batch"}},
            }
            torch.onnx.export(model, (image,), target, dynamo=False, opset_version=17, **names)
            return onnx.load_from_string(target.getvalue())
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        opset = int(exporter.split()[1])
        program = torch.onnx.export(model, (image,), dynamo=True, opset_version=opset, input_names=["image"], output_names=["out"], dynamic_shapes=shapes, verbose=False)  # fmt: skip
    return program.model_proto


def rules(method: str, features: bool) -> Any:
    from vitprune.recipe import Recipe

    prune = {"tome": {"method": "tome", "r": 5}, "topk": {"method": "topk", "stages": [1], "keep_rate": 0.6}}[method]
    output = {"kind": "features", "fill": "before"} if features and method == "topk" else {"kind": "features"} if features else {}
    return Recipe.load({"prune": prune, "output": output} if output else {"prune": prune})


def check(model: torch.nn.Module, graph: onnx.ModelProto, method: str, features: bool) -> dict[str, float]:
    """Relative differences: graph against reference with pruning on, nothing pruned against the model, and what pruning changes."""
    from vitprune.backends.onnxruntime import make_session
    from vitprune.exporting.graph_vit import GraphViT
    from vitprune.graph.intake import take_in
    from vitprune.graph.surgery import canonical, rewrite
    from vitprune.vit.pruned import PrunedViT

    recipe, x = rules(method, features), torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    pruned, anatomy, _ = rewrite(graph, recipe)
    taken = take_in(graph, recipe).model
    with torch.no_grad():
        ours = PrunedViT(GraphViT(taken, anatomy), recipe)(x).numpy().reshape(3, -1)
        plain = model(x).numpy().reshape(3, -1)
    name = graph.graph.input[0].name
    got = make_session(pruned.SerializeToString()).run(None, {name: x.numpy()})[0].reshape(3, -1)
    whole = make_session(canonical(graph, recipe).SerializeToString()).run(None, {name: x.numpy()})[0].reshape(3, -1)
    scale = max(1.0, float(np.abs(plain).max()))
    return {
        key: float(np.abs(a - b).max()) / scale
        for key, a, b in (("parity", got, ours), ("noop", whole, plain), ("pruned", ours, plain))
    }


def attempt(label: str, exporter: str, implementation: str, method: str) -> str:
    """ "" where a case passes, else what happened."""
    from vitprune.errors import VitpruneError

    make, features = MODELS[label]
    torch.manual_seed(0)
    model = uneven(make(implementation))
    try:
        graph = exported(model, exporter)
    except Exception as error:
        return f"torch cannot export it: {str(error).strip().splitlines()[0][:120]}"
    try:
        found = check(model, graph, method, features)
    except VitpruneError as error:
        return f"{error.code}: {error.cause or error.message}"[:220]
    except Exception as error:
        return f"crash: {type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    good = found["parity"] <= 1e-4 and found["noop"] <= 1e-5 and found["pruned"] >= 1e-3
    return "" if good else ", ".join(f"{key} {value:.2g}" for key, value in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--exporters", nargs="*", default=list(EXPORTERS))
    parser.add_argument("--attention", nargs="*", default=["eager", "sdpa"])
    parser.add_argument("--methods", nargs="*", default=["tome", "topk"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for exporter in args.exporters:
        for label in MODELS:
            for how in args.attention if label != "torchvision" else args.attention[:1]:
                for method in args.methods:
                    if args.only in label:
                        began = time.time()
                        said = attempt(label, exporter, how, method)
                        print(
                            f"{label:20} {exporter:12} {how:6} {method:5} {time.time() - began:5.1f} s  {said or 'passes'}",
                            flush=True,
                        )


if __name__ == "__main__":
    sys.exit(main())
