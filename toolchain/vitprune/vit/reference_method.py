"""What a method does to the blocks of a ViT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitprune.methods.base import Method, MethodParams, Site
from vitprune.vit.blocks import run_block
from vitprune.vit.tokens import TokenState


class ReferenceMethod:
    """Base: every block runs on the tokens that are left. Methods override `block` (and `begin`, `finish`)."""

    def __init__(self, method: Method, params: MethodParams, sites: list[Site[Any]], padded: bool) -> None:
        self.method, self.params, self.padded = method, params, padded
        self.sites = {site.block: site for site in sites}

    def prepare(self, model: Any) -> None:
        """Called once with the dense model (`DenseViT`); methods that need more of it than its sizes look here, or refuse it."""

    def begin(self, x: Tensor, state: TokenState) -> Tensor:
        """Called once on the embedded tokens [B,N,C] before block 0."""
        return x

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """Run block `index` on x [B,N,C]; may drop rows through `state.keep`."""
        return run_block(block, x, state.key_bias(x.dtype), state)

    def finish(self, x: Tensor, state: TokenState) -> Tensor:
        """Called once on the tokens after the last block, before the final norm."""
        return x
