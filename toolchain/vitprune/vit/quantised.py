"""The reference with quantised linear maps: integers or FP8 numbers written out as tensor arithmetic, at the places the recipe names.

A linear map takes its input divided by the layer's scale, rounded and cut to the type, times the scale; its weights likewise, with one
scale per output channel (symmetric, zero point 0); the product and the bias are float32. Everything else is `vit.precision`'s. Factors
that even out channels (`precision.smoothing`, powers of two) divide the input of a layer where it is made and multiply its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitprune.errors import RecipeError
from vitprune.recipe import PrecisionSection
from vitprune.support.precision import LARGEST, chosen, exponents, layer_names
from vitprune.vit.dense import DenseViT
from vitprune.vit.precision import TYPES, HalfLinear, _between, _float32, require_plain_attention

EDGE = 2.0**-20


def on_grid(x: Tensor, scale: Tensor, mode: str) -> Tensor:
    """Numbers of a type times a scale, nearest to x (ties to even); beyond the type's range, its end."""
    limit = LARGEST[mode]
    inner = x / scale
    if mode == "int8":
        return inner.round().clamp(-limit - 1, limit) * scale
    return inner.clamp(-limit, limit).to(torch.float8_e4m3fn).float() * scale


def weights_on_grid(weight: Tensor, mode: str) -> Tensor:
    """Weights [out,in] with one scale per row, the row's largest number over the type's."""
    most = weight.abs().amax(dim=1, keepdim=True)
    return on_grid(weight, torch.where(most > 0, most / LARGEST[mode], torch.ones_like(most)), mode)


def unsure_weights(weight: Tensor, mode: str) -> Tensor:
    """Steps [out,in] of the weights that lie on the edge between two numbers of the type, 0 elsewhere.

    A weight is itself a product of the model's own and of factors, which two implementations round in another order (`EDGE`, relative).
    """
    most = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(most > 0, most / LARGEST[mode], torch.ones_like(most))
    return on_grid(weight * (1 + EDGE), scale, mode).sub(on_grid(weight * (1 - EDGE), scale, mode)).abs()


class Factored:
    """A linear map with factors on its inputs [in] and outputs [out]; weights are read at every call."""

    def __init__(self, linear: Any, inputs: Tensor | float = 1.0, outputs: Tensor | float = 1.0) -> None:
        self.linear, self.inputs, self.outputs = linear, inputs, outputs

    @property
    def weight(self) -> Tensor:
        """[out,in]."""
        weight: Tensor = self.linear.weight * self.inputs
        return weight * (self.outputs[:, None] if isinstance(self.outputs, Tensor) else self.outputs)

    @property
    def bias(self) -> Tensor | None:
        """[out] or None."""
        bias: Tensor | None = self.linear.bias
        return None if bias is None else bias * self.outputs


class QuantLinear:
    """A linear map of quantised numbers.

    Args:
        linear: has `weight` [out,in] and `bias` [out] or None. largest: end of the input's range. mode: "int8" or "fp8".
    """

    def __init__(self, linear: Any, largest: float, mode: str) -> None:
        self.linear, self.mode = linear, mode
        self.scale = torch.tensor(largest / LARGEST[mode], dtype=torch.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """[...,in] -> float32 [...,out]."""
        product, bias = self.product(x), self.linear.bias
        return product if bias is None else product + bias

    def product(self, x: Tensor) -> Tensor:
        """[...,in] -> float32 [...,out], without the bias."""
        on = on_grid(x.float(), self.scale.to(x.device), self.mode)
        return functional.linear(on, weights_on_grid(self.linear.weight, self.mode))

    def unsure(self, x: Tensor) -> Tensor:
        """How much of `product` hangs on weights that may be a step further: [...,in] -> float32 [...,out]."""
        on = on_grid(x.float(), self.scale.to(x.device), self.mode)
        return functional.linear(on.abs(), unsure_weights(self.linear.weight, self.mode))


class _QuantAttention:
    """What `vitprune.vit.blocks` reads of an attention; the scale is part of the query weights, or follows their norm."""

    scale = 1.0

    def __init__(self, attn: Any, qkv: Any, proj: Any, products: torch.dtype) -> None:
        self.num_heads, self.head_dim, self.norm = attn.num_heads, attn.head_dim, _float32(attn.norm)
        self.attn, self.linears, self.dtype = attn, (qkv, proj), products

    def qkv(self, h: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,3*H*d] of the products' type."""
        rows: Tensor = self.linears[0](h)
        return rows.to(self.dtype)

    def q_norm(self, query: Tensor) -> Tensor:
        """Q norm and scale where there is a norm: [B,H,N,d] -> [B,H,N,d]."""
        if not has_norm(self.attn):
            return query
        scaled: Tensor = self.attn.q_norm(query.float()) * self.attn.scale
        return scaled.to(self.dtype)

    def k_norm(self, key: Tensor) -> Tensor:
        """K norm, where there is one: [B,H,N,d] -> [B,H,N,d]."""
        normed: Tensor = self.attn.k_norm(key.float())
        return normed.to(self.dtype)

    def proj(self, context: Tensor) -> Tensor:
        """[B,M,C] -> float32 [B,M,C]."""
        rows: Tensor = self.linears[1](context)
        return rows.float()


def has_norm(attn: Any) -> bool:
    """Whether queries are normalised before the scale."""
    return not isinstance(attn.q_norm, nn.Identity) and getattr(attn.q_norm, "norm", attn) is not None


class LayerTypes:
    """What becomes of one block's layers; in a half type none is quantised."""

    def __init__(self, precision: PrecisionSection, depth: int, block: int) -> None:
        names = layer_names(depth)
        self.precision, self.block = precision, block
        self.kept = chosen(names, precision.keep_fp32)
        self.excluded = chosen(names, precision.exclude)

    def name(self, part: str) -> str:
        """A layer's name in the recipe."""
        return f"blocks.{self.block}.{part}"

    def dtype(self, part: str) -> torch.dtype:
        """Type of what a layer does not quantise."""
        return TYPES["fp32" if self.name(part) in self.kept else self.precision.floats]

    def quantised(self, part: str) -> bool:
        """Whether a layer takes int8 or FP8."""
        return self.precision.quantised and self.name(part) not in self.kept | self.excluded

    def factors(self, part: str) -> Tensor | None:
        """What a layer's inputs are divided by, [C], or None."""
        letters = self.precision.smoothing.get(self.name(part)) if self.quantised(part) else None
        return None if letters is None else torch.tensor(exponents(letters), dtype=torch.float32).exp2()

    def linear(self, linear: Any, part: str) -> Any:
        """The map in its type.

        Raises:
            RecipeError: VP117 it is quantised and the recipe has no range for it.
        """
        if not self.quantised(part):
            return HalfLinear(linear, self.dtype(part))
        largest = self.precision.ranges.get(self.name(part))
        if largest is None:
            raise RecipeError(
                117,
                f"{self.precision.mode} needs calibration images",
                cause=f"the recipe has no range for {self.name(part)}",
                next_step="export with --data DIR: the bundle's recipe has the ranges",
            )
        return QuantLinear(linear, largest, self.precision.mode)


def smoothed_maps(qkv: Any, proj: Any, types: LayerTypes, scale: float, width: int) -> tuple[Any, Any]:
    """The packed map of queries (times the scale), keys and values, and the projection, in their types and with their factors.

    Args:
        qkv, proj: linear maps. types: of the block. scale: of attention, which becomes part of the query weights. width: H*d.
    """
    inputs, values = types.factors("attn.qkv"), types.factors("attn.proj")
    outputs = torch.ones(3 * width)
    outputs[:width] = scale
    outputs[2 * width :] = 1.0 if values is None else 1 / values
    packed = Factored(qkv, 1.0 if inputs is None else inputs, outputs)
    projection = Factored(proj, 1.0 if values is None else values)
    return types.linear(packed, "attn.qkv"), types.linear(projection, "attn.proj")


def _divided(norm: Any, factors: Tensor | None) -> Any:
    return norm if factors is None else lambda x: norm(x) / factors.to(x.device)


class QuantBlock:
    """A block as `vitprune.vit.blocks` reads it."""

    def __init__(self, block: Any, types: LayerTypes) -> None:
        attn = block.attn
        inputs, hidden = (types.factors(part) for part in ("attn.qkv", "mlp.fc1"))
        self.norm1, self.norm2 = _divided(block.norm1, inputs), _divided(block.norm2, hidden)
        self.ls1, self.ls2 = block.ls1, block.ls2
        scale = 1.0 if has_norm(attn) else float(attn.scale)
        qkv, proj = smoothed_maps(attn.qkv, attn.proj, types, scale, attn.num_heads * attn.head_dim)
        self.attn = _QuantAttention(attn, qkv, proj, types.dtype("attn.qkv"))
        self.first = types.linear(Factored(block.mlp.fc1, 1.0 if hidden is None else hidden), "mlp.fc1")
        self.second = types.linear(block.mlp.fc2, "mlp.fc2")
        self.between = _between(block.mlp)

    def layer(self, part: str) -> Any:
        """A linear map by name ("attn.qkv", ...)."""
        return {
            "attn.qkv": self.attn.linears[0],
            "attn.proj": self.attn.linears[1],
            "mlp.fc1": self.first,
            "mlp.fc2": self.second,
        }[part]

    def mlp(self, x: Tensor) -> Tensor:
        """LN2 of rows float32 [B,M,C] -> float32 [B,M,C]; the activation is float32."""
        rows: Tensor = self.second(self.between(self.first(x).float()))
        return rows.float()


def part_of(whole: Tensor, part: str) -> Tensor:
    """Queries, keys or values ("q", "k", "v") of a packed map's rows [...,3*H*d]; all of it for ""."""
    return whole if not part else whole.chunk(3, dim=-1)["qkv".index(part)]


class QuantViT(DenseViT):
    """A dense ViT with its blocks' linear maps in int8 or FP8; embedding and head stay float32.

    Args:
        dense: the model. precision: of the recipe, with ranges.

    Raises:
        RecipeError: VP117 ranges are missing. ExportError: VP315 an attention or MLP of another kind.
    """

    def __init__(self, dense: DenseViT, precision: PrecisionSection) -> None:
        require_plain_attention(dense)
        self.dense, self.geometry, self.global_pool = dense, dense.geometry, dense.global_pool
        depth = self.geometry.depth
        self.blocks = [QuantBlock(block, LayerTypes(precision, depth, index)) for index, block in enumerate(dense.blocks)]

    @property
    def quantised(self) -> list[str]:
        """Names of the layers that are."""
        named = [(name, self._named(name)) for name in layer_names(self.geometry.depth)]
        return [name for name, linear in named if isinstance(linear, QuantLinear)]

    def _named(self, name: str) -> Any:
        _, index, part = name.split(".", 2)
        return self.blocks[int(index)].layer(part)

    def layer(self, name: str, x: Tensor, part: str = "") -> Tensor:
        """One quantised layer's product of its input, without the bias.

        Args:
            name: of the layer. x: [...,in]. part: "q", "k" or "v" of a packed map; "" for all of it.
        """
        return part_of(self._named(name).product(x), part)

    def unsure(self, name: str, x: Tensor, part: str = "") -> Tensor:
        """What of `layer` hangs on weights on the edge between two numbers of the type: [...,out], at most so far apart."""
        return part_of(self._named(name).unsure(x), part)

    def embed(self, image: Tensor) -> Tensor:
        """See `DenseViT.embed`."""
        return self.dense.embed(image)

    def head(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """See `DenseViT.head`."""
        return self.dense.head(tokens, weight)
