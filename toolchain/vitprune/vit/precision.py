"""The reference in a half type: the products take rounded numbers, everything else is float32, and every rounding is written out.

What is rounded: the inputs, weights and results of the linear maps of q, k, v, projection and MLP, and those of Q K^T and P V. LayerNorm,
softmax, GELU, LayerScale and the residual sums are float32, and so is whatever a method decides by. No autocast is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitprune.errors import ExportError
from vitprune.recipe import OutputSection
from vitprune.support.precision import chosen, layer_names
from vitprune.vit.dense import DenseViT

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class HalfLinear:
    """A linear map with rounded input, weights and result.

    Args:
        linear: has `weight` [out,in] and `bias` [out] or None; they are read at every call, so that training reaches them.
        dtype: float16 or bfloat16; float32 leaves the map as it is.
    """

    def __init__(self, linear: Any, dtype: torch.dtype) -> None:
        self.linear, self.dtype = linear, dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[...,in] of any float type -> [...,out] of `dtype`."""
        weight, bias = self.linear.weight.to(self.dtype), self.linear.bias
        bias = None if bias is None else bias.to(self.dtype)
        x = x.to(self.dtype)
        if self.dtype == torch.float32 or x.device.type != "cpu":
            return functional.linear(x, weight, bias)
        wide = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(self.dtype)


class HalfAttention:
    """What `vitprune.vit.blocks` reads of an attention, with q, k and v in a half type; the scale is part of the queries."""

    scale = 1.0

    def __init__(self, attn: Any, qkv: torch.dtype, proj: torch.dtype) -> None:
        self.num_heads, self.head_dim, self.norm = attn.num_heads, attn.head_dim, _float32(attn.norm)
        self.attn, self.dtype = attn, qkv
        self.qkv = HalfLinear(attn.qkv, qkv)
        self._proj = HalfLinear(attn.proj, proj)

    def q_norm(self, query: Tensor) -> Tensor:
        """Q norm, where there is one, and scale: [B,H,N,d] -> [B,H,N,d]."""
        scaled: Tensor = self.attn.q_norm(query.float()) * self.attn.scale
        return scaled.to(self.dtype)

    def k_norm(self, key: Tensor) -> Tensor:
        """K norm, where there is one: [B,H,N,d] -> [B,H,N,d]."""
        normed: Tensor = self.attn.k_norm(key.float())
        return normed.to(self.dtype)

    def proj(self, context: Tensor) -> Tensor:
        """[B,M,C] -> float32 [B,M,C]."""
        return self._proj(context).float()


class HalfBlock:
    """A block as `vitprune.vit.blocks` reads it, its layers in the types given by name ("attn.qkv", ...)."""

    def __init__(self, block: Any, types: dict[str, torch.dtype]) -> None:
        self.norm1, self.ls1, self.norm2, self.ls2 = block.norm1, block.ls1, block.norm2, block.ls2
        self.attn = HalfAttention(block.attn, types["attn.qkv"], types["attn.proj"])
        self.first, self.second = HalfLinear(block.mlp.fc1, types["mlp.fc1"]), HalfLinear(block.mlp.fc2, types["mlp.fc2"])
        self.between = _between(block.mlp)

    def mlp(self, x: Tensor) -> Tensor:
        """LN2 of rows float32 [B,M,C] -> float32 [B,M,C]; the activation is float32."""
        return self.second(self.between(self.first(x).float())).float()


def _float32(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A norm on whatever type comes; nothing at all stays nothing."""
    if isinstance(module, nn.Identity):
        return module
    return lambda x: module(x.float())


def _between(mlp: Any) -> Callable[[Tensor], Tensor]:
    """What an MLP does between its two linear maps.

    Raises:
        ExportError: VP315 for an MLP of another kind.
    """
    between = getattr(mlp, "between", None)
    if between is not None:
        made: Callable[[Tensor], Tensor] = between
        return made
    parts = [name for name, _ in getattr(mlp, "named_children", list)()]
    if parts != ["fc1", "act", "drop1", "norm", "fc2", "drop2"]:
        raise ExportError(
            315,
            "the MLP of this model has no half precision",
            cause=f"{type(mlp).__name__} is not two linear maps with an activation between them",
            next_step="--set precision.mode=fp32",
        )
    return lambda x: mlp.norm(mlp.act(x))


def require_plain_attention(dense: DenseViT) -> None:
    """Other types than float32 are defined for attention of one packed map, without rotary positions, a gate, or attention pooling.

    Raises:
        ExportError: VP315 for another one.
    """
    if dense.global_pool == "map":
        raise ExportError(
            315,
            "attention pooling can be had in float32 alone",
            cause="no reference follows the roundings of a graph with such a head yet",
            next_step="--set precision.mode=fp32",
        )
    for block in dense.blocks:
        parts = {"rotation": "a rotation", "position_bias": "position biases", "gate": "a gate"}
        own = next((text for part, text in parts.items() if getattr(block.attn, part, None) is not None), None)
        if own is not None or not hasattr(block.attn.qkv, "weight"):
            raise ExportError(
                315,
                "the attention of this model can be had in float32 alone",
                cause=f"it has {own or 'separate maps'}, whose roundings no reference follows yet",
                next_step="--set precision.mode=fp32",
            )


class HalfViT(DenseViT):
    """A dense ViT with its blocks in a half type; embedding and head stay float32.

    Args:
        dense: the model. mode: "fp16" or "bf16". keep_fp32: patterns of layer names (`support.precision.layer_names`) that stay float32.

    Raises:
        ExportError: VP315 for an attention or MLP that has no half precision.
    """

    def __init__(self, dense: DenseViT, mode: str, keep_fp32: list[str]) -> None:
        self.dense, self.geometry, self.global_pool = dense, dense.geometry, dense.global_pool
        require_plain_attention(dense)
        kept = chosen(layer_names(self.geometry.depth), keep_fp32)

        def types(block: int) -> dict[str, torch.dtype]:
            parts = [name.removeprefix("blocks.0.") for name in layer_names(1)]
            return {part: TYPES["fp32" if f"blocks.{block}.{part}" in kept else mode] for part in parts}

        self.blocks = [HalfBlock(block, types(index)) for index, block in enumerate(dense.blocks)]

    def embed(self, image: Tensor) -> Tensor:
        """See `DenseViT.embed`."""
        return self.dense.embed(image)

    def head(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """See `DenseViT.head`."""
        return self.dense.head(tokens, weight)

    def taken(self, output: OutputSection) -> list[int]:
        """See `DenseViT.taken`."""
        return self.dense.taken(output)

    def features(self, tokens: list[Tensor], output: OutputSection) -> list[Tensor]:
        """See `DenseViT.features`."""
        return self.dense.features(tokens, output)
