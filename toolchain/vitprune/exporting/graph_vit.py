"""The PyTorch reference's model, taken from a dense ONNX graph: the other implementation that `rewrite` is compared with.

Attention is computed by the reference's own blocks with weights read off the graph. What works row by row (norms, MLP, LayerScale) or
not on tokens at all (patch embedding, classifier) are pieces of the untouched dense graph, run by ONNX Runtime on as many rows as the
dense model has; rows that have left are filled up and cut off again. A head that averages over tokens, or pools them by attention, is cut there: means
and pools are computed here from the rows that are left. What reads features (a decoder, say) is a piece of the dense graph as a whole: it gets all
tokens in their places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitprune.errors import ExportError
from vitprune.exporting.pieces import Parts, Piece
from vitprune.graph.anatomy.attention_pool import AttentionPool
from vitprune.graph.anatomy.feed_forward import first_linear, second_linear
from vitprune.graph.anatomy.find import Anatomy, Block
from vitprune.graph.anatomy.projections import HeadNorm, Linear, linear_above
from vitprune.graph.anatomy.static import static_copy
from vitprune.graph.surgery import geometry
from vitprune.recipe import OutputSection
from vitprune.support.onnx_weights import Spill
from vitprune.vit.dense import DenseViT

BATCH = 4
FILL_LIMIT = 1e-5


@dataclass
class _Rowwise:
    """A piece from rows to rows, for any number of rows up to the dense model's."""

    piece: Piece
    rows: int

    def __call__(self, x: Tensor) -> Tensor:
        """[B,K,C] -> [B,K,C']."""
        return self.piece(_filled(x, self.rows))[:, : x.shape[1]]


def _filled(x: Tensor, rows: int, value: float = 0.0) -> Tensor:
    return functional.pad(x, (0, 0, 0, rows - x.shape[1]), value=value)


class _HeadNorm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, or nothing."""

    def __init__(self, norm: HeadNorm | None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        if self.norm is None:
            return x
        if self.norm.rms:
            return functional.rms_norm(
                x, x.shape[-1:], torch.from_numpy(np.array(self.norm.weight, np.float32)), self.norm.epsilon
            )
        weight = torch.from_numpy(np.ascontiguousarray(self.norm.weight.reshape(-1)))
        bias = None if self.norm.bias is None else torch.from_numpy(np.ascontiguousarray(self.norm.bias.reshape(-1)))
        return functional.layer_norm(x, weight.shape, weight, bias, self.norm.epsilon)


class _Projection:
    """Context [B,K,H*d] to what the residual sum adds: the projection's weights here, what stands behind it (LayerScale) a piece."""

    def __init__(self, graph: Parts, block: Block) -> None:
        self.weight, self.bias = _affine(block.projection)
        behind = block.projected != block.attention_branch
        self.behind = _Rowwise(Piece(graph, [block.projected], block.attention_branch), block.tokens) if behind else nn.Identity()

    def __call__(self, context: Tensor) -> Tensor:
        """[B,K,H*d] -> [B,K,C]."""
        added: Tensor = self.behind(context @ self.weight + self.bias)
        return added


class _Attention:
    """What `vitprune.vit.blocks` reads of an attention: packed q, k, v, their norms, the scale, and the way to the residual sum."""

    def __init__(self, block: Block, projection: Any) -> None:
        self.num_heads, self.head_dim, self.scale = block.heads, block.head_dim, block.scale
        self.parts = [_affine(part) for part in (block.query, block.key, block.value)]
        self.q_norm, self.k_norm = _HeadNorm(block.query_norm), _HeadNorm(block.key_norm)
        self.norm, self.proj, self.rotation = _HeadNorm(block.context_norm), projection, block.rotation
        self.position_bias = block.position_bias

    def qkv(self, h: Tensor) -> Tensor:
        """[B,K,C] -> [B,K,3*H*d]."""
        return torch.cat([h @ weight + bias for weight, bias in self.parts], dim=-1)


def _affine(linear: Linear) -> tuple[Tensor, Tensor]:
    mapped = linear.weight.flags.writeable and linear.weight.dtype == np.float32  # a large model's, in a file: used where it lies
    weight = torch.from_numpy(linear.weight if mapped else np.array(linear.weight, np.float32, order="C"))
    bias = torch.zeros(weight.shape[1]) if linear.bias is None else torch.from_numpy(np.array(linear.bias, np.float32))
    return weight, bias


class GraphBlock:
    """One block, with the attributes that `vitprune.vit.blocks` reads."""

    def __init__(self, graph: Parts, block: Block) -> None:
        def rowwise(source: str, result: str) -> _Rowwise:
            return _Rowwise(Piece(graph, [source], result), block.tokens)

        self.norm1 = rowwise(block.x, block.h)
        self.norm2 = self.ls1 = self.ls2 = nn.Identity()
        if block.beside is None:
            self.attn = _Attention(block, _Projection(graph, block))
            self.mlp = rowwise(block.attended, block.mlp_branch)
            return
        weight, bias = _affine(block.projection)
        self.attn = _Attention(block, _Weights(weight.T, bias))
        self.beside = rowwise(block.h, block.mlp_branch)
        summed = next(reader for reader in graph.tensors[block.mlp_branch].outputs).outputs[0].name
        if summed != block.attention_branch:
            self.ls1 = rowwise(summed, block.attention_branch)  # type: ignore[assignment]


class _Weights:
    """A linear map by its weights, [out,in], and bias [out] or None; called, it takes rows [...,in] to [...,out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def _weights(output: Any) -> tuple[_Weights, str]:
    """The linear map that makes a tensor, and the name of what it reads."""
    linear = linear_above(output)
    assert linear is not None, "`second_linear` and `first_linear` find linear maps only"
    bias = None if linear.bias is None else torch.from_numpy(np.array(linear.bias, np.float32))
    return _Weights(torch.from_numpy(np.array(linear.weight.T, np.float32)), bias), linear.source


class _SplitMlp:
    """The two linear maps of an MLP and what is between them, as `vitprune.vit.precision` reads them."""

    def __init__(self, fc1: _Weights, between: _Rowwise, fc2: _Weights) -> None:
        self.fc1, self.between, self.fc2 = fc1, between, fc2


class SplitBlock(GraphBlock):
    """A block whose linear maps stand alone, so that a reference may round what goes into them."""

    def __init__(self, graph: Parts, block: Block) -> None:
        tensors = graph.tensors
        weight, bias = _affine(block.projection)

        def rowwise(source: str, result: str) -> Any:
            return nn.Identity() if source == result else _Rowwise(Piece(graph, [source], result), block.tokens)

        self.norm1 = rowwise(block.x, block.h)
        self.attn = _Attention(block, _Weights(weight.T, bias))
        weights, biases = zip(*self.attn.parts, strict=True)
        self.attn.qkv = _Weights(torch.cat(weights, dim=1).T, torch.cat(biases))  # type: ignore[method-assign, assignment]
        self.ls1 = rowwise(block.projected, block.attention_branch)
        second = second_linear(tensors[block.mlp_branch], block.index)
        fc2, inner = _weights(second[-1].outputs[0])
        first = first_linear(tensors[inner], block.index)
        fc1, normed = _weights(first[-1].outputs[0])
        self.norm2 = rowwise(block.attended, normed)
        self.mlp = _SplitMlp(fc1, rowwise(first[-1].outputs[0].name, inner), fc2)  # type: ignore[assignment]
        self.ls2 = rowwise(second[-1].outputs[0].name, block.mlp_branch)


class GraphViT(DenseViT):
    """A dense ViT as its ONNX graph describes it.

    Args:
        model: the dense graph. anatomy: of that graph. split: blocks as `SplitBlock`. spill: as for `graph.reading.Source`.

    Raises:
        ExportError: VP326 when rows that should be prefix tokens follow the image, or patches do not.
    """

    def __init__(self, model: onnx.ModelProto, anatomy: Anatomy, split: bool = False, spill: Spill | None = None) -> None:
        graph = Parts(static_copy(model, BATCH), spill)
        self.geometry = replace(geometry(anatomy), has_cls=anatomy.reads_cls)
        self.tokens = self.geometry.tokens
        first, last = anatomy.blocks[0].x, anatomy.blocks[-1].output
        self.embedding = Piece(graph, [anatomy.input], first)
        self.blocks = [(SplitBlock if split else GraphBlock)(graph, block) for block in anatomy.blocks]
        self.taps = anatomy.taps
        self.global_pool = "map" if anatomy.pools else "avg" if anatomy.means else "token"
        self._check_layout(anatomy)
        if self.taps:
            self.behind = Piece(graph, [anatomy.blocks[tap].output for tap in self.taps], *anatomy.outputs)
            return
        self.means = anatomy.means
        self.averaged = [Piece(graph, [last], mean.tokens) for mean in anatomy.means]
        self.pools = [(Piece(graph, [last], pool.tokens), pool) for pool in anatomy.pools]
        cut = [*(mean.output for mean in anatomy.means), *(pool.projected for pool in anatomy.pools)]
        self.classifier = Piece(graph, [last, *cut], anatomy.outputs[0])

    def embed(self, image: Tensor) -> Tensor:
        """See `DenseViT.embed`."""
        return self.embedding(image)

    def taken(self, output: OutputSection) -> list[int]:
        """See `DenseViT.taken`: what stands behind the blocks in the graph says it."""
        return [tap + 1 for tap in self.taps]

    def features(self, tokens: list[Tensor], output: OutputSection) -> list[Tensor]:
        """See `DenseViT.features`: what stands behind the blocks is the untouched rest of the dense graph."""
        return self.behind.every(*tokens)

    def head(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """See `DenseViT.head`; two different fillings of the rows that have left must give the same logits.

        Raises:
            ExportError: VP329 when they do not: the head reads rows that are not there any more.
        """
        logits = [self._head(tokens, weight, fill) for fill in (0.0, 3.0)]
        difference = float((logits[0] - logits[1]).abs().max())
        if not difference <= FILL_LIMIT * max(1.0, float(logits[0].abs().max())):
            raise ExportError(
                329,
                "the head of this graph reads tokens that leave",
                cause=f"with other contents in rows that are not there any more the logits differ by {difference:.3g}",
                next_step="choose another output with --output-name, or report the dense ONNX file with this message",
            )
        return logits[0]

    def _head(self, tokens: Tensor, weight: Tensor, fill: float) -> Tensor:
        whole = _filled(tokens, self.tokens, fill)
        share = functional.pad(weight, (0, self.tokens - weight.shape[1]))
        means = [self._mean(piece(whole), share, mean) for piece, mean in zip(self.averaged, self.means, strict=True)]
        pools = [self._pooled(piece(whole), share[:, pool.skipped :], pool) for piece, pool in self.pools]
        return self.classifier(whole, *means, *pools)

    def _pooled(self, rows: Tensor, share: Tensor, pool: AttentionPool) -> Tensor:
        """[B,L,C'] of rows [B,N,C] with share [B,N] patches each, none on pads."""
        parts = []
        for linear in (pool.key, pool.value):
            weight, bias = _affine(linear)
            parts.append((rows @ weight + bias).unflatten(2, (pool.heads, pool.head_dim)))
        logits = torch.einsum("lhd,bnhd->bhln", torch.from_numpy(pool.query), _HeadNorm(pool.key_norm)(parts[0]))
        weights = (logits + share.log()[:, None, None, :]).softmax(dim=-1)
        weight, bias = _affine(pool.projection)
        return torch.einsum("bhln,bnhd->blhd", weights, parts[1]).flatten(2) @ weight + bias

    def _mean(self, tokens: Tensor, weight: Tensor, mean: Any) -> Tensor:
        """The mean over live rows along the tensor's own token axis."""
        share = weight[:, mean.skipped :]
        shape = [len(share) if axis == 0 else share.shape[1] if axis == mean.axis else 1 for axis in range(mean.rank)]
        share = share.reshape(shape)
        total = (tokens * share).sum(mean.axis, keepdim=mean.keepdims)
        return total / share.sum(mean.axis, keepdim=mean.keepdims).clamp(min=1)

    def _check_layout(self, anatomy: Anatomy) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, *anatomy.image_shape, generator=generator)
        rows = self.embed(images)
        follows = ((rows[0] - rows[1]).abs().amax(dim=-1) > 0).tolist()
        if follows != [False] * anatomy.prefix + [True] * anatomy.patches:
            raise ExportError(
                326,
                "the token layout of this graph is not understood",
                cause=f"{anatomy.prefix} prefix tokens in front of {anatomy.patches} patches were expected, but other rows follow the image",
                next_step="export a model whose class and register tokens stand in front, as timm and Hugging Face place them",
            )
