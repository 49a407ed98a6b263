"""Bill of materials of a bundle in CycloneDX, written by its library and checked by its validator."""

from __future__ import annotations

from pathlib import Path

from vitprune.bundle import Bundle
from vitprune.bundle_parts.provenance import PROVENANCE
from vitprune.errors import ExportError, LoadError, TargetError
from vitprune.support import files, json_text


def sbom(bundle: Bundle) -> str:
    """CycloneDX 1.6, JSON: the model with its files and their hashes, and the packages that made it.

    Raises:
        TargetError: VP201 cyclonedx-python-lib is not installed. LoadError: VP656 the bundle does not say what made it.
        ExportError: VP341 the document does not pass CycloneDX's own schema.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
        from packageurl import PackageURL
    except ImportError as error:
        raise TargetError(
            201, "a bill of materials needs cyclonedx-python-lib", cause="the package is not installed",
            next_step="pip install 'vitprune[sbom]'",
        ) from error  # fmt: skip
    made_with = _packages(bundle)

    def file(name: str, digest: str) -> Component:
        return Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        )

    model = Component(
        name=bundle.manifest.name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model", version=bundle.manifest.sha256[:16],
        components=[file(name, digest) for name, digest in bundle.manifest.files.items()],
    )  # fmt: skip
    packages = [
        Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"pypi:{name}", purl=PackageURL("pypi", None, name, version))
        for name, version in made_with.items()
    ]  # fmt: skip
    document = Bom(components=packages)
    document.metadata.component = model
    document.register_dependency(model, packages)
    text: str = JsonV1Dot6(document).output_as_string(indent=2)
    if (wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ExportError(
            341,
            "the bill of materials is not valid",
            cause=str(wrong)[:200],
            next_step="report the bundle's manifest with this message",
        )
    return text + "\n"


def _packages(bundle: Bundle) -> dict[str, str]:
    if PROVENANCE not in bundle.manifest.files:
        raise LoadError(
            656, "the bundle does not say what made it", cause="an earlier version wrote it", next_step="export it again"
        )
    try:
        document = json_text.parse(files.read_text(Path(bundle.path) / PROVENANCE))
        found = {str(name): str(version) for name, version in document["packages"].items()}
        return found | {"vitprune": str(document["tool_version"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            656, "the bundle does not say what made it", cause=f"{PROVENANCE}: {error}", next_step="export it again"
        ) from error
