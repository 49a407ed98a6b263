"""Small models with rotary positions, after timm's EVA-02, DINOv3 and RoPE-ViT, with random weights and uneven attention."""

import io
import warnings
from functools import cache

import onnx
import torch
from timm.models.eva import Eva

from helpers import uneven

SIZES = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
ROTARY = {"use_rot_pos_emb": True}
KINDS = {
    "eva02": {**ROTARY, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "global_pool": "token"},
    "eva02 mean": {**ROTARY, "swiglu_mlp": True, "rope_grid_offset": 1.0, "global_pool": "avg"},
    "dinov3": {
        **ROTARY, "rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 4, "use_abs_pos_emb": False, "init_values": 0.5,
        "global_pool": "token", "rope_temperature": 100.0,
    },
    "pe": {**ROTARY, "attn_type": "rope", "use_pre_transformer_norm": True, "rope_grid_indexing": "xy", "global_pool": "token"},
    "mixed": {**ROTARY, "attn_type": "rope", "rope_type": "mixed", "use_abs_pos_emb": False, "global_pool": "token"},
    "post norm": {"use_post_norm": True, "global_pool": "token"},
}  # fmt: skip


@cache
def small(kind: str) -> Eva:
    """Three blocks, 36 patches."""
    torch.manual_seed(7)
    model = Eva(**{**SIZES, **KINDS[kind]}).eval()
    uneven(model, left="rope")
    for block in model.blocks:
        block.attn.fused_attn = False  # the TorchScript exporter cannot write the fused one with Eva's arguments
    return model


@cache
def dense(kind: str) -> onnx.ModelProto:
    """By the TorchScript exporter."""
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            small(kind), (images(2),), target, dynamo=False, opset_version=17, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(target.getvalue())


def images(batch: int, seed: int = 0) -> torch.Tensor:
    """Random images."""
    return torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
