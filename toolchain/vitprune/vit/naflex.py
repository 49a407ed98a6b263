"""timm's NaFlexVit for images of one size, as the VisionTransformer that it then is.

Its blocks are timm's own. The linear map of flattened patches becomes the convolution that computes the same, and the positions are
resampled once, by the model's own rule. What is not the same is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vitprune.errors import ExportError

CLOSE = 1e-4


def at_size(module: Any, side: int | None = None) -> Any:
    """The VisionTransformer that a NaFlexVit is for images of one size; any other module as it is.

    Args:
        module: a model of timm. side: height and width of the images; None = those of its pretrained_cfg.

    Returns:
        timm's VisionTransformer, in evaluation mode, with the same logits.

    Raises:
        ExportError: VP345 where the model has parts that a VisionTransformer lacks, or does not give the same logits.
    """
    if type(module).__name__ != "NaFlexVit":
        return module
    from timm.models.vision_transformer import VisionTransformer

    embeds, block = module.embeds, module.blocks[0]
    patch = (int(embeds.patch_size[0]), int(embeds.patch_size[1]))
    given = getattr(module, "pretrained_cfg", None) or {}
    height, width = (side, side) if side else tuple(given.get("input_size", (3, 384, 384))[1:])
    if height % patch[0] or width % patch[1]:
        raise _refused(f"images of {height} x {width} are no whole number of patches of {patch[0]} x {patch[1]}")
    attn: Any = getattr(block, "attn", None)
    if getattr(module, "rope", None) is not None or type(block).__name__ != "Block" or type(attn).__name__ != "Attention":
        raise _refused("its blocks are not timm's standard ones, or it has rotary positions")
    if embeds.norm_input is not None:
        raise _refused("it normalises patches before they are embedded")
    channels = int(module.in_chans)
    norm = next(type(part) for part in (module.norm, module.fc_norm, block.norm1) if type(part).__name__ != "Identity")
    made = VisionTransformer(
        img_size=(height, width), patch_size=patch, in_chans=channels, num_classes=module.num_classes, global_pool=module.global_pool,
        embed_dim=module.embed_dim, depth=len(module.blocks), num_heads=attn.num_heads, class_token=embeds.cls_token is not None,
        reg_tokens=module.num_reg_tokens, no_embed_class=True, norm_layer=norm, block_fn=_placeholders(), pool_include_prefix=module.pool_include_prefix,
    ).eval()  # fmt: skip
    made.blocks, made.norm_pre, made.norm, made.fc_norm = module.blocks, module.norm_pre, module.norm, module.fc_norm
    made.attn_pool, made.head, made.cls_token, made.reg_token = module.attn_pool, module.head, embeds.cls_token, embeds.reg_token
    made.patch_embed.norm = embeds.norm
    with torch.no_grad():
        bias = embeds.proj.bias
        made.patch_embed.proj = torch.nn.Conv2d(channels, module.embed_dim, patch, patch, bias=bias is not None)
        made.patch_embed.proj.weight.copy_(_convolution(embeds, channels, patch))
        if bias is not None:
            made.patch_embed.proj.bias.copy_(bias)
        made.pos_embed = torch.nn.Parameter(_positions(embeds, (height // patch[0], width // patch[1]), module.embed_dim))
        image = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        theirs, ours = module.eval()(image), made(image)
    difference = float((theirs - ours).abs().max())
    if not difference <= CLOSE * max(1.0, float(theirs.abs().max())):
        raise _refused(f"as a VisionTransformer its logits differ by {difference:.2g}")
    object.__setattr__(made, "pretrained_cfg", {**given, "input_size": (channels, height, width)})
    return made


def of_vision_transformer(names: Iterable[str]) -> bool:
    """Whether weights of these names are those of the VisionTransformer that `at_size` makes, not of the NaFlexVit."""
    return any(name.endswith("patch_embed.proj.weight") for name in names)


def _placeholders() -> Any:
    """A class that hands out small blocks: the model's own take their place."""
    from timm.models.vision_transformer import Block

    return lambda **given: Block(dim=8, num_heads=1)


def _convolution(embeds: Any, channels: int, patch: tuple[int, ...]) -> Tensor:
    """Weights [C,channels,h,w] of the map of flattened patches."""
    weight: Tensor = embeds.proj.weight
    if not embeds.is_linear:
        return weight
    if embeds.channels_last:
        return weight.reshape(-1, *patch, channels).permute(0, 3, 1, 2)
    return weight.reshape(-1, channels, *patch)


def _positions(embeds: Any, grid: tuple[int, int], width: int) -> Tensor:
    """Positions [1,P,C] of a grid, as the model adds them."""
    nothing = torch.zeros(1, grid[0] * grid[1], width)
    if embeds.pos_embed_type == "learned":
        embeds._apply_learned_pos_embed(nothing, grid_size=list(grid))
    elif embeds.pos_embed_type == "factorized":
        embeds._apply_factorized_pos_embed(nothing, grid_size=list(grid))
    return nothing


def _refused(cause: str) -> ExportError:
    return ExportError(
        345,
        "this NaFlexVit is not supported",
        cause=cause,
        next_step="choose a size with --set model.image_size, or export the model to ONNX at one size and use vitprune rewrite",
    )
