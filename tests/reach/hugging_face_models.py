"""Small vision models of transformers with random weights that give uneven attention, one class of attention and head each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import uneven  # noqa: E402

SIDE, PATCH, WIDTH = 48, 8, 64
LAYERS: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
VIT: dict[str, Any] = {**LAYERS, "intermediate_size": 2 * WIDTH, "image_size": SIDE, "patch_size": PATCH}
DINO: dict[str, Any] = {**LAYERS, "mlp_ratio": 2, "layerscale_value": 0.5, "image_size": SIDE, "patch_size": PATCH}
LABELS = {"num_labels": 5}


@dataclass(frozen=True)
class Zoo:
    """One model: how it is made and what of its answer is the graph's output.

    make: from attention ("eager" or "sdpa") to the model; ValueError where transformers has no sdpa of it. answer: of the model and an image [B,3,H,W]. features: the answer has all
    tokens in their places. unread: last blocks that the answer does not come from.
    """

    make: Callable[[str], nn.Module]
    answer: Callable[[Any, Tensor], Any]
    features: bool = False
    unread: int = 0


class Answer(nn.Module):
    """A model as a function from image to one tensor."""

    def __init__(self, zoo: Zoo, attention: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.zoo, self.net = zoo, zoo.make(attention)
        uneven(self.net)
        self.eval()

    def forward(self, image: Tensor) -> Any:
        return self.zoo.answer(self.net, image)


def _of(name: str, config: str, **sizes: Any) -> Callable[[str], nn.Module]:
    """A class of transformers by its name, with a config by its."""

    def make(attention: str) -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, name)(getattr(transformers, config)(attn_implementation=attention, **sizes))
        return made

    return make


def _field(name: str) -> Callable[[Any, Tensor], Any]:
    return lambda net, image: getattr(net(image), name)


def _siglip2(net: Any, image: Tensor) -> Any:
    """SigLIP2 at one size: it takes rows of pixels, [B,P,patch*patch*3], and the sizes of the grid to resize its positions to."""
    grid = SIDE // PATCH
    pixels = image.reshape(-1, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(-1, grid**2, PATCH**2 * 3)
    return net(pixel_values=pixels, pixel_attention_mask=None, spatial_shapes=torch.tensor([[grid, grid]])).pooler_output


def _tower(net: Any, image: Tensor) -> Any:
    """What LLaVA takes of a CLIP tower: the patches behind the last block but one."""
    return net(image, output_hidden_states=True).hidden_states[-2][:, 1:]


def _llava(attention: str) -> nn.Module:
    """A CLIP tower and the two-layer projector of LLaVA 1.5."""
    import transformers

    net = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(attn_implementation=attention, **VIT))
    net.projector = nn.Sequential(nn.Linear(WIDTH, 96), nn.GELU(), nn.Linear(96, 96))
    return net


def _masked_autoencoder(net: Any, image: Tensor) -> Any:
    """ViT-MAE's encoder on all patches: nothing masked, in their order."""
    noise = torch.arange(float((SIDE // PATCH) ** 2))[None].expand(image.shape[0], -1)
    return net(image, noise=noise).last_hidden_state[:, 0]


def _depth(decoder: str, config: str, **more: Any) -> Callable[[str], nn.Module]:
    """A depth decoder on a DINOv2 backbone."""

    def make(attention: str) -> nn.Module:
        import transformers

        backbone = transformers.Dinov2Config(
            out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True, attn_implementation=attention, **{**DINO, "patch_size": 8}
        )  # fmt: skip
        made: Any = getattr(transformers, decoder)(getattr(transformers, config)(backbone_config=backbone, **more))
        made.backbone.set_attn_implementation(attention)
        return made

    return make


NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16}

ZOO: dict[str, Zoo] = {
    "ViT": Zoo(_of("ViTForImageClassification", "ViTConfig", **VIT, **LABELS), _field("logits")),
    "ViT features": Zoo(_of("ViTModel", "ViTConfig", **VIT), _field("last_hidden_state"), features=True),
    "DeiT": Zoo(_of("DeiTForImageClassification", "DeiTConfig", **VIT, **LABELS), _field("logits")),
    "DeiT distilled": Zoo(_of("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT, **LABELS), _field("logits")),
    "ViT-MSN": Zoo(_of("ViTMSNForImageClassification", "ViTMSNConfig", **VIT, **LABELS), _field("logits")),
    "DINOv2": Zoo(_of("Dinov2ForImageClassification", "Dinov2Config", **DINO, **LABELS), _field("logits")),
    "DINOv2 SwiGLU features": Zoo(
        _of("Dinov2Model", "Dinov2Config", **DINO, use_swiglu_ffn=True), _field("last_hidden_state"), features=True
    ),
    "DINOv2 registers": Zoo(
        _of("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **DINO, **LABELS), _field("logits")
    ),
    "DINOv3": Zoo(_of("DINOv3ViTModel", "DINOv3ViTConfig", **VIT, num_register_tokens=4), _field("pooler_output")),
    "DINOv3 SwiGLU features": Zoo(
        _of("DINOv3ViTModel", "DINOv3ViTConfig", **VIT, num_register_tokens=4, use_gated_mlp=True),
        _field("last_hidden_state"),
        features=True,
    ),
    "CLIP": Zoo(_of("CLIPVisionModel", "CLIPVisionConfig", **VIT), _field("pooler_output")),
    "CLIP projection": Zoo(
        _of("CLIPVisionModelWithProjection", "CLIPVisionConfig", **VIT, projection_dim=24), _field("image_embeds")
    ),
    "SigLIP": Zoo(_of("SiglipVisionModel", "SiglipVisionConfig", **VIT), _field("pooler_output")),
    "SigLIP classes": Zoo(
        _of("SiglipForImageClassification", "SiglipConfig", vision_config={**VIT, "vision_use_head": False}, **LABELS),
        _field("logits"),
    ),
    "SigLIP2": Zoo(
        _of(
            "Siglip2VisionModel", "Siglip2VisionConfig", **LAYERS, intermediate_size=2 * WIDTH, num_patches=(SIDE // PATCH) ** 2, patch_size=PATCH
        ),
        _siglip2,
    ),
    "BEiT": Zoo(_of("BeitForImageClassification", "BeitConfig", **VIT, **LABELS, use_relative_position_bias=True), _field("logits")),
    "BEiT shared": Zoo(
        _of("BeitForImageClassification", "BeitConfig", **VIT, **LABELS, use_shared_relative_position_bias=True, use_mean_pooling=False),
        _field("logits"),
    ),
    "ViT-MAE": Zoo(_of("ViTMAEModel", "ViTMAEConfig", **VIT, mask_ratio=0.0), _masked_autoencoder),
    "I-JEPA": Zoo(_of("IJepaForImageClassification", "IJepaConfig", **VIT, **LABELS), _field("logits")),
    "I-JEPA features": Zoo(_of("IJepaModel", "IJepaConfig", **VIT), _field("last_hidden_state"), features=True),
    "OWL-ViT": Zoo(_of("OwlViTVisionModel", "OwlViTVisionConfig", **VIT), _field("pooler_output")),
    "OWL-ViT features": Zoo(_of("OwlViTVisionModel", "OwlViTVisionConfig", **VIT), _field("last_hidden_state"), features=True),
    "AIMv2": Zoo(_of("Aimv2VisionModel", "Aimv2VisionConfig", **VIT), _field("pooler_output")),
    "AIMv2 features": Zoo(_of("Aimv2VisionModel", "Aimv2VisionConfig", **VIT), _field("last_hidden_state"), features=True),
    "BLIP": Zoo(_of("BlipVisionModel", "BlipVisionConfig", **VIT), _field("pooler_output")),
    "BLIP features": Zoo(_of("BlipVisionModel", "BlipVisionConfig", **VIT), _field("last_hidden_state"), features=True),
    "LLaVA tower": Zoo(_llava, lambda net, image: net.projector(_tower(net, image)), features=True, unread=1),
    "DPT": Zoo(
        _of("DPTForDepthEstimation", "DPTConfig", **VIT, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, **NECK),
        _field("predicted_depth"),
        features=True,
    ),
    "DPT on DINOv2": Zoo(_depth("DPTForDepthEstimation", "DPTConfig", **NECK, is_hybrid=False), _field("predicted_depth"), features=True),
    "Depth Anything": Zoo(
        _depth("DepthAnythingForDepthEstimation", "DepthAnythingConfig", **NECK, reassemble_hidden_size=WIDTH, patch_size=8),
        _field("predicted_depth"),
        features=True,
    ),
}  # fmt: skip


def image(count: int = 4) -> Tensor:
    """Random images float32 [count,3,48,48]."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
