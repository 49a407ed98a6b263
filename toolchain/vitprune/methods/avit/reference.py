"""Methods in which every token has its own depth: it halts once its cumulated halting score passes a limit (A-ViT).

Halted tokens are hidden as keys from the next block on and physically removed at the compaction sites; both give the same
result. All tokens obey the rule, prefix tokens included, but prefix rows stay in place: their halting-weighted sums over the
blocks are what the head reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.errors import RecipeError
from vitprune.methods.avit import rule as avit
from vitprune.methods.avit.keys import Params
from vitprune.methods.base import SamplingOptions, Site, keys_of
from vitprune.vit.blocks import run_block
from vitprune.vit.reference_method import ReferenceMethod
from vitprune.vit.tokens import TokenState, cap, take_rows


class AvitReference(ReferenceMethod):
    """Halting after every block, compaction before the blocks of the sites.

    After a forward, for all tokens of the dense model (prefix first), by original number:
        depth: int64 [B,N], in how many blocks a token took part (the picture users look at; with `cls_exit` the tokens of an
            image stop together with its CLS token).
        ponder: float32 [B,N], depth plus the remainder at the halt; 0 added where a weight was lost or a token cut away.
        halting: float32 [L,B,N], raw scores of active tokens, NaN elsewhere. active: bool [L,B,N].
    """

    depth: Tensor
    ponder: Tensor
    halting: Tensor
    active: Tensor

    def prepare(self, model: Any) -> None:
        """Refuse heads that read anything but prefix tokens (VP143): patches have no halting-weighted sum."""
        self._last = len(model.blocks) - 1
        if model.global_pool != "token":
            raise RecipeError(
                143,
                f"A-ViT cannot be combined with '{model.global_pool}' pooling",
                cause="it classifies from the halting-weighted sum of the CLS token",
                next_step="create the model with global_pool='token', or choose another method: vitprune methods",
            )

    def begin(self, x: Tensor, state: TokenState) -> Tensor:
        """Nothing cumulated yet; see `ReferenceMethod.begin`."""
        batch, tokens, _ = x.shape
        zero = torch.zeros(batch, tokens, device=x.device)
        state.extra = {
            "cumulated": zero,
            "remainder": zero + 1,
            "active": zero == 0,
            "output": torch.zeros_like(x[:, : state.prefix]),
            "margin": torch.full((batch, state.patches), float("inf"), dtype=torch.float64, device=x.device),
        }
        self.depth, self.ponder = torch.zeros_like(zero, dtype=torch.int64), zero
        self._trace: list[tuple[Tensor, Tensor]] = []
        return x

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        if index in self.sites:
            x = self._compact(self.sites[index], x, state)
        x = run_block(block, x, self._key_bias(x, state), state)
        self._halt(x, state)
        return x

    def finish(self, x: Tensor, state: TokenState) -> Tensor:
        """The last block ends every token that is still active: h := 1, so its weight is the remainder."""
        extra = state.extra
        self.halting = torch.stack([halting for halting, _ in self._trace])
        self.active = torch.stack([active for _, active in self._trace])
        return torch.cat([extra["output"], x[:, state.prefix :]], dim=1)

    def _key_bias(self, x: Tensor, state: TokenState) -> Tensor | None:
        """Hides halted tokens and pads as keys; an image without an active token shows its own CLS, so no row is empty."""
        hidden = ~state.extra["active"]
        if not bool(hidden.any()):
            return None
        hidden[:, 0] &= ~hidden.all(dim=1)
        return torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, float("-inf"))[:, None, None, :]

    def _halt(self, x: Tensor, state: TokenState) -> None:
        params = keys_of(self.params, Params)
        extra, prefix = state.extra, state.prefix
        before = extra["active"]
        raw = avit.halting_score(x, params.channel, params.gate_scale, params.gate_center)
        h = torch.ones_like(raw) if len(self._trace) == self._last else raw
        remainder = extra["remainder"]
        extra["cumulated"], extra["remainder"], extra["active"], weight = avit.accumulate(
            h, extra["cumulated"], remainder, before, params.eps
        )
        ended = before & (avit.score(extra["cumulated"], params.eps) < 0)
        extra["output"] = extra["output"] + weight[:, :prefix, None].to(x.dtype) * x[:, :prefix]
        self._note(raw, before, torch.where(ended, remainder, torch.zeros_like(remainder)), state)
        left = avit.score(extra["cumulated"], params.eps).abs().double().masked_fill(~before, float("inf"))
        closest = state.by_patch(left[:, prefix:])
        if params.cls_exit:
            # Nothing that happens after the last prefix token has halted can reach the logits.
            exited = ~extra["active"][:, :prefix].any(dim=1, keepdim=True)
            extra["active"] = extra["active"] & ~exited
            closest = torch.minimum(closest, left[:, :prefix].amin(dim=1, keepdim=True))
        extra["margin"] = torch.minimum(extra["margin"], closest)

    def _note(self, raw: Tensor, before: Tensor, ended: Tensor, state: TokenState) -> None:
        """Book depth, ponder value and raw score under the original token numbers."""
        prefix = state.prefix
        front = torch.arange(prefix, device=raw.device).expand(len(raw), -1)
        number = torch.cat([front, state.patch + prefix], dim=1)
        spare = state.patches + prefix  # pads and halted tokens write to a column that is cut off
        number = torch.where(before, number, torch.full_like(number, spare))

        def spread(values: Tensor, fill: float) -> Tensor:
            wide = torch.full((len(raw), spare + 1), fill, dtype=values.dtype, device=raw.device)
            return wide.scatter_(1, number, values)[:, :spare]

        took_part = spread(before.to(torch.int64), 0)
        self.depth = self.depth + took_part
        self.ponder = self.ponder + took_part + spread(ended, 0.0)
        self._trace.append((spread(raw, float("nan")), took_part == 1))

    def _compact(self, site: Site[SamplingOptions], x: Tensor, state: TokenState) -> Tensor:
        extra, prefix = state.extra, state.prefix
        left = avit.score(extra["cumulated"], keys_of(self.params, Params).eps)[:, prefix:]
        chosen, overflow = cap(extra["active"][:, prefix:], left, site.limit)
        rows = state.keep(chosen, site.limit if self.padded else None)
        state.record(extra["margin"], overflow)
        for key in ("cumulated", "remainder", "active"):
            extra[key] = extra[key].gather(1, rows)
        extra["active"] = torch.cat([extra["active"][:, :prefix], state.valid], dim=1)
        extra["margin"] = torch.full_like(extra["margin"], float("inf"))
        return take_rows(x, rows)
