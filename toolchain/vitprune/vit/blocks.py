"""The parts of timm's attention block that every rule needs, written out so that rows can be dropped between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.support.attention import PositionBias, Rotation
from vitprune.vit.tokens import TokenState


def project(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (scaled), keys and values [B,H,N,d] of normalised rows h [B,N,C], without their positions (see `placed`)."""
    batch, tokens, _ = h.shape
    packed = attn.qkv(h).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = packed.unbind(0)
    return attn.q_norm(query) * attn.scale, attn.k_norm(key), value


def placed(attn: Any, query: Tensor, key: Tensor, state: TokenState | None) -> tuple[Tensor, Tensor]:
    """Queries and keys [B,H,N,d'] with the positions of their rows, so that their products are the attention logits.

    Rotary positions turn them. Position biases are a bilinear form of who asks and who is asked, so they become N+1 further channels:
    of a key the shares that the tokens of the model have in its row, of a query the biases of its row against all of them.

    Args:
        attn: with or without `rotation` and `position_bias`. query, key: as `project` gives them. state: the tokens that the rows are.

    Raises:
        ValueError: positions, and no `state` to take them from.
    """
    rotation: Rotation | None = getattr(attn, "rotation", None)
    bias: PositionBias | None = getattr(attn, "position_bias", None)
    if rotation is None and bias is None:
        return query, key
    if state is None:
        raise ValueError("positions follow the tokens: which ones the rows are must be said")
    if rotation is not None:
        query, key = _turned(query, rotation, state), _turned(key, rotation, state)
    if bias is not None:
        shares = _shares(state, query.dtype)
        table = torch.as_tensor(bias.extended(), dtype=query.dtype, device=query.device)
        query = torch.cat([query, (shares[:, None] @ table).expand(-1, query.shape[1], -1, -1)], dim=-1)
        key = torch.cat([key, shares[:, None].expand(-1, key.shape[1], -1, -1)], dim=-1)
    return query, key


def _shares(state: TokenState, dtype: torch.dtype) -> Tensor:
    """[B,N',N+1]: shares of the model's tokens, and of one without a position, in the rows that are there."""
    slots = state.patch.shape[1]
    patches = torch.arange(state.patches + 1, device=state.patch.device)
    named, group = state.patch.clamp(max=state.patches), state.extra.get("group")
    own = (named[:, :, None] == patches).to(dtype)
    if group is not None:
        hits = (group[:, None, :] == state.patch[:, :, None]).to(dtype)
        members = hits / hits.sum(dim=-1, keepdim=True).clamp(min=1)
        own = torch.cat([members, torch.zeros_like(members[:, :, :1])], dim=-1)
    whole = own.new_zeros(len(own), state.prefix + slots, state.prefix + state.patches + 1)
    whole[:, : state.prefix, : state.prefix] = torch.eye(state.prefix, dtype=dtype, device=own.device)
    whole[:, state.prefix :, state.prefix :] = own
    return whole


def _turned(x: Tensor, rotation: Rotation, state: TokenState) -> Tensor:
    """X [B,H,N,d] rotated row by row; prefix tokens and added ones stay as they are, merged ones take the mean of their members."""
    half = x.shape[-1] // 2
    rows, group = state.patch.clamp(max=state.patches), state.extra.get("group")
    if group is not None:
        members = (group[:, None, :] == state.patch[:, :, None]).to(x.dtype)  # [B,N-prefix,P]
        members = members / members.sum(dim=-1, keepdim=True).clamp(min=1)

    def table(values: Any, none: float) -> Tensor:
        """[B,h,N-prefix,d]."""
        known = torch.as_tensor(values, dtype=x.dtype, device=x.device)
        if group is not None:
            return torch.einsum("bkp,hpd->bhkd", members, known)
        with_added = torch.cat([known, torch.full_like(known[:, :1], none)], dim=1)
        return with_added[:, rows].transpose(0, 1)

    front, patches = x[:, :, : state.prefix], x[:, :, state.prefix :]
    if rotation.half:
        turned = torch.cat([-patches[..., half:], patches[..., :half]], dim=-1)
    else:
        turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([front, patches * table(rotation.cos, 1.0) + turned * table(rotation.sin, 0.0)], dim=2)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right in their common type; half types are summed in float32 and rounded once, as tensor cores do."""
    if left.dtype not in (torch.float16, torch.bfloat16) or left.device.type != "cpu":
        return left @ right
    return (left.float() @ right.float()).to(left.dtype)


def attention(query: Tensor, key: Tensor, bias: Tensor | None, rounded: torch.dtype | None = None) -> Tensor:
    """Softmax probabilities [B,H,M,N]; query [B,H,M,d], key [B,H,N,d], bias broadcastable to [B,H,M,N].

    Of half types the product alone is in that type; the probabilities are float32, unless what goes into the softmax and what comes out
    is `rounded` to a type.
    """
    logits = product(query, key.transpose(-2, -1))
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    logits = logits if bias is None else logits + bias
    if rounded is not None:
        return logits.to(rounded).float().softmax(dim=-1).to(rounded).float()
    return logits.softmax(dim=-1)


def scoring_row(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Probabilities [B,H,N] of the first row, to score by: from queries and keys of a half type on everything that decides is float32.

    Args:
        query: [B,H,M,d]. key: [B,H,N,d]. bias: broadcastable to [B,H,1,N].
    """
    first = query[:, :, :1]
    if first.dtype in (torch.float16, torch.bfloat16):
        first, key = first.float(), key.float()
    return attention(first, key, bias)[:, :, 0]


def weigh(weights: Tensor, value: Tensor) -> Tensor:
    """Probabilities [B,H,M,N] times values [B,H,N,d], in the type of the values: [B,H,M,d]."""
    return product(weights.to(value.dtype), value)


def merge_heads(context: Tensor) -> Tensor:
    """[B,H,M,d] -> [B,M,H*d]."""
    return context.transpose(1, 2).flatten(2)


def attention_output(block: Any, context: Tensor, h: Tensor | None = None) -> Tensor:
    """Norm, gate, projection and LayerScale of merged context rows [B,M,H*d], with the MLP where it stands beside the attention.

    Args:
        block: the block. context: of the queries that are left. h: [B,M,C], the normalised rows of the same tokens; a gate and a parallel
            MLP read them.
    """
    context = block.attn.norm(context)
    beside = getattr(block, "beside", None)
    gate = getattr(block.attn, "gate", None)
    if gate is not None:
        context = context * gate(h).sigmoid()
    rows: Tensor = block.attn.proj(context)
    if beside is not None:
        rows = rows + beside(h)
    scaled: Tensor = block.ls1(rows)
    return scaled


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """X + LayerScale(MLP(LN2(x))); x where the MLP stands beside the attention (`attention_output` has added it)."""
    if getattr(block, "beside", None) is not None:
        return x
    return added(block, x, block.ls2(block.mlp(block.norm2(x))))


def added(block: Any, x: Tensor, branch: Tensor) -> Tensor:
    """X + what a branch gives, [B,N,C]; rounded where the block says that the residual stream is of a half type (`stream`)."""
    return rounded(x + branch, getattr(block, "stream", None))


def rounded(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Float32 numbers of a type; x itself where there is none."""
    return x if dtype is None else x.to(dtype).float()


def run_block(block: Any, x: Tensor, bias: Tensor | None, state: TokenState | None = None) -> Tensor:
    """A whole block with hidden keys; equals timm's own forward when bias is None and all tokens are there."""
    h = block.norm1(x)
    query, key, value = project(block.attn, h)
    query, key = placed(block.attn, query, key, state)
    context = merge_heads(weigh(attention(query, key, bias, getattr(block.attn, "softmax", None)), value))
    return feed_forward(block, added(block, x, attention_output(block, context, h)))
