"""ONNX Runtime: runs bundles anywhere; `build` writes the graph specialised for its CPU kernels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitprune.backends import Result, result
from vitprune.backends._engines import PLUGIN, find, given
from vitprune.backends._inputs import images
from vitprune.backends._native import for_onnxruntime, library_of
from vitprune.errors import BuildError, LoadError, first_line
from vitprune.ops.token_sample import DOMAIN, NAME
from vitprune.support import trust
from vitprune.support.answers import heads_and_lists
from vitprune.support.hashing import sha256_of
from vitprune.support.onnx_file import read_model

if TYPE_CHECKING:
    import onnx

    from vitprune.bundle import Bundle


def missing() -> str:
    """Why the backend cannot be used here, or ""."""
    import importlib.util

    return "" if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"


def version() -> str:
    """Version of ONNX Runtime."""
    import onnxruntime

    return str(onnxruntime.__version__)


def make_session(
    path: str | Path | bytes | onnx.ModelProto, threads: int = 0, spin: bool = True, providers: Sequence[str] = ("CPUExecutionProvider",),
    library: Path | None = None,
) -> Any:  # fmt: skip
    """An InferenceSession, quiet.

    Args:
        path: model file, serialised model or model; weights that a model has in files are mapped, and used where they lie.
        threads: intra-op threads, 0 = ONNX Runtime's choice.
        spin: let idle threads spin; off where several sessions are timed side by side, and where one runs a few times only: a
            rewrite's references are dozens of sessions, whose idle threads took a third of its CPU time.
        providers: execution providers, best first.
        library: native library with operators of the model; its code runs when it is loaded.

    Raises:
        LoadError: VP612 when ONNX Runtime refuses the model, VP634 when it refuses the library.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not isinstance(path, str | Path | bytes):
        path, folder = _in_memory(path)
        if folder:  # kernels and fusions would keep weights once more in layouts of their own
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Products of quantised numbers are summed in float32, as the graph is written: integer kernels of CPUs without VNNI saturate
    # intermediate sums at 16 bits (ONNX Runtime's own warning on U8S8), and there are none for FP8.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library is not None:
        try:
            options.register_custom_ops_library(str(library.resolve()))
        except Exception as error:
            raise LoadError(
                634,
                f"the operators in '{library.name}' cannot be loaded",
                cause=first_line(error),
                next_step="build it anew: vitprune plugins build, then build-engine --force; or --plugin none to do without",
            ) from error
    try:
        return ort.InferenceSession(str(path) if isinstance(path, Path) else path, options, providers=list(providers))
    except Exception as error:
        raise LoadError(
            612,
            "ONNX Runtime refuses the model",
            cause=first_line(error),
            next_step="vitprune inspect the bundle, or export it again",
        ) from error


def _in_memory(model: onnx.ModelProto) -> tuple[bytes, str]:
    """A model as bytes, and the folder below which the files with its weights are, "" without any.

    ONNX Runtime maps such files itself. Handed over as arrays the weights would be copied.
    """
    from vitprune.support import onnx_weights

    if not onnx_weights.any_elsewhere(model):
        return model.SerializeToString(), ""
    bare, folder = onnx_weights.below_one_folder(model)
    onnx_weights.let_go()  # what the surgery looked at would be in memory twice
    return bare.SerializeToString(), str(folder)


def rounded(path: Path) -> bytes | Path:
    """A model in a half type as ONNX Runtime's CPU kernels run it (`graph.lowering.rounding`); another one's path as it is."""
    from vitprune.graph.lowering.rounding import emulated

    stored = read_model(path)
    model = emulated(stored)
    return path if model is stored else model.SerializeToString()


def open_model(path: Path) -> Any:
    """One model file as a function from named input arrays to named output arrays; one in a half type is run with roundings."""
    session = make_session(rounded(path))
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, run(session, names, feeds), strict=True))


def as_read(session: Any, images: Any) -> Any:
    """Images float32 [B,C,H,W] in the type that a session's first input has: float16 where the model takes that."""
    return images.astype(np.float16) if session.get_inputs()[0].type == "tensor(float16)" else images


def run(session: Any, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
    """Outputs by name of a session.

    Raises:
        LoadError: VP617 the model does not take these inputs, as a manifest that was changed may name others than the model's.
    """
    try:
        outputs: list[Any] = session.run(list(names), feeds)
        return outputs
    except MemoryError:
        raise
    except Exception as error:
        raise LoadError(
            617,
            f"the model cannot be run on {', '.join(f'{name} {list(value.shape)}' for name, value in feeds.items())}",
            cause=first_line(error),
            next_step="vitprune inspect shows its inputs; a bundle that says otherwise is damaged: export it again",
        ) from error


class Session:
    """model.onnx of a bundle, or an engine built from it.

    Args:
        bundle: an opened bundle. engine: an engine file. target: whose engine of the bundle; without either, model.onnx itself.
        threads, spin: as for `make_session`.

    Raises:
        LoadError: VP612 ONNX Runtime refuses the file; VP634, VP646 its native library is not there or not ours; with a target what
            `_engines.find` raises.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    backend = "onnxruntime"

    def __init__(
        self, bundle: Bundle, engine: Path | None = None, target: str | None = None, threads: int = 0, spin: bool = True
    ) -> None:
        built = given(engine) if engine is not None else find(bundle, self.backend, target) if target is not None else None
        library = None if built is None else library_of(built)
        if built is not None and engine is None:
            engine, self.facts = built.path, {"target": target, "engine_sha256": built.document.get("engine_sha256")}
        self._shape = tuple(bundle.manifest.preprocessing["input_size"])
        self._io = bundle.manifest.io
        self._batch, self._features = bundle.recipe.graph.static_batch, bundle.recipe.output.features
        model = bundle.model_path if engine is None else engine
        half = bundle.recipe.precision.mode != "fp32" and engine is None and len(self.providers) == 1
        source = rounded(model) if half else model
        self._session = make_session(source, threads, spin, providers=self.providers, library=library)

    def run(self, x: Any) -> Result:
        """Run images float32 [B,C,H,W]; a graph with a fixed batch is fed in pieces."""
        array = images(x, self._shape)
        size = self._batch or len(array)
        parts = [self._piece(array[start : start + size], size) for start in range(0, len(array), size)]
        heads, lists = answer_names(self._session)
        answers = [np.concatenate([part[number] for part in parts]) for number in range(len(heads))]
        kept = [_stack([part[number] for part in parts]) for number in range(len(heads), len(heads) + len(lists))]
        return result(answers, kept, heads, self._features)

    def _piece(self, array: Any, size: int) -> list[Any]:
        short = size - len(array)
        fed = np.concatenate([array, np.repeat(array[-1:], short, axis=0)]) if short else array
        heads, lists = answer_names(self._session)
        found = run(self._session, [*heads, *lists], {self._io["inputs"][0]["name"]: as_read(self._session, fed)})
        return [(value.astype(np.float32) if value.dtype == np.float16 else value)[: len(array)] for value in found]


def answer_names(session: Any) -> tuple[list[str], list[str]]:
    """Outputs that make a Result: logits or features, and kept lists; not what a method traces besides."""
    return heads_and_lists(output.name for output in session.get_outputs())


def result_names(session: Any) -> list[str]:
    """All of `answer_names`, in order."""
    heads, lists = answer_names(session)
    return [*heads, *lists]


def _stack(parts: list[Any]) -> Any:
    """Concatenate [B,K] lists of different K, padding with -1."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1) for part in parts])


def build(request: dict[str, Any], report: Any) -> dict[str, Any]:
    """Write the specialised graph; see `building` for the request. Returns facts for engine.json.

    Operators of the native library take the place of the graph's own functions where it was built, or `plugin` names it.

    Raises:
        BuildError: VP522 the library asked for is not there or has no operators for ONNX Runtime; VP535 nothing can be
            packed, VP536 packed rows need a library.
    """
    from vitprune.graph.lowering.onnxruntime import specialise
    from vitprune.graph.lowering.rounding import emulated
    from vitprune.support import onnx_weights

    stored = read_model(Path(request["model"]))
    model = emulated(stored)
    library, why_not = for_onnxruntime(request.get("plugin", "none"))
    packed = request.get("batching") == "packed"
    if packed and library is None:
        raise BuildError(
            536,
            "packed execution needs the native library",
            cause=why_not,
            next_step="vitprune plugins build --ort-include DIR, with the folder that holds onnxruntime_c_api.h",
        )
    report("specialising attention, GELU and linear maps for ONNX Runtime")
    special, facts = specialise(model, keep_outputs=True, native=library is not None, packed=packed)
    if packed and not facts["packed"]["attention"]:
        raise BuildError(
            535,
            "packed execution gains nothing for this bundle",
            cause="none of its attentions stands in a form that can be packed",
            next_step="leave --batching out",
        )
    output = Path(request["output"])
    onnx_weights.save(special, output)
    report("loading the result once")
    how = {} if model is stored else {"precision_emulated": "float32 arithmetic, every value rounded where the graph says"}
    facts = {"runtime": f"onnxruntime {version()}", **facts, **how}
    if library is None or not facts["native"]:
        make_session(output)
        return {**facts, "plugin": None, "plugin_reason": why_not}
    beside = output.parent / PLUGIN
    if not (beside.exists() and beside.samefile(library)):
        shutil.copy2(library, beside)
    trust.remember(beside)
    make_session(output, library=beside)
    plugin = {"file": beside.name, "sha256": sha256_of(beside), "name": NAME, "version": "1", "namespace": DOMAIN}
    return {**facts, "plugin": plugin}
