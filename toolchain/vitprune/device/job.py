"""What a package is to do, as its manifest says it: a stand-in for a bundle that needs neither pydantic nor YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vitprune.support.answers import shapes_of
from vitprune.support.versions import Version

# In a package: the model with one plugin node for every site (`graph.lowering.plugin_sites`), where that was asked for.
SITES_MODEL = "sites/model.onnx"


@dataclass(frozen=True)
class Job:
    """A packaged bundle.

    path: folder with model.onnx and samples.npz. facts: the "job" of package.json. The remaining attributes are those of a
    `Bundle` that backends look at.
    """

    path: Path
    facts: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """model.onnx."""
        return self.path / "model.onnx"

    @property
    def engine_model(self) -> Path:
        """What the engine is built from: model.onnx, or the one whose sites are plugin nodes."""
        return self.path.parent / SITES_MODEL if self.facts.get("sites") == "plugin" else self.model_path

    @property
    def target(self) -> dict[str, Any]:
        """The target's fields."""
        target: dict[str, Any] = self.facts["target"]
        return target

    def differs(self, runtime: str) -> str:
        """What of the device is not as it was stated when the package was made, or "": the static checks were for another TensorRT."""
        stated, here = Version.find(self.facts.get("stated", {}).get("tensorrt", "")), Version.find(runtime)
        if stated is None or here is None or here.starts_with_minor_of(stated):
            return ""
        return f"the package was checked for TensorRT {stated}, this device has {here}; the engine is for {here}"

    @property
    def batch(self) -> tuple[int, int, int]:
        """(min, opt, max)."""
        low, opt, high = self.facts["batch"]
        return low, opt, high

    @property
    def blocks(self) -> list[int]:
        """Blocks of the prune sites."""
        return [int(block) for block in self.facts["blocks"]]

    @property
    def gates(self) -> Any:
        """The recipe's gates."""
        return SimpleNamespace(**self.facts["gates"])

    @property
    def manifest(self) -> Any:
        """The part of a bundle's manifest that backends read."""
        return SimpleNamespace(
            name=self.facts["bundle"], io=self.facts["io"], preprocessing={"input_size": self.facts["input_size"]},
            sites=[{"block": block} for block in self.blocks],
        )  # fmt: skip

    @property
    def recipe(self) -> Any:
        """The part of a recipe that backends read."""
        low, opt, high = self.batch
        graph = SimpleNamespace(static_batch=self.facts["static_batch"], profile=(low, opt, high))
        precision, output = (
            SimpleNamespace(mode=self.facts["precision"]),
            SimpleNamespace(features=bool(self.facts.get("features"))),
        )
        return SimpleNamespace(graph=graph, precision=precision, output=output)

    @property
    def heads(self) -> dict[str, tuple[int, ...]]:
        """Of features, shapes of the outputs without the batch, by name; {} for logits."""
        return shapes_of(self.facts["io"]["outputs"]) if self.facts.get("features") else {}

    def samples(self) -> dict[str, Any]:
        """Arrays of samples.npz."""
        import numpy as np

        with np.load(self.path / "samples.npz", allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
