"""Which tokens are still there, for every image of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class TokenState:
    """Tokens of a batch after some prune sites.

    Attributes:
        prefix: number of prefix tokens, always present, at the front.
        patches: number of patches P of the dense model.
        valid: bool [B,P'], false on pad slots.
        patch: int64 [B,P'], original patch number of every slot (pads: any number). Tokens that a method adds (fused ones)
            are slots behind the patches with numbers from `patches` on; they are live keys and never listed in `kept`.
        kept: per site, int64 [B,K] original patch numbers, ascending, padded with -1.
        margin: per site, float64 [B,P] distance of each patch from the opposite decision; infinite where it was not asked.
        sized: margins are compared in roundings of a type, so that methods whose scores round relative to more than their own size say it.
        size: per site, float64 [B,P], what a margin is divided by then, in units of `Method.score_scale`; 1 where the method says nothing.
        overflow: per site, int64 [B], how many selected tokens a capacity cut away.
        decisions: per site, int64 [B,K] patch numbers to keep instead of what the method finds, padded with -1; None = the method decides.
        extra: whatever a kind of method carries along (sizes, halting scores, ...).
    """

    prefix: int
    patches: int
    valid: Tensor
    patch: Tensor
    kept: list[Tensor] = field(default_factory=list)
    margin: list[Tensor] = field(default_factory=list)
    sized: bool = False
    size: list[Tensor] = field(default_factory=list)
    overflow: list[Tensor] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)
    decisions: list[Tensor] | None = None

    @classmethod
    def full(cls, batch: int, prefix: int, patches: int, device: torch.device) -> TokenState:
        """All patches of every image."""
        patch = torch.arange(patches, device=device).expand(batch, patches)
        return cls(prefix, patches, torch.ones_like(patch, dtype=torch.bool), patch)

    def key_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Additive bias [B,1,1,N] that hides pad slots as keys; None when there are none."""
        if bool(self.valid.all()):
            return None
        hidden = torch.cat([torch.zeros_like(self.valid[:, :1]).expand(-1, self.prefix), ~self.valid], dim=1)
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, float("-inf"))[:, None, None, :]

    def record(self, margin: Tensor | None = None, overflow: Tensor | None = None, size: Tensor | None = None) -> None:
        """Append the present patches to `kept`, with the margins [B,P] of the patches they were chosen from, and their sizes [B,P]."""
        ordered = torch.where(self.valid & (self.patch < self.patches), self.patch, torch.full_like(self.patch, -1))
        self.kept.append(ordered)
        batch = len(self.valid)
        none = torch.full((batch, self.patches), float("inf"), dtype=torch.float64, device=self.valid.device)
        self.margin.append(none if margin is None else margin)
        self.size.append(torch.ones_like(none) if size is None else size)
        self.overflow.append(torch.zeros(batch, dtype=torch.int64) if overflow is None else overflow)

    def by_patch(self, values: Tensor, elsewhere: float = float("inf")) -> Tensor:
        """Spread per-slot values [B,P'] over original patch numbers [B,P]; `elsewhere` for patches that are gone."""
        spread = torch.full((len(values), self.patches + 1), elsewhere, dtype=torch.float64, device=values.device)
        slot = torch.where(self.valid, self.patch, torch.full_like(self.patch, self.patches)).clamp(max=self.patches)
        spread.scatter_(1, slot, values.double())
        return spread[:, : self.patches]

    def keep(self, chosen: Tensor, width: int | None = None) -> Tensor:
        """Keep the chosen slots (bool [B,P']), packed to the front in their order.

        Args:
            chosen: slots to keep; pads must be false.
            width: number of slots afterwards; None = the largest count in the batch, at least 1.

        Returns:
            int64 [B, prefix + width] token rows that remain (prefix first); pads point at some existing row.
        """
        counts = chosen.sum(1)
        width = max(1, int(counts.max())) if width is None else width
        order = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        self.patch = self.patch.gather(1, order)
        self.valid = torch.arange(width, device=chosen.device)[None] < counts[:, None]
        front = torch.arange(self.prefix, device=chosen.device).expand(len(chosen), -1)
        return torch.cat([front, order + self.prefix], dim=1)

    def follow(self, chosen: Tensor) -> Tensor:
        """The slots to keep at the next site: the chosen ones (bool [B,P']), or those that `decisions` lists; added tokens as chosen."""
        if self.decisions is None:
            return chosen
        lists = self.decisions[len(self.kept)]
        listed = (self.patch[:, :, None] == lists[:, None, :]).any(dim=2) & self.valid
        return torch.where(self.patch < self.patches, listed, chosen)

    def append(self) -> None:
        """Add one live slot that is not a patch behind the present ones."""
        one = torch.ones_like(self.valid[:, :1])
        number = torch.full_like(self.patch[:, :1], max(self.patches, int(self.patch.max()) + 1))
        self.valid = torch.cat([self.valid, one], dim=1)
        self.patch = torch.cat([self.patch, number], dim=1)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of every image: x [B,N,C], rows int64 [B,M] -> [B,M,C]."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


def cap(chosen: Tensor, score: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Apply a capacity: where more than `limit` slots are chosen keep the highest scores, ties to the lower index.

    Returns:
        bool [B,P'] and int64 [B], how many were cut away.
    """
    excess = (chosen.sum(1) - limit).clamp(min=0)
    if not bool(excess.any()):
        return chosen, excess
    ranked = score.masked_fill(~chosen, float("-inf")).argsort(dim=1, descending=True, stable=True)
    first = torch.zeros_like(chosen).scatter_(1, ranked[:, :limit], True)
    return chosen & first, excess
