"""Recipes: one YAML file says what to prune, how to export and what must hold."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.methods.base import MethodParams
from vitprune.methods.train_keys import TrainKeys
from vitprune.model_section import ModelSection as ModelSection
from vitprune.model_section import Section
from vitprune.recipe_parts.output import OutputSection as OutputSection
from vitprune.recipe_parts.precision import PrecisionSection as PrecisionSection
from vitprune.recipe_parts.reading import merge, override, read, with_files
from vitprune.recipe_parts.values import read_profile
from vitprune.support.precision import logits_tolerance, margin_tolerance
from vitprune.support.suggestions import did_you_mean


class GraphSection(Section):
    """Opset, shape mode, batch profile "min:opt:max" (one number: static batch), and which output of a dense graph holds the logits."""

    opset: int = Field(default=18, ge=17, le=20)
    shapes: Literal["dynamic", "padded"] = "dynamic"
    batch: str = "1:4:8"
    output: str | None = None

    @field_validator("batch", mode="before")
    @classmethod
    def _profile(cls, value: Any) -> str:
        read_profile(str(value))
        return str(value)

    @property
    def profile(self) -> tuple[int, int, int]:
        """(min, opt, max)."""
        return read_profile(self.batch)

    @property
    def static_batch(self) -> int | None:
        """The batch size when it is fixed, else None."""
        return int(self.batch) if ":" not in self.batch else None


class Gates(Section):
    """Limits that `validate` enforces; null switches one off.

    logits_max_abs: largest difference of a logit, reference against graph, where decisions agree.
    top1_agreement: share of images with the same top-1. top1_drop: points of accuracy lost against the dense model (needs
    labels); it holds when the 95 % interval of the drop lies below. dense_top1: accuracy in percent that the dense model must have on the same
    images: what changes dense and pruned alike, as a wrong mean, is seen here alone. flip_margin: a kept token may differ only where the reference's decision margin is below this.
    Of features, logits_max_abs is the largest difference of a value (in units of its output's root mean square where that is above 1), and
    cosine_mean, cosine_p1 are the mean and the 1st percentile of the cosines of rows, reference against graph.
    """

    logits_max_abs: float | None = Field(default=1e-4, gt=0)
    top1_agreement: float | None = Field(default=0.995, ge=0, le=1)
    top1_drop: float | None = Field(default=None, ge=0, le=100)
    dense_top1: float | None = Field(default=None, ge=0, le=100)
    flip_margin: float = Field(default=1e-5, ge=0)
    cosine_mean: float | None = Field(default=0.9999, ge=-1, le=1)
    cosine_p1: float | None = Field(default=0.999, ge=-1, le=1)

    @property
    def of_accuracy(self) -> str:
        """Those that need labels and known preprocessing, named for a sentence; "" where none is set."""
        stated = {name: getattr(self, name) for name in ("top1_drop", "dense_top1")}
        return " and ".join(f"gates.{name} to {value}" for name, value in stated.items() if value is not None)


class ValidateSection(Section):
    """How many images to run and the gates."""

    samples: int = Field(default=256, gt=0)
    gates: Gates = Field(default_factory=Gates)


class Recipe(Section):
    """A complete recipe; unknown keys are refused."""

    version: Literal[1] = 1
    model: ModelSection = Field(default_factory=ModelSection)
    prune: SerializeAsAny[MethodParams]
    graph: GraphSection = Field(default_factory=GraphSection)
    precision: PrecisionSection = Field(default_factory=PrecisionSection)
    validation: ValidateSection = Field(default_factory=ValidateSection, alias="validate")
    output: OutputSection = Field(default_factory=OutputSection)
    train: SerializeAsAny[TrainKeys] | None = None

    @model_validator(mode="after")
    def _features_fit(self) -> Recipe:
        if self.output.features:
            methods.require_places(methods.get(self.prune.method), self.output.fill)
        if self.output.features and self.validation.gates.top1_drop is not None:
            raise RecipeError(
                118,
                "features have no accuracy that could be gated",
                cause="the recipe sets validate.gates.top1_drop and output.kind=features",
                next_step="--set validate.gates.top1_drop=null; features are gated by cosine_mean and cosine_p1",
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _choose_method(cls, data: Any) -> Any:
        prune = data.get("prune") if isinstance(data, dict) else None
        if isinstance(prune, dict):
            name = prune.get("method")
            if not isinstance(name, str):
                raise RecipeError(
                    103,
                    "prune.method is missing",
                    cause=f"it is one of {', '.join(methods.names())}",
                    next_step="vitprune methods",
                )
            data = {**data, "prune": _parsed(methods.get(name).params, prune, "prune")}
            if isinstance(data.get("train"), dict):
                data["train"] = _parsed(methods.get(name).train, data["train"], "train")
        return data

    @classmethod
    def load(cls, source: str | Path | dict[str, Any], overrides: list[str] | None = None) -> Recipe:
        """Read a recipe.

        Args:
            source: a path, the name of a shipped recipe, or the parsed mapping.
            overrides: "key.path=value" strings, applied last.

        Raises:
            RecipeError: VP100 not found, VP101 not YAML, VP102 a key or value is wrong, VP103/VP104 no such method.
        """
        data = copy.deepcopy(source) if isinstance(source, dict) else with_files(read(Path(source)), Path(source))
        base = data.pop("extends", None)
        if base is not None and not isinstance(base, str):
            raise RecipeError(102, "'extends' is not a recipe", cause="it is a path or the name of a shipped recipe")
        if base is not None:
            beside = Path(source).parent / base if not isinstance(source, dict) else Path(base)
            parent = read(beside if os.path.exists(beside) else Path(base))
            if "extends" in parent:
                raise RecipeError(
                    102,
                    f"recipe '{base}' extends another one",
                    cause="extends goes one level deep",
                    next_step="extend the base recipe directly",
                )
            data = merge(parent, data)
        for text in overrides or []:
            override(data, text)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _readable(error, cls, "") from error

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain data."""
        plain = self.model_dump(mode="json", by_alias=True)
        for key in (
            "interpolation",
            "crop_pct",
            "classes",
        ):  # later than bundles and checkpoints that know a recipe by its digest
            if plain["model"][key] is None:
                del plain["model"][key]
        plain["precision"] = self.precision.brief()
        for key in ("cosine_mean", "cosine_p1"):
            if plain["validate"]["gates"][key] == Gates.model_fields[key].default:
                del plain["validate"]["gates"][key]
        if not self.output.features:
            del plain["output"]
        return plain if self.train is not None else {key: value for key, value in plain.items() if key != "train"}

    def gates(self, largest_logit: float, score_scale: float = 1.0) -> Gates:
        """The gates in force: in a half type two computations lie further apart than in FP32, by what one rounding is worth.

        Args:
            largest_logit: size of the reference's largest logit, which a rounding is relative to. score_scale: size of what the method
                compares (`Method.score_scale`).
        """
        gates, precision = self.validation.gates, self.precision
        if precision.mode == "fp32":
            return gates
        tolerance = precision.logits_tolerance or logits_tolerance(precision.mode, largest_logit)
        margin = margin_tolerance(precision.mode, score_scale) if precision.flip_margin is None else precision.flip_margin
        limit = None if gates.logits_max_abs is None else tolerance
        return gates.model_copy(update={"logits_max_abs": limit, "flip_margin": margin})

    def require_logits(self, command: str) -> None:
        """Raise RecipeError VP118 for a command that compares classes, where the recipe asks for features."""
        if self.output.features:
            raise RecipeError(
                118,
                f"{command} works on logits, not on features",
                cause="the recipe says output.kind=features",
                next_step="--set 'output={kind: logits}', and use what it finds in the recipe of the features",
            )

    @property
    def training(self) -> TrainKeys:
        """The `train:` section, or the method's defaults."""
        return self.train if self.train is not None else methods.get(self.prune.method).train()

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def digest(self) -> str:
        """sha256 of the resolved recipe."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def with_(self, path: str, value: Any) -> Recipe:
        """A copy with one key changed, checked like a file."""
        return Recipe.load(self.to_dict(), [f"{path}={json.dumps(value)}"])


def _parsed(model: type[BaseModel], data: dict[str, Any], prefix: str) -> BaseModel:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _readable(error, model, prefix) from error


def _readable(error: ValidationError, model: type[BaseModel], prefix: str) -> RecipeError:
    """Turn pydantic's first complaint into ours; unknown keys get a did-you-mean."""
    complaints = error.errors()
    # Of a union's branches the one that went deepest, then the one about the value rather than its type, knows most.
    first = max(complaints, key=lambda c: (c["type"] == "extra_forbidden", not c["type"].endswith("_type"), len(c["loc"])))
    parts = [str(part) for part in first["loc"] if not _branch_name(str(part))]
    where = ".".join(part for part in (prefix, *parts) if part)
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, first["loc"][:-1])
        return RecipeError(
            102,
            f"unknown key '{where}' in the recipe",
            cause=did_you_mean(str(first["loc"][-1]), known),
            next_step="correct or remove the key",
        )
    cause = first["msg"].removeprefix("Value error, ")
    return RecipeError(
        102,
        f"'{where}' has a wrong value: {json.dumps(first.get('input'), default=str)[:80]}",
        cause=cause,
        next_step=f"correct '{where}' in the recipe",
    )


def _branch_name(part: str) -> bool:
    """Whether a location part names a branch of a union instead of a key."""
    return "[" in part or part in ("constrained-int", "constrained-float", "int", "float", "str", "none")


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        for name, field in model.model_fields.items():
            nested = field.annotation
            if part in (name, field.alias) and isinstance(nested, type) and issubclass(nested, BaseModel):
                model = nested
    return [field.alias or name for name, field in model.model_fields.items()]
