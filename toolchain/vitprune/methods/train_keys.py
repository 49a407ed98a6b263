"""The recipe's `train:` section. Every method may bring a subclass with its own defaults and loss weights (`Method.train`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Augment(BaseModel):
    """What happens to training images.

    kind: "timm" = timm's training transform (random resized crop, RandAugment, colour jitter, erasing); "shift" = flip and shift
    of whole batches, for images that already have the model's size; "none" = as in validation.
    flip: probability of a horizontal flip. shift: largest shift in pixels ("shift"). crop_scale: area of the random crop.
    auto_augment: timm's policy string or null. color_jitter, erasing: as in timm. mixup, cutmix: alpha, 0 = off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["timm", "shift", "none"] = "timm"
    flip: Share = 0.5
    shift: Annotated[int, Field(ge=0, le=64)] = 2
    crop_scale: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: Weight = 0.3
    erasing: Share = 0.25
    mixup: Weight = 0.8
    cutmix: Weight = 1.0


class TrainKeys(BaseModel):
    """Keys common to all methods; defaults: the fine-tuning that EViT and AS-ViT publish (methods.md §5.2, §7.2).

    epochs, batch (images per update over all processes), accumulate (in how many pieces a batch is computed), seed. lr: at `lr_batch` images per update, scaled linearly to `batch`;
    null = as it is. schedule, warmup_epochs (from warmup_lr), min_lr, cooldown_epochs, optimizer: names and meaning as in timm.
    clip_grad: largest gradient norm, null = no limit. smoothing: of labels. ema: decay of the averaged weights, which are then
    the result; null = off. precision: of the arithmetic ("no" = float32); decisions are float32 in all of them.
    distill_weight: of KL(teacher || student) on logits, the teacher being the dense model that training starts from.
    validation_images: how many to judge an epoch by; null = all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(gt=0, le=10000)] = 30
    batch: Annotated[int, Field(gt=0, le=1 << 20)] = 512
    accumulate: Annotated[int, Field(gt=0)] = 1
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    optimizer: str = "adamw"
    lr: Rate = 2e-5
    lr_batch: Annotated[int, Field(gt=0)] | None = 512
    schedule: Literal["cosine", "tanh", "step", "poly"] = "cosine"
    min_lr: Weight = 2e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: Weight = 1e-6
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    weight_decay: Weight = 1e-6
    clip_grad: Rate | None = None
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    distill_weight: Weight = 0.0
    validation_images: Annotated[int, Field(gt=0)] | None = None
    augment: Augment = Field(default_factory=Augment)

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainKeys:
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        return self

    @property
    def scaled_lr(self) -> float:
        """Learning rate for `batch` images per update."""
        return self.lr if self.lr_batch is None else self.lr * self.batch / self.lr_batch
