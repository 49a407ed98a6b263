"""DVT: the three members of a cascade, trained together from one dense model (methods.md §4.7).

The published training starts from random weights. A dense model is given here anyway: every member takes its blocks, with the patch
embedding and positions resampled to the member's grid; what reuse adds starts small, the last relation convolution at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitprune.methods.base import keys_of
from vitprune.methods.dvt import members
from vitprune.methods.dvt.keys import Params, Train
from vitprune.methods.dvt.reference import MEMBERS, Cascade, EarlyExit, Member
from vitprune.recipe import Recipe
from vitprune.training import losses
from vitprune.training.behaviour import Behaviour, Teacher
from vitprune.vit import loading
from vitprune.vit.loading import LoadedModel


@torch.no_grad()
def from_dense(cascade: Cascade, dense: Any) -> None:
    """Fill every member of a cascade with the weights of a dense model, as far as there are any."""
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    from vitprune.vit.t2t import to_published

    source = dense.state_dict()
    for member in cascade.members:
        assert isinstance(member, Member)
        state = member.state_dict()
        if member.kind == "t2t":  # positions are fixed, and windows of another size start anew
            given = {name: value for name, value in to_published(source).items() if name != "pos_embed"}
            given = {
                name: value for name, value in given.items() if "tokens_to_token" not in name or state[name].shape == value.shape
            }
        else:
            grid, patch = member.grid, state["patch_embed.proj.weight"].shape[-1]
            given = dict(source)
            given["patch_embed.proj.weight"] = resample_patch_embed(source["patch_embed.proj.weight"], [patch, patch])
            given["pos_embed"] = resample_abs_pos_embed(source["pos_embed"], [grid, grid], num_prefix_tokens=1)
        for name, value in given.items():
            if state[name].shape == value.shape:
                state[name].copy_(value)
            elif name.endswith("mlp.fc1.weight"):  # the columns of reused features start at zero
                state[name].zero_()
                state[name][:, : value.shape[1]] = value
            else:  # norm2: scale 1 and shift 0 for reused features
                state[name].fill_(float(name.endswith("weight")))
                state[name][: value.shape[0]] = value
        if member.old:
            last: Any = member.relation_reuse_conv[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


class DvtTraining(Behaviour):
    """All exits at once."""

    @classmethod
    def load(cls, recipe: Recipe, name: str | None, *, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
        """A cascade from a dense model's weights, or from a cascade's."""
        section = recipe.model if name is None else recipe.model.model_copy(update={"name": name})
        file = weights or section.weights
        if file and any(key.startswith(MEMBERS[0]) for key in loading.read_weights(loading.weights_path(file))):
            whole = recipe.model_copy(update={"model": section})
            return members.load(None, whole, pretrained=False, seed=seed, weights=file)
        dense = loading.load(section, pretrained=pretrained, seed=seed, weights=weights)
        params = keys_of(recipe.prune, Params)
        shape = members.backbone_of(dense.module)
        members.check_grids(params, shape, dense.module.patch_embed.grid_size[0])
        cascade = members.random_cascade(shape, params, seed)
        from_dense(cascade, dense.module)
        return LoadedModel(cascade, dense.name, dense.preprocessing, dense.source | {"kind": "cascade"})

    @property
    def wants_teacher(self) -> bool:
        """Never: the published training has none."""
        return False

    def forward(self, images: Tensor, targets: Tensor, teacher: Teacher | None = None) -> dict[str, Tensor]:
        """Weighted cross-entropies of the exits."""
        keys = keys_of(self.keys, Train)
        exits = self.model(images)
        return {
            f"ce_exit{number}": weight * losses.cross_entropy(logits, targets, keys.smoothing)
            for number, (logits, weight) in enumerate(zip(exits, keys.exit_weights, strict=True), start=1)
        }

    def pruned(self) -> nn.Module:
        """With the recipe's exit thresholds."""
        return EarlyExit(self.model, keys_of(self.recipe.prune, Params)).eval()
