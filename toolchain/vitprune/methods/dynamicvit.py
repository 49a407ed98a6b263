"""DynamicViT (Rao et al., NeurIPS 2021, arXiv 2106.02034); equations of methods.md §7.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import Self

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_before
from vitprune.methods.topk import Count, Rate, kept_count
from vitprune.resources import SHIPPED
from vitprune.training.keys import TrainKeys, Weight

if TYPE_CHECKING:
    from torch import Tensor

NORM_EPS = 1e-5  # the predictor's LayerNorm; the backbone has 1e-6


class Params(MethodParams):
    """Recipe keys of DynamicViT.

    stages: blocks before which tokens leave. keep_rate: share rho of the model's patches; stage i keeps int(P * rho**i). A list
    gives the share of all P patches per stage. keep: patches a stage keeps; wins over keep_rate.
    predictor: checkpoint (.pth or .safetensors) with score_predictor.<i>.*, or "random" for untrained weights (smoke tests only).
    predictor_seed: seed of the untrained weights.
    """

    paths: ClassVar[tuple[str, ...]] = ("predictor",)

    method: Literal["dynamicvit"] = "dynamicvit"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None
    predictor: str | None = None
    predictor_seed: int = Field(default=0, ge=0)

    def portable(self) -> Self:
        """The checkpoint by its file name only, or as shipped."""
        return (
            self
            if self.predictor is None or self.predictor.startswith(SHIPPED)
            else self.model_copy(update={"predictor": PurePath(self.predictor).name})
        )


class Train(TrainKeys):
    """Recipe keys of training DynamicViT (methods.md §7.1).

    ratio_weight: of the squared distance of the share of kept patches from keep_rate, mean over stages. distill_weight: of the
    teacher's logits, token_weight: of its patch tokens (mean squared error on kept patches). backbone_lr_scale: learning rate of
    the backbone relative to the predictors' (not published with the equations; ours). gumbel_temperature: of the sampled decision.
    """

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    min_lr: Weight = 1e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    weight_decay: Weight = 0.05
    distill_weight: Weight = 0.5
    ratio_weight: Weight = 2.0
    token_weight: Weight = 0.5
    backbone_lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.1
    gumbel_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def score(patches: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Log-probability of keeping, by the stage's predictor.

    Args:
        patches: rows of the patches present, [B,P,C]. weights: the predictor's tensors by the names of the published
            checkpoints (in_conv.0/1, out_conv.0/2/4), Linear weights [out,in].

    Returns:
        float32 [B,P].
    """
    import torch
    from torch.nn.functional import gelu, layer_norm, linear

    def apply(x: Tensor, name: str) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = patches.float()
    x = layer_norm(x, x.shape[-1:], weights["in_conv.0.weight"], weights["in_conv.0.bias"], NORM_EPS)
    x = gelu(apply(x, "in_conv.1"))
    half = x.shape[-1] // 2
    whole = x[..., half:].mean(dim=1, keepdim=True).expand(-1, x.shape[1], -1)
    x = torch.cat([x[..., :half], whole], dim=-1)
    x = apply(gelu(apply(gelu(apply(x, "out_conv.0")), "out_conv.2")), "out_conv.4")
    return x.log_softmax(dim=-1)[..., 0]


class DynamicVit(Method):
    """Dynamic token sparsification."""

    name: ClassVar[str] = "dynamicvit"
    summary: ClassVar[str] = "a trained predictor ranks the patches before 3 blocks; fixed k; needs its weights"
    paper: ClassVar[str] = "Rao et al., NeurIPS 2021, arXiv 2106.02034"
    kind: ClassVar[str] = "predictor"
    params: ClassVar[type[MethodParams]] = Params
    needs_cls: ClassVar[bool] = False
    training: ClassVar[str] = "required"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """One site per stage; counts follow from the model's real number of patches; see `Method.sites`.

        Raises:
            RecipeError: VP110, VP111, VP120 when counts rise or a rate leaves no patch.
        """
        self.check_stages(params, geometry)
        rates = params.keep_rate
        if not isinstance(rates, list):
            rates = [rates**power for power in range(1, len(params.stages) + 1)]
        rates = per_stage(rates, params.stages, "keep_rate")
        counts = per_stage(params.keep, params.stages, "keep")
        entering, sites = geometry.patches, []
        for stage, (block, rate, count) in enumerate(zip(params.stages, rates, counts, strict=True)):
            keep = kept_count(block, entering, rate, int(geometry.patches * rate) if count is None else count)
            if keep < 1:
                raise RecipeError(
                    120,
                    f"stage {block} would keep no patch",
                    cause=f"the keep rate {rate:.3g} of {geometry.patches} patches is less than one",
                    next_step="raise prune.keep_rate or give prune.keep",
                )
            options = {"stage": stage, "slots": entering, "keep": keep, "width": geometry.width}
            sites.append(Site(block, entering, keep, options))
            entering = keep
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Tokens leave before the block; the predictor itself is not counted; see `Method.block_tokens`."""
        return removed_before(sites, geometry, kept)


METHOD = DynamicVit()
