"""The reference of a cascade in another type: the products of attention and the linear maps of every block, and nothing else.

What one model hands to the next (tokens, attention logits) and the maps that reuse them are float32, as are the exits' confidences.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from vitprune.methods.dvt.layers import of_member
from vitprune.methods.dvt.reference import Cascade
from vitprune.recipe import Recipe
from vitprune.support.precision import layer_names
from vitprune.vit.blocks import product, weigh
from vitprune.vit.quantised import Factored, LayerTypes, QuantLinear, part_of, smoothed_maps


class TypedAttention(nn.Module):
    """`vitprune.methods.dvt.reference.Attention` with typed maps; the scale is part of the query weights, logits are handed on as float32."""

    def __init__(self, attn: Any, types: LayerTypes) -> None:
        super().__init__()
        self.heads, self.dtype = attn.heads, types.dtype("attn.qkv")
        self.softmax = self.dtype if types.precision.softmax == "half" else None
        width = attn.proj.in_features
        scale = 1.0 / (width // attn.heads) ** 0.5
        self.qkv, self.proj = smoothed_maps(attn.qkv, attn.proj, types, scale, width)

    def forward(self, h: Tensor, relation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows h [B,N,C] and reused logits [B,H,N,N] or None -> output [B,N,C] and all logits [B,H,N,N], float32."""
        batch, tokens, _ = h.shape
        packed = self.qkv(h).to(self.dtype)
        query, key, value = packed.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        logits = product(query, key.transpose(-2, -1)).float()
        if relation is not None:
            logits = logits + relation
        seen = logits if self.softmax is None else logits.to(self.softmax).float()
        context = weigh(seen.softmax(-1), value)  # which rounds the probabilities to the products' type
        return self.proj(context.transpose(1, 2).flatten(2)).float(), logits


class TypedMlp(nn.Module):
    """fc2(GELU(fc1(x))) with typed maps and a float32 GELU."""

    def __init__(self, mlp: Any, types: LayerTypes) -> None:
        super().__init__()
        factors = types.factors("mlp.fc1")
        self.fc1 = types.linear(Factored(mlp.fc1, 1.0 if factors is None else factors), "mlp.fc1")
        self.fc2 = types.linear(mlp.fc2, "mlp.fc2")

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> float32 [..., width]."""
        rows: Tensor = self.fc2(functional.gelu(self.fc1(x).float()))
        return rows.float()


class Divided(nn.Module):
    """A norm whose channels are divided by factors [C]."""

    def __init__(self, norm: Any, factors: Tensor) -> None:
        super().__init__()
        self.norm, self.factors = norm, factors

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        rows: Tensor = self.norm(x) / self.factors.to(x.device)
        return rows


def in_precision(cascade: Cascade, recipe: Recipe) -> Cascade:
    """The cascade that computes in a recipe's precision: itself for fp32, else a copy.

    Raises:
        RecipeError: VP117 a quantised layer has no range.
    """
    if recipe.precision.mode == "fp32":
        return cascade
    typed, depth = copy.deepcopy(cascade), cascade.shape.depth
    for number, member in enumerate(typed.members, start=1):
        section, blocks = of_member(recipe.precision, number, depth), member.blocks
        assert isinstance(blocks, nn.ModuleList)
        for index, block in enumerate(blocks):
            types, part = LayerTypes(section, depth, index), block
            for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
                if (factors := types.factors(layer)) is not None:
                    setattr(part, norm, Divided(getattr(part, norm), factors))
            part.attn, part.mlp = TypedAttention(part.attn, types), TypedMlp(part.mlp, types)
    return typed


class MemberLayers:
    """One member's quantised layers by plain name, as `exporting.layers.check_layers` asks for them."""

    def __init__(self, member: Any) -> None:
        self.found: dict[str, QuantLinear] = {}
        for name in layer_names(len(member.blocks)):
            _, index, part = name.split(".", 2)
            linear = member.blocks[int(index)].get_submodule(part.split(".")[0])
            linear = getattr(linear, part.split(".")[1])
            if isinstance(linear, QuantLinear):
                self.found[name] = linear

    @property
    def quantised(self) -> list[str]:
        """Names of the layers that are."""
        return list(self.found)

    def layer(self, name: str, x: Tensor, part: str = "") -> Tensor:
        """See `vit.quantised.QuantViT.layer`."""
        return part_of(self.found[name].product(x), part)

    def unsure(self, name: str, x: Tensor, part: str = "") -> Tensor:
        """See `vit.quantised.QuantViT.unsure`."""
        return part_of(self.found[name].unsure(x), part)
