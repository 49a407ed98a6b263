"""Sites as plugin nodes, asked for with `--sites plugin`."""

from __future__ import annotations

from pathlib import Path

from vitprune.errors import BuildError
from vitprune.graph import wire
from vitprune.ops.sites import PLUGIN_SITES
from vitprune.ops.token_sample import DOMAIN


def not_onnx(name: str, error: ValueError) -> BuildError:
    """VP529: a file that is no protobuf message."""
    return BuildError(529, f"'{name}' is not an ONNX file", cause=str(error), next_step="export the bundle again")


def plugin_sites_in(model: bytes, name: str) -> list[str]:
    """Operators of the sites of a model that are plugin nodes, sorted; name: of its file.

    Raises:
        BuildError: VP529.
    """
    try:
        return sorted(wire.operators(model, DOMAIN) & set(PLUGIN_SITES))
    except ValueError as error:
        raise not_onnx(name, error) from error


def sites_as_plugins(path: Path) -> bytes:
    """A model whose sites are one plugin node each (`graph.lowering.plugin_sites`).

    Raises:
        BuildError: VP528 without the packages that rewrite graphs, VP537 no site can be one node. LoadError: VP604 not an ONNX file.
        ExportError: VP337 weights beyond one file.
    """
    try:
        from vitprune.graph.lowering.plugin_sites import with_plugin_sites
        from vitprune.support import onnx_weights
        from vitprune.support.onnx_file import read_model
    except ImportError as error:
        raise BuildError(
            528,
            "sites as plugin nodes need the onnx and onnx-graphsurgeon packages",
            cause=str(error),
            next_step="install them, make a package for this device on a machine that has them, or leave --sites out",
        ) from error
    stored = read_model(path)
    if onnx_weights.any_elsewhere(stored):
        size, without = onnx_weights.total(stored), "leave --sites out"
        raise onnx_weights.too_large(size, "this model", "a graph with plugin nodes is handed over as one file", without)
    model, made = with_plugin_sites(stored)
    if not made:
        raise BuildError(
            537,
            "no site of this model can be one plugin node",
            cause="sites that halt tokens stay plain nodes, and so do those inside of which something is rounded to a half type or "
            "quantised",
            next_step="leave --sites out",
        )
    return bytes(model.SerializeToString())
