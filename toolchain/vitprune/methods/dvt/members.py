"""The three members of a cascade: their common shape, weights, and dense timm models to export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vitprune import methods
from vitprune.data.preprocessing import describe
from vitprune.errors import ExportError, LoadError, RecipeError
from vitprune.methods.base import keys_of
from vitprune.methods.dvt.cost import embedding
from vitprune.methods.dvt.keys import Params
from vitprune.methods.dvt.reference import MEMBERS, Backbone, Cascade
from vitprune.recipe import Recipe
from vitprune.vit import loading
from vitprune.vit.loading import SHIPPED, LoadedModel, load_weights, weights_digest, weights_path
from vitprune.vit.t2t_sizes import unfoldings


def backbone_of(model: Any) -> Backbone:
    """The shape of a plain DeiT or a T2T-ViT.

    Raises:
        ExportError: VP31x not a timm VisionTransformer; VP314 parts that members of a cascade do not have. RecipeError: VP150 the
            image is not square.
    """
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from vitprune.vit.pruned import check_supported
    from vitprune.vit.t2t import T2TViT
    from vitprune.vit.timm_blocks import taken_apart

    check_supported(model, methods.get("dvt"))
    blocks: Any = model.blocks
    if not isinstance(model, VisionTransformer) or any(taken_apart(one) is not one for one in blocks):
        raise ExportError(
            314,
            "this model cannot be a member of a DVT cascade",
            cause=f"members are plain DeiT or T2T-ViT models; this is a {type(model).__name__} with blocks of type {type(blocks[0]).__name__}",
            next_step="use a model such as deit_small_patch16_224",
        )
    block: Any = blocks[0]
    others = {
        "register or distillation tokens": model.num_prefix_tokens != 1,
        f"'{model.global_pool}' pooling": model.global_pool != "token",
        "LayerScale": not isinstance(block.ls1, nn.Identity),
        "q/k norm": not isinstance(block.attn.q_norm, nn.Identity),
        "a gate on its attention": getattr(block.attn, "gate", None) is not None,
        "a norm before the blocks": not isinstance(model.norm_pre, nn.Identity),
        "an activation other than GELU": not isinstance(block.mlp.act, nn.GELU),
        "positions that leave out the CLS token": model.no_embed_class or model.pos_embed is None,
    }
    if found := [name for name, present in others.items() if present]:
        raise ExportError(
            314,
            "this model cannot be a member of a DVT cascade",
            cause=f"members are plain DeiT or T2T-ViT models; it has {found[0]}",
            next_step="use a model such as deit_small_patch16_224",
        )
    height, width = model.patch_embed.img_size
    if height != width:
        raise RecipeError(
            150,
            f"a cascade takes square images, not {height}x{width}",
            cause="grids are given by one number per member",
            next_step="--set model.image_size=224",
        )
    return Backbone(
        channels=loading.image_channels(model) or 3, image=height, width=model.embed_dim, depth=len(model.blocks),
        heads=block.attn.num_heads, mlp_hidden=block.mlp.fc1.out_features, classes=model.num_classes,
        qkv_bias=block.attn.qkv.bias is not None, eps=block.norm1.eps, kind="t2t" if isinstance(model, T2TViT) else "deit",
    )  # fmt: skip


def load(module_or_name: Any, recipe: Recipe, *, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
    """A cascade from a timm name and weights, or an instance of `Cascade`.

    Raises:
        ExportError: VP30x the model or its weights; VP302 there are no published weights to fetch. RecipeError: VP15x grids.
    """
    section = recipe.model
    if module_or_name is not None and not isinstance(module_or_name, str):
        shape = require_cascade(module_or_name).shape
        check_grids(keys_of(recipe.prune, Params), shape)
        preprocessing = describe((shape.channels, shape.image, shape.image), section)
        return LoadedModel(module_or_name.eval(), section.name or "cascade", preprocessing, {"kind": "module"})
    if module_or_name and module_or_name != section.name:
        section = section.model_copy(update={"name": module_or_name})
    if loading.is_folder_name(section.name or ""):
        raise ExportError(
            308,
            "a cascade cannot be made from a Hugging Face folder",
            cause="its members are trained together and have weights of their own",
            next_step="name the timm model of the same sizes, and the cascade's --weights",
        )
    template = loading.load(section.model_copy(update={"weights": None}), pretrained=False, seed=seed)
    shape = backbone_of(template.module)
    check_grids(keys_of(recipe.prune, Params), shape, template.module.patch_embed.grid_size[0])
    cascade = random_cascade(shape, keys_of(recipe.prune, Params), seed)
    source = {**template.source, "kind": "cascade"}
    if file := weights or section.weights:
        path = weights_path(file)
        load_weights(cascade, path)
        source |= {"weights": "file", "file": file if file.startswith(SHIPPED) else path.name, "sha256": weights_digest(path)}
    elif pretrained:
        raise ExportError(
            302,
            f"no pretrained weights for a cascade of '{template.name}'",
            cause="DVT is trained from scratch and timm has no such weights",
            next_step="--weights FILE, or --no-pretrained --seed 0 for random ones",
        )
    return LoadedModel(cascade, template.name, template.preprocessing, source)


def again(source: dict[str, Any], recipe: Recipe, weights: str | None = None) -> Cascade:
    """The cascade that a bundle was exported from.

    Raises:
        LoadError: VP613 when its weights are not at hand or are others.
    """
    cause = "the bundle was exported from an instance; its stored samples carry the reference"
    if source["kind"] == "cascade":
        file = weights or source.get("file")
        path = weights_path(file) if file else None
        if source["weights"] != "file" or (path is not None and path.is_file() and weights_digest(path) == source["sha256"]):
            section = recipe.model.model_copy(
                update={"name": source["name"], "args": source["args"], "image_size": None, "weights": None}
            )
            made = recipe.model_copy(update={"model": section})
            use = str(path) if source["weights"] == "file" else None
            cascade: Cascade = load(None, made, pretrained=False, seed=source.get("seed", 0), weights=use).module
            return cascade
        cause = f"weights '{Path(str(file)).name}' are not here or are not those the bundle was exported from"
    raise LoadError(
        613,
        "the PyTorch model cannot be made again",
        cause=cause,
        next_step="--weights FILE with the original checkpoint, or validate with --reference stored",
    )


def check_grids(params: Params, shape: Backbone, own: int | None = None) -> None:
    """Refuse grids that the image cannot carry.

    Raises:
        RecipeError: VP151 the last grid is not the model's, VP152 finer than the pixels allow, VP157 another backbone than the recipe's.
    """
    if params.backbone != shape.kind:
        raise RecipeError(
            157,
            f"the recipe's backbone is '{params.backbone}', the model is a '{shape.kind}'",
            cause="members have the backbone of the named model",
            next_step=f"--set prune.backbone={shape.kind}",
        )
    if cause := _misfit(params.grids, shape):
        raise RecipeError(
            152,
            f"the grids {params.grids} do not fit an image of {shape.image}",
            cause=cause,
            next_step="--set 'prune.grids=[7,10,14]'",
        )
    if own is not None and params.grids[-1] != own:
        raise RecipeError(
            151,
            f"the last grid is {params.grids[-1]}, the model's is {own}",
            cause="the finest member of a cascade is the named model",
            next_step=f"--set 'prune.grids=[{max(2, own // 2)},{max(3, own * 5 // 7)},{own}]'",
        )


def _misfit(grids: list[int], shape: Backbone) -> str:
    """Why an image cannot carry the grids, or nothing."""
    if shape.kind == "deit":
        return "a patch has at least one pixel" if grids[-1] > shape.image else ""
    try:
        for grid in grids:
            unfoldings(shape.image, grid)
    except ValueError as error:
        return str(error)
    return ""


def random_cascade(shape: Backbone, params: Params, seed: int) -> Cascade:
    """Random weights for smoke tests: normal with deviation 0.02 as in ViTs, zero biases, unit norms."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    cascade = Cascade(shape, params).eval()
    with torch.no_grad():
        for module in cascade.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for member in cascade.members:
            nn.init.trunc_normal_(member.cls_token, std=0.02)  # type: ignore[arg-type]
            if shape.kind == "deit":  # positions of T2T-ViT are fixed
                nn.init.trunc_normal_(member.pos_embed, std=0.02)  # type: ignore[arg-type]
    return cascade


def weights_of(cascade: Cascade, number: int) -> dict[str, Any]:
    """Parameters of member `number` (0-based) as float32 arrays, without the member's own name."""
    prefix = f"{MEMBERS[number]}."
    state = cascade.state_dict()
    return {name.removeprefix(prefix): value.numpy() for name, value in state.items() if name.startswith(prefix)}


def dense_member(shape: Backbone, grid: int, weights: dict[str, Any]) -> Any:
    """A timm VisionTransformer with a member's weights and without its reuse, to be exported as the dense graph.

    LN2 and fc1 of a member with reuse are wider; their part for the tokens themselves is taken, and the graph pass puts the whole in.
    """
    import torch

    model = _empty_member(shape, grid)
    given = {name: torch.from_numpy(value) for name, value in weights.items()}
    if shape.kind == "t2t":
        from vitprune.vit.t2t import from_published

        given = from_published(given, model)
    state = {name: given[name] for name in model.state_dict()}
    for name, value in state.items():
        if ".norm2." in name and name.startswith("blocks."):
            state[name] = value[: shape.width]
        elif name.endswith("mlp.fc1.weight"):
            state[name] = value[:, : shape.width]
    model.load_state_dict(state)
    return model


def _empty_member(shape: Backbone, grid: int) -> Any:
    """A timm model of a member's sizes."""
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from vitprune.vit.t2t import T2TViT

    sizes: dict[str, Any] = {
        "in_chans": shape.channels, "num_classes": shape.classes, "embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads,
        "mlp_ratio": shape.mlp_hidden / shape.width, "qkv_bias": shape.qkv_bias, "norm_layer": partial(nn.LayerNorm, eps=shape.eps),
    }  # fmt: skip
    if shape.kind == "t2t":
        return T2TViT(img_size=shape.image, grid=grid, **sizes).eval()
    patch, padding = embedding(shape.image, grid)
    model = VisionTransformer(img_size=grid * patch, patch_size=patch, **sizes).eval()
    model.patch_embed.img_size = None  # with padding the image need not be a multiple of the patch
    model.patch_embed.proj.padding = (padding, padding)
    return model


def require_cascade(module: Any) -> Cascade:
    """The module, if it is a cascade.

    Raises:
        ExportError: VP314.
    """
    if not isinstance(module, Cascade):
        raise ExportError(
            314,
            f"{type(module).__name__} is not a cascade",
            cause="DVT is trained as three models that share tensors",
            next_step="give a vitprune.methods.dvt.reference.Cascade, or a timm name with --weights FILE",
        )
    return module
