"""Which folder a Hugging Face model is in: a path, or `hf:owner/name` in the cache of huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from vitprune.errors import ExportError
from vitprune.support.resources import HUB_NAME

SCHEME = "hf:"
FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


def is_folder_name(name: str) -> bool:
    """Whether a model's name means a Hugging Face folder: `hf:...`, a path, or a folder of the working directory with a config.json."""
    if name.startswith("hf-hub:"):  # timm's own scheme
        return False
    return name.startswith((SCHEME, ".", "~")) or "/" in name or (bool(name) and (Path(name) / "config.json").is_file())


def folder_of(name: str, *, fetch: bool = True) -> Path:
    """The folder of a model; fetch: False looks nowhere but on this machine.

    `hf:owner/name` is looked up in the cache of huggingface_hub; what is not there is fetched, unless HF_HUB_OFFLINE forbids it.

    Raises:
        ExportError: VP307 there is no such folder, VP309 the model is not in the cache and cannot be fetched.
    """
    if name.startswith(SCHEME):
        return _cached(name.removeprefix(SCHEME), fetch)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ExportError(
            307, f"there is no folder '{name}'", cause="a name with a path in it means a folder that transformers saved",
            next_step="check the path; hf:owner/name for a model of the Hugging Face hub, a plain name for timm's",
        )  # fmt: skip
    return folder


def _cached(repository: str, fetch: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    if not HUB_NAME.fullmatch(f"{SCHEME}{repository}"):
        raise ExportError(
            309, f"'{SCHEME}{repository}' names no model", cause="a model of the hub is owner/name",
            next_step="for example hf:facebook/dinov2-small",
        )  # fmt: skip
    try:
        found = Path(snapshot_download(repository, allow_patterns=FILES, local_files_only=True))
        if (
            constants.HF_HUB_OFFLINE
            or not fetch
            or all((found / name).is_file() for name in ("config.json", "preprocessor_config.json"))
        ):
            return found
    except Exception as error:
        if constants.HF_HUB_OFFLINE or not fetch:
            forbids = "HF_HUB_OFFLINE forbids fetching it" if fetch else "models that bundles name are not fetched"
            raise _absent(repository, f"it is not in the cache, and {forbids}") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=FILES))
    except Exception as error:
        raise _absent(repository, (str(error).splitlines() or [type(error).__name__])[0]) from error


def _absent(repository: str, cause: str) -> ExportError:
    return ExportError(
        309, f"model '{repository}' cannot be had", cause=cause,
        next_step="fetch it once where there is a network, or give a folder that transformers saved",
    )  # fmt: skip
