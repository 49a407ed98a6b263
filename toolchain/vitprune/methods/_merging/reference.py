"""What all merging rules share: sizes of rows, their weight as keys, weighted means, groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.methods.base import Site
from vitprune.vit.blocks import added, attention, attention_output, feed_forward, merge_heads, placed, project, run_block, weigh
from vitprune.vit.reference_method import ReferenceMethod
from vitprune.vit.tokens import TokenState


class MergingReference(ReferenceMethod):
    """Attention over sized rows; kinds override `merge`, which runs between attention and MLP.

    `state.extra` holds "size" float32 [B,P'], how many patches every row stands for; "group" int64 [B,P], for every original
    patch the patch that represents its row; "groups" int64 [sites,B,P], "group" after every site.
    """

    def begin(self, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.begin`."""
        state.extra["size"] = torch.ones_like(state.valid, dtype=torch.float32)
        state.extra["group"] = state.patch.clone()
        return x

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        bias, site = self.key_bias(state, x.dtype), self.sites.get(index)
        if site is None or site.options.bypass:
            x = run_block(block, x, bias, state)
        else:
            h = block.norm1(x)
            query, key, value = project(block.attn, h)
            turned = placed(block.attn, query, key, state)
            weights = attention(*turned, bias)
            attended = added(block, x, attention_output(block, merge_heads(weigh(weights, value)), h))
            x = feed_forward(block, self.merge(site, attended, weights, key[:, :, state.prefix :], value, state))
        if site is not None:
            if site.options.bypass:
                state.record()
            before = state.extra.get("groups", state.extra["group"].new_empty(0, *state.extra["group"].shape))
            state.extra["groups"] = torch.cat([before, state.extra["group"][None]])
        return x

    def merge(self, site: Site[Any], x: Tensor, weights: Tensor, key: Tensor, value: Tensor, state: TokenState) -> Tensor:
        """Merge rows of x [B,N,C] and record the site.

        Args:
            site: its options. x: rows after the attention residual. weights: [B,H,N,N] attention probabilities. key: [B,H,P',d] of the
                patches, without rotary positions. value: [B,H,N,d]. state: the tokens, brought up to date here.

        Returns:
            [B,N',C].
        """
        raise NotImplementedError

    def key_bias(self, state: TokenState, dtype: torch.dtype) -> Tensor:
        """Additive bias [B,1,1,N]: log(size) where asked for, -inf on pads."""
        proportional = any(site.options.proportional for site in self.sites.values())
        patches = state.extra["size"].log() if proportional else torch.zeros_like(state.extra["size"])
        patches = patches.masked_fill(~state.valid, float("-inf"))
        return torch.cat([patches.new_zeros(len(patches), state.prefix), patches], dim=1)[:, None, None, :].to(dtype)


def join(
    x: Tensor, joins: Tensor, into: Tensor, state: TokenState, mass: Tensor | None = None, keep_norm: bool = False
) -> Tensor:
    """Let slots join others: weighted means of rows, sizes summed, groups renamed.

    Args:
        x: [B,N,C] rows, prefix first. joins: bool [B,P'], slots that leave. into: int64 [B,P'], the slot each one joins (read
            where it leaves), which does not leave itself. state: sizes and groups are brought up to date; slots are packed by the
            caller. mass: [B,P'] weights of the rows; None = sizes. keep_norm: bring means to the largest norm among their members.

    Returns:
        [B,N,C]; rows of slots that left are unchanged.
    """
    slots = torch.arange(joins.shape[1], device=joins.device)[None].expand_as(joins)
    target = torch.where(joins, into, slots)
    size = torch.where(state.valid, state.extra["size"], torch.ones_like(state.extra["size"]))
    share = torch.where(state.valid, size, torch.zeros_like(size))
    patches = x[:, state.prefix :]
    wide = target[:, :, None].expand_as(patches)
    total = torch.zeros_like(size).scatter_add(1, target, share)
    part = share if mass is None else torch.where(state.valid, mass, torch.zeros_like(mass))
    weight = torch.zeros_like(part).scatter_add(1, target, part)
    summed = torch.zeros_like(patches).scatter_add(1, wide, patches * part[:, :, None].to(x.dtype))
    merged = summed / torch.where(weight > 0, weight, torch.ones_like(weight))[:, :, None].to(x.dtype)
    if keep_norm:
        norm = patches.norm(dim=-1)
        largest = torch.zeros_like(norm).scatter_reduce(1, target, norm, "amax")
        merged = merged * (largest / merged.norm(dim=-1).clamp(min=1e-12))[:, :, None]
    alone = (total == size) | (total == 0)  # nothing joined: the row stays as it is, to the last bit
    state.extra["size"] = torch.where(total > 0, total, size)
    _rename(joins, target, state)
    return torch.cat([x[:, : state.prefix], torch.where(alone[:, :, None], patches, merged)], dim=1)


def _rename(joins: Tensor, target: Tensor, state: TokenState) -> None:
    """Patches represented by a slot that leaves are represented by the slot it joins."""
    name = torch.arange(state.patches, device=joins.device).expand(len(joins), -1).clone()
    for image in range(len(joins)):
        leaving = (joins & state.valid)[image]
        name[image, state.patch[image, leaving]] = state.patch[image, target[image, leaving]]
    group = state.extra["group"]
    state.extra["group"] = torch.where(group < 0, group, name.gather(1, group.clamp(min=0)))  # -1: lost to a capacity


def lose(chosen: Tensor, state: TokenState) -> None:
    """Patches whose row is not among the chosen slots (bool [B,P']) are represented by none: their group is -1."""
    number = torch.where(chosen, state.patch, torch.full_like(state.patch, state.patches))
    kept = torch.zeros_like(state.extra["group"][:, :1], dtype=torch.bool).repeat(1, state.patches + 1)
    kept = kept.scatter(1, number, True)[:, : state.patches]
    group = state.extra["group"]
    state.extra["group"] = group.masked_fill((group < 0) | ~kept.gather(1, group.clamp(min=0)), -1)
