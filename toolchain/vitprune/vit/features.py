"""Dense features of the reference: every patch in its place again, and what of a timm model is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitprune.errors import RecipeError
from vitprune.recipe import OutputSection
from vitprune.vit.tokens import TokenState, take_rows


def depth_of(output: OutputSection, depth: int) -> list[int]:
    """Behind how many blocks features are taken, ascending.

    Raises:
        RecipeError: VP118 more than the model has.
    """
    blocks = [depth] if output.blocks is None else output.blocks
    if blocks[-1] > depth:
        raise RecipeError(
            118,
            f"there are no features behind block {blocks[-1]}",
            cause=f"the model has {depth} blocks; output.blocks counts from 1",
            next_step=f"--set 'output.blocks={[block for block in blocks if block <= depth] or [depth]}'",
        )
    return blocks


def feature_names(output: OutputSection, blocks: list[int], prefix: int) -> list[str]:
    """Names of the outputs, in order: features_<n> for all blocks, then prefix_<n>."""
    names = [f"features_{block}" for block in blocks]
    return names + ([f"prefix_{block}" for block in blocks] if output.prefix and prefix else [])


class DenseFeatures(nn.Module):
    """timm's own features of a dense VisionTransformer: forward(image [B,C,H,W]) -> tuple of outputs, named by `feature_names`.

    Blocks behind the last one that is asked for are not run.
    """

    def __init__(self, model: Any, output: OutputSection) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.taken = depth_of(output, len(model.blocks))
        self.prefix = int(model.num_prefix_tokens)
        self.names = feature_names(output, self.taken, self.prefix)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        found = self.model.forward_intermediates(
            image, indices=[block - 1 for block in self.taken], return_prefix_tokens=True, norm=self.output.norm, stop_early=True,
            output_fmt="NLC" if self.output.layout == "tokens" else "NCHW", intermediates_only=True,
        )  # fmt: skip
        if not self.prefix:
            return tuple(found)
        patches, prefix = zip(*found, strict=True)
        return (*patches, *prefix) if self.output.prefix else tuple(patches)


def dense_answers(model: Any, output: OutputSection) -> Any:
    """The dense model as a module that answers what a recipe asks for: itself for logits."""
    return DenseFeatures(model, output).eval() if output.features else model


class Places:
    """Puts the rows of a batch back into the places of their patches.

    fill: `output.fill`; with it the rows with which patches entered a block with a site are kept for those that leave there.
    """

    def __init__(self, fill: str | None) -> None:
        self.fill, self.before = fill, torch.empty(0)

    def enter(self, x: Tensor, state: TokenState) -> None:
        """Before a block with a site: x [B,N',C], the rows that enter it."""
        if self.fill is not None:
            self.before = self.whole(x, state)[:, state.prefix :]

    def whole(self, x: Tensor, state: TokenState) -> Tensor:
        """X [B,N',C] of the tokens that are left -> [B,prefix+P,C]: every patch has the row of the slot that stands for it."""
        slots = torch.arange(state.patch.shape[1], device=x.device)[None].expand_as(state.patch)
        real = state.valid & (state.patch < state.patches)
        number = torch.where(real, state.patch, torch.full_like(state.patch, state.patches))
        slot = torch.full((len(x), state.patches + 1), -1, dtype=torch.int64, device=x.device).scatter(1, number, slots)
        slot = slot[:, : state.patches]
        group = state.extra.get("group")
        if group is not None:
            slot = torch.where(group < 0, torch.full_like(group, -1), slot.gather(1, group.clamp(min=0)))
        rows = take_rows(x[:, state.prefix :], slot.clamp(min=0))
        absent = slot < 0
        if bool(absent.any()):
            assert self.fill is not None, "a place without a row: methods.require_places refuses this"
            rows = torch.where(absent[:, :, None], self.before, rows)
        return torch.cat([x[:, : state.prefix], rows], dim=1)


def joined(parts: list[Tensor]) -> Tensor:
    """Outputs [B,...] side by side, [B,values]; see `support.answers.joined`."""
    if len(parts) == 1 and parts[0].ndim == 2:
        return parts[0]
    return torch.cat([part.flatten(1) for part in parts], dim=1)
