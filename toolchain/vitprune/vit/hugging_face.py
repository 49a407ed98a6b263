"""ViT and DINOv2 from a Hugging Face folder: config.json, weights, preprocessor_config.json; weights go into timm's VisionTransformer.

Names of tensors are those that transformers writes (4 and 5 alike): `ViTModel`, `ViTForImageClassification`, `Dinov2Model`,
`Dinov2ForImageClassification`. Every tensor of the file is used or known to have no part in the output; anything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import Mlp, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitprune.errors import ExportError
from vitprune.vit.fitting import check_tensor
from vitprune.vit.weights import read_weights, weights_path

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}
KINDS = ("vit", "dinov2")
UNUSED = ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")  # of training, and of ViTModel's extra output
RENAMED = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}
IN_BLOCKS = {
    "vit": {
        "layernorm_before": "norm1",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    },
    "dinov2": {
        "norm1": "norm1",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.weights_in": "mlp.fc1",
        "mlp.weights_out": "mlp.fc2",
        "layer_scale2.lambda1": "ls2.gamma",
    },
}
BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias|)$")
QKV = re.compile(r"attention\.attention\.(query|key|value)$")


class ClsMeanViT(VisionTransformer):
    """DINOv2's classifier reads the CLS token and the mean of the patches, side by side; timm has no such head."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B,classes] of normalised tokens [B,1+P,C]; pre_logits: what the classifier reads, [B,2C]."""
        both = torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=1)
        logits: Tensor = both if pre_logits else self.head(both)
        return logits

    def weighted_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """Logits [B,classes] of normalised tokens [B,K,C], of which each stands for weight [B,K] patches (see `DenseViT.head`)."""
        share = weight[:, 1:, None].to(x.dtype)
        mean = (x[:, 1:] * share).sum(1) / share.sum(1).clamp(min=1)
        logits: Tensor = self.head(torch.cat([x[:, 0], mean], dim=1))
        return logits


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a ViT or DINOv2.

    Raises:
        ExportError: VP307 it is missing or no JSON object, VP308 it is of another model.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
    except FileNotFoundError as error:
        raise missing(folder, "config.json") from error
    except (OSError, ValueError) as error:
        raise ExportError(
            307, f"'{folder.name}/config.json' cannot be read", cause=str(error).splitlines()[0],
            next_step="save the model again with transformers' save_pretrained",
        ) from error  # fmt: skip
    if config.get("model_type") not in KINDS:
        raise _foreign(folder, f"its model_type is '{config.get('model_type')}', and {' and '.join(KINDS)} are read")
    return config


def missing(folder: Path, name: str) -> ExportError:
    """The error VP307: a folder lacks a file."""
    return ExportError(
        307, f"folder '{folder.name}' has no {name}",
        cause="a Hugging Face model is config.json, model.safetensors and preprocessor_config.json",
        next_step="save model and image processor there with save_pretrained, or copy the file into it",
    )  # fmt: skip


def make(folder: Path, side: int | None, *, trained: bool = True) -> tuple[Any, dict[str, Any], str]:
    """The model of a folder in evaluation mode.

    Args:
        folder: config.json and weights. side: pixels of the images it is for; positions of another grid are resampled as transformers
            does (bicubic, no antialiasing). None: config.json's. trained: False leaves random weights in the same sizes.

    Returns:
        Module, config.json, the name of the weights file.

    Raises:
        ExportError: VP302 unreadable weights, VP303 weights of other sizes than config.json states, VP306 weights that are no numbers,
            VP307 a missing file, VP308 another model or a form of it that is not understood.
    """
    config = read_config(folder)
    kind = str(config["model_type"])
    try:
        file = weights_path(str(folder))
    except ExportError as error:
        raise missing(folder, "model.safetensors") from error
    state = _plain(read_weights(file), kind)
    own_side, patch = _number(folder, config, "image_size"), _number(folder, config, "patch_size")
    side = side or own_side
    if side % patch:
        raise _foreign(folder, f"images of {side} pixels are no whole number of patches of {patch}")
    module = _architecture(folder, config, kind, state, side, patch)
    if trained:
        converted = _converted(folder, file.name, state, kind)
        converted["pos_embed"] = _positions(folder, file.name, converted, module, own_side // patch)
        _load(folder, module, converted, file.name)
    return module.eval(), config, file.name


def class_names(config: dict[str, Any], classes: int) -> list[str]:
    """Names of the classes in their order; [] where config.json has only transformers' own LABEL_0, LABEL_1, ..."""
    names = config.get("id2label")
    if not isinstance(names, dict) or classes == 0:
        return []
    found = [str(names.get(str(number), "")) for number in range(classes)]
    made_up = all(name == f"LABEL_{number}" for number, name in enumerate(found))
    return [] if made_up or "" in found or len(set(found)) < classes else found


def _foreign(folder: Path, cause: str) -> ExportError:
    return ExportError(
        308, f"the model in '{folder.name}' is not one that is read", cause=cause,
        next_step="export it to ONNX and give that to vitprune rewrite",
    )  # fmt: skip


def _misfit(folder: Path, file: str, cause: str) -> ExportError:
    return ExportError(
        303, f"'{folder.name}/{file}' does not fit its config.json", cause=cause,
        next_step="copy both files again from where the model was saved",
    )  # fmt: skip


def _number(folder: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _foreign(folder, f"config.json has {key} = {value}, and one whole number is read")
    return value


def _plain(state: dict[str, Any], kind: str) -> dict[str, Any]:
    """Names without the prefix of the model inside a classifier."""
    return {name.removeprefix(f"{kind}."): value for name, value in state.items()}


def _architecture(folder: Path, config: dict[str, Any], kind: str, state: dict[str, Any], side: int, patch: int) -> Any:
    width, heads = _number(folder, config, "hidden_size"), _number(folder, config, "num_attention_heads")
    act, eps = config.get("hidden_act"), config.get("layer_norm_eps")
    if act not in ACTIVATIONS:
        raise _foreign(folder, f"its activation is '{act}'; known: {', '.join(ACTIVATIONS)}")
    if width % heads or not isinstance(eps, float):
        raise _foreign(folder, f"{heads} heads in {width} channels, layer_norm_eps {eps}")
    gated = "encoder.layer.0.mlp.weights_in.weight" in state
    if bool(config.get("use_swiglu_ffn", False)) != gated:
        raise _foreign(folder, f"use_swiglu_ffn is {config.get('use_swiglu_ffn')}, its weights say {gated}")
    hidden = _number(folder, config, "intermediate_size") if kind == "vit" else width * _number(folder, config, "mlp_ratio")
    if gated:  # two thirds, in eights; packed as twice that
        hidden = (hidden * 2 // 3 + 7) // 8 * 8 * 2
    projection, classifier = state.get("embeddings.patch_embeddings.projection.weight"), state.get("classifier.weight")
    classes = 0 if classifier is None else len(classifier)
    labels = config.get("id2label")
    if classes and isinstance(labels, dict) and len(labels) != classes:
        raise _misfit(folder, "model.safetensors", f"its classifier has {classes} classes, config.json names {len(labels)}")
    mlp: Any = SwiGLUPacked if gated else Mlp  # timm's own partial
    both = kind == "dinov2" and classes > 0
    made = (ClsMeanViT if both else VisionTransformer)(
        img_size=side, patch_size=patch, in_chans=3 if projection is None else projection.shape[1], embed_dim=width,
        depth=_number(folder, config, "num_hidden_layers"), num_heads=heads, mlp_ratio=hidden / width, num_classes=classes,
        qkv_bias="encoder.layer.0.attention.attention.query.bias" in state, init_values=1.0 if kind == "dinov2" else None,
        norm_layer=partial(nn.LayerNorm, eps=eps), act_layer=nn.SiLU if gated else ACTIVATIONS[str(act)],
        mlp_layer=mlp, global_pool="token",
    )  # fmt: skip
    if both:
        made.head = nn.Linear(2 * width, classes)
        made.global_pool = "avg"  # what reads it has to know that patches are averaged
    return made


def _converted(folder: Path, file: str, state: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """Tensors under timm's names; q, k, v one below the other."""
    found: dict[str, Tensor] = {}
    maps: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name in UNUSED:
            continue
        check_tensor(name, value, torch.zeros(1), file)
        stem, _, suffix = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        if inside := BLOCK.match(name):
            number, part, ending = inside.groups()
            if of_qkv := QKV.match(part):
                maps.setdefault(f"blocks.{number}.attn.qkv{ending}", {})[of_qkv[1]] = value
                continue
            renamed = f"blocks.{number}.{IN_BLOCKS[kind][part]}{ending}" if part in IN_BLOCKS[kind] else ""
        else:
            renamed = f"{RENAMED[stem]}.{suffix}".rstrip(".") if stem in RENAMED else ""
        if not renamed:
            raise _foreign(folder, f"'{name}' in {file} has no place in a {kind}")
        found[renamed] = value
    for name, parts in maps.items():
        if len(parts) < 3:
            raise _misfit(folder, file, f"'{name}' has {', '.join(parts)} alone")
        found[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return found


def _positions(folder: Path, file: str, state: dict[str, Tensor], module: Any, trained: int) -> Tensor:
    """Positions [1,1+P,C] of the model's grid (transformers, `interpolate_pos_encoding`)."""
    if "pos_embed" not in state:
        raise _misfit(folder, file, "it has no 'embeddings.position_embeddings'")
    positions = state["pos_embed"].float()
    if positions.ndim != 3 or positions.shape[1] != trained * trained + 1:
        raise _misfit(
            folder, file, f"positions are {tuple(positions.shape)}, config.json means {trained} x {trained} patches and CLS"
        )
    rows, columns = module.patch_embed.grid_size
    if (rows, columns) == (trained, trained):
        return positions
    grid = positions[:, 1:].reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    made = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], made.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _load(folder: Path, module: Any, state: dict[str, Tensor], file: str) -> None:
    own = module.state_dict()
    for name, value in own.items():
        if name not in state:
            raise _misfit(folder, file, f"there is nothing for '{name}' of the model that config.json describes")
        if state[name].shape != value.shape:
            raise _misfit(folder, file, f"'{name}' is {tuple(state[name].shape)}, config.json means {tuple(value.shape)}")
    if extra := sorted(set(state) - set(own)):
        raise _misfit(folder, file, f"it has '{extra[0]}', which the model that config.json describes lacks")
    module.load_state_dict(state)
