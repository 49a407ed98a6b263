"""The judge of tests/reach/hugging_face.py: transformers' own layers on all tokens, told by masks and means what pruning says by fewer rows.

It knows no graph and nothing of vitprune. A patch that has been dropped stays in its place, hidden as a key; patches that have merged
all stay in their places with one row, their mean. n equal rows draw what one row does whose logit has log(n) added (proportional
attention, Bolya et al., ICLR 2023, arXiv 2210.09461, eq. 1), so both give the same answers. Scores and matches are computed here, from
the probabilities and keys of transformers' own attention.

Attention is read and changed at its softmax; scaled_dot_product_attention is written out for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass
class TopK:
    """The patches that receive most attention stay, the others are hidden behind the block (EViT without its fused token)."""

    stages: list[int]
    keep_rate: float
    score: str = "cls"
    kept: dict[int, list[list[int]]] = field(default_factory=dict)  # by block, of each image

    def decide(self, block: int, judge: Judge) -> None:
        """Sets `judge.alive` of the images' patches."""
        if block not in self.stages:
            return
        now, prefix = judge.probabilities.mean(dim=1), judge.prefix  # [B,N,N]
        received = (
            now[:, 0] if self.score == "cls" else (now * judge.alive[:, :, None]).sum(dim=1) / judge.alive.sum(1, keepdim=True)
        )
        received = received[:, prefix:].masked_fill(~judge.alive[:, prefix:], -1.0)
        count = math.ceil(self.keep_rate * int(judge.alive[0, prefix:].sum()))
        best = torch.sort(received, dim=1, descending=True, stable=True).indices[:, :count]
        judge.alive[:, prefix:] = torch.zeros_like(received, dtype=torch.bool).scatter(1, best, True)
        self.kept[block] = [sorted(row) for row in best.tolist()]


@dataclass
class ToMe:
    """The r most similar pairs of patches merge in every block, row after row (Bolya et al., section 3)."""

    r: int
    order: list[list[int]] = field(default_factory=list)  # of each image the patches that stand for rows, as the rows lie
    kept: dict[int, list[list[int]]] = field(default_factory=dict)

    def decide(self, block: int, judge: Judge) -> None:
        """Sets `judge.group` of the images' patches."""
        prefix = judge.prefix
        self.order = self.order or [list(range(judge.tokens - prefix)) for _ in judge.group]
        for image, rows in enumerate(self.order):
            keys = functional.normalize(judge.keys[image].unflatten(1, (judge.heads, -1)).mean(dim=1), dim=1)
            askers = [patch for place, patch in enumerate(rows) if (place + prefix) % 2 == 0]
            asked = [patch for place, patch in enumerate(rows) if (place + prefix) % 2 == 1]
            best, partner = (keys[prefix:][askers] @ keys[prefix:][asked].T).max(dim=1)
            joining = torch.sort(best, descending=True, stable=True).indices[: self.r].tolist()
            for one in joining:
                group = judge.group[image]
                group[group == askers[one]] = asked[int(partner[one])]
            self.order[image] = [patch for place, patch in enumerate(askers) if place not in joining] + asked
        self.kept[block] = [sorted(rows) for rows in self.order]


class Judge(TorchFunctionMode):
    """A model of transformers under a rule; used up by one answer, for its modules are changed.

    Args:
        net: the model. blocks, heads: how many it has. patches: of an image. rule: what leaves or merges.
    """

    def __init__(self, net: nn.Module, blocks: int, heads: int, patches: int, rule: TopK | ToMe) -> None:
        super().__init__()
        self.heads, self.patches, self.rule, self.tokens, self.done = heads, patches, rule, 0, False
        layers = [
            part for part in net.modules()
            if isinstance(part, nn.ModuleList) and len(part) == blocks and sum("norm" in name for name, _ in part[0].named_children()) == 2
        ]  # fmt: skip
        assert len(layers) == 1, f"{len(layers)} lists of {blocks} blocks"
        for number, layer in enumerate(layers[0]):
            layer.forward = self._block(number, layer.forward, number + 1 == blocks)
            norms = [part for name, part in layer.named_children() if "norm" in name]
            norms[1].register_forward_pre_hook(lambda _, args, number=number: (self._between(number, args[0]), *args[1:]))
            for name, part in layer.named_modules():
                if name.split(".")[-1] in ("k_proj", "key", "qkv"):
                    part.register_forward_hook(self._see_keys)

    def _block(self, number: int, forward: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def changed(x: Tensor, *args: Any, **more: Any) -> Any:
            if not number:
                self._begin(x)
            self.before = x
            found = forward(x, *args, **more)
            rows = found[0] if isinstance(found, tuple) else found
            rows = rows + self.moved
            # A place whose patch has left keeps the row with which it entered that block: `output.fill: last`.
            left = self.here & ~self.alive
            self.filled = torch.where(left[:, :, None], self.before, self.filled)
            rows = torch.where(self.alive[:, :, None], rows, self.filled)
            self.here, self.done = self.alive.clone(), last
            return (rows, *found[1:]) if isinstance(found, tuple) else rows

        return changed

    def _begin(self, x: Tensor) -> None:
        self.tokens, self.prefix = x.shape[1], x.shape[1] - self.patches
        self.alive = torch.ones(x.shape[:2], dtype=torch.bool)
        self.here, self.filled = self.alive.clone(), x
        self.group = torch.arange(self.patches)[None].repeat(len(x), 1)  # of every patch the one that stands for it

    def _see_keys(self, module: Any, args: Any, output: Tensor) -> None:
        self.keys = output.chunk(3, dim=-1)[1] if output.shape[-1] == 3 * args[0].shape[-1] else output

    def _between(self, number: int, x: Tensor) -> Tensor:
        """Between attention and MLP: x [B,N,C], the residual sum; what a merge moves is added to the sum again behind the block."""
        self.rule.decide(number, self)
        mean = self._means() @ x
        self.moved = mean - x
        return mean

    def _means(self) -> Tensor:
        """[B,N,N]: takes every token's row to the mean over its group."""
        same = torch.eye(self.tokens).repeat(len(self.group), 1, 1)
        alike = (self.group[:, :, None] == self.group[:, None, :]).float()
        same[:, self.prefix :, self.prefix :] = alike / alike.sum(dim=2, keepdim=True)
        return same

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Of logits [B,H,N,N]; a group's rows and columns take their mean: its rotated queries and keys, its position biases."""
        means = self._means()[:, None]
        logits = means @ logits @ means.transpose(2, 3)
        self.probabilities = functional.softmax(logits.masked_fill(~self.alive[:, None, None], -torch.inf), dim=-1)
        return self.probabilities

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Attention, pools and means over tokens; everything else as it is."""
        kwargs = dict(kwargs or {})
        if (
            self.tokens
            and func in (functional.softmax, torch.softmax, Tensor.softmax)
            and args[0].shape[-2:] == (self.tokens,) * 2
        ):
            return self._probabilities(args[0])
        if (
            self.tokens
            and func is functional.scaled_dot_product_attention
            and args[0].shape[2] == args[1].shape[2] == self.tokens
        ):
            query, key, value = args
            logits = query @ key.transpose(2, 3) * kwargs.get("scale", query.shape[-1] ** -0.5)
            assert kwargs.get("attn_mask") is None
            return self._probabilities(logits) @ value
        if not self.done:
            return func(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return func(*args, **(kwargs | {"key_padding_mask": torch.where(self.alive, 0.0, -torch.inf)}))
        if func is functional.scaled_dot_product_attention and args[1].shape[2] == self.tokens:
            return func(*args, **(kwargs | {"attn_mask": self.alive[:, None, None]}))
        along = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if (
            func in (torch.mean, Tensor.mean)
            and along == 1
            and args[0].ndim == 3
            and args[0].shape[1] in (self.tokens, self.patches)
        ):
            share = self.alive[:, -args[0].shape[1] :, None].float()
            return (args[0] * share).sum(dim=1) / share.sum(dim=1)
        return func(*args, **kwargs)

    def answer(self, forward: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """What `forward`, which calls the model, answers for images [B,3,H,W]."""
        with torch.no_grad(), self:
            return forward(image)
