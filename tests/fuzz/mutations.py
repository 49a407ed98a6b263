"""Mutations, by the kind of file they change; each gives the command to run and whether it may succeed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STRINGS = [
    "", " ", "null", "~", "true", "0", "-1", "1e400", "nan", ".inf", "9" * 400, "2024-13-45", "1:2:3", "/etc/passwd", "../../outside/x", "a" * 300,
    "\x1b[31mred\x1b[0m", "[/bold]", "[red]", "\u202egnp", "{}", "[]", "!!python/object/apply:os.system [touch CANARY]", "!!binary x", "\u00b2",
    "*x", "&x [*x]", "%s%n", "'", '"', "\ud83d\ude00", "CON", "model.onnx", "shipped:../../etc/passwd", "-", "--help",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e-300, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64, -(2**63), [], {}, [[]], [None],
    {"": ""}, [1] * 50, list(range(-3, 3)), "x", "0.5", {"a": {"b": {"c": 1}}},
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line, what was done, and whether exit 0 would be wrong."""

    kind: str
    what: str
    arguments: list[str]
    corrupt: bool = False


Mutation = Callable[[random.Random, Path], Case]


class Canary:
    """A pickle that runs code."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


def canary(folder: Path) -> Path:
    """The file whose existence shows that code ran."""
    return folder.parent / "CANARY"


def text_mutation(rng: random.Random, text: str) -> str:
    """Change a text a little, or a lot."""
    if not text:  # an earlier change left nothing
        return "x"
    lines = text.splitlines()
    number = rng.randrange(len(lines))
    how = rng.randrange(10)
    if how == 0:
        del lines[number]
    elif how == 1:
        lines.insert(number, lines[rng.randrange(len(lines))])
    elif how == 2 and ":" in lines[number]:
        lines[number] = lines[number].split(":")[0] + ": " + rng.choice(STRINGS)
    elif how == 3 and ":" in lines[number]:
        lines[number] = lines[number].split(":")[0] + ": " + repr(rng.choice(VALUES))
    elif how == 4:
        lines[number] = "  " * rng.randrange(4) + lines[number].strip()
    elif how == 5:
        lines[number] += rng.choice(STRINGS)
    elif how == 6:
        return text[: rng.randrange(len(text))]
    elif how == 7:
        here = rng.randrange(len(text))
        return text[:here] + chr(rng.choice([0, 7, 27, 0x7F, 0x85, 0x2028, 0xFFFF, rng.randrange(32, 127)])) + text[here + 1 :]
    elif how == 8:
        lines[number] = (
            f"{lines[number].split(':')[0]}: {'[' * 3000}" if rng.random() < 0.2 else f"{lines[number]} # {rng.choice(STRINGS)}"
        )
    else:
        key = rng.choice(["extends", "prune", "model", "graph", "validate", "train", "version", "x" * 40, "method", "<<"])
        lines.append(f"{key}: {rng.choice(STRINGS)}")
    return "\n".join(lines) + "\n"


def byte_mutation(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or zero bytes."""
    if not data:
        return b"x"
    out, here = bytearray(data), rng.randrange(len(data))
    how = rng.randrange(6)
    if how == 0:
        out[here] ^= 1 << rng.randrange(8)
    elif how == 1:
        return bytes(out[:here])
    elif how == 2:
        out[here:here] = rng.randbytes(rng.randrange(1, 64))
    elif how == 3:
        out[here : here + 64] = bytes(min(64, len(out) - here))
    elif how == 4:
        for _ in range(30):
            out[rng.randrange(len(out))] = rng.randrange(256)
    else:
        return b""
    return bytes(out)


def value_mutation(rng: random.Random, value: object) -> object:
    """Change one place of a JSON-like value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        how = rng.random()
        if how < 0.15:
            return {name: other for name, other in value.items() if name != key}
        if how < 0.25:
            return {**value, rng.choice([*STRINGS[:20], "checkpoint_path", "pretrained_cfg_overlay"]): rng.choice(VALUES)}
        return {**value, key: value_mutation(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        here = rng.randrange(len(value))
        return [*value[:here], value_mutation(rng, value[here]), *value[here + (rng.random() < 0.9) :]]
    return rng.choice(VALUES) if rng.random() < 0.5 else rng.choice(STRINGS)


def recipe(rng: random.Random, folder: Path) -> Case:
    text = (folder / "recipe.yaml").read_text()
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        text = text_mutation(rng, text)
    (folder / "recipe.yaml").write_text(text, errors="surrogatepass")
    command = rng.choice(["calibrate", "rewrite", "rewrite", "export", "rewrite"])
    return Case("recipe", "text", _with_recipe(rng, folder, command))


def _with_recipe(rng: random.Random, folder: Path, command: str) -> list[str]:
    r = str(folder / "recipe.yaml")
    if command == "export":
        return ["export", "-r", r, "-o", "out", "--weights", str(folder / "weights.safetensors")]
    if command == "calibrate":
        return ["calibrate", r, "--no-pretrained", "--data", str(folder / "images.npz"), "-o", "new.yaml", "--mean-tokens", "6"]
    return ["rewrite", str(folder / "dense.onnx"), "-r", r, "-o", "out"]


def target(rng: random.Random, folder: Path) -> Case:
    text = (folder / "target.yaml").read_text()
    for _ in range(rng.choice([1, 1, 2])):
        text = text_mutation(rng, text)
    (folder / "target.yaml").write_text(text, errors="surrogatepass")
    command = ["check"] if rng.random() < 0.8 else ["build-engine"]
    return Case("target", "text", [*command, str(folder / "bundle"), "--target", str(folder / "target.yaml")])


def _use(rng: random.Random, folder: Path) -> list[str]:
    bundle = str(folder / "bundle")
    return rng.choice([
        ["validate", bundle, "--reference", "stored"], ["validate", bundle, "--target", "onnxruntime-cpu", "--reference", "stored"],
        ["inspect", bundle], ["check", bundle, "--target", "jetson-orin"], ["validate", bundle, "--weights", str(folder / "weights.safetensors")],
        ["calibrate", bundle, "--data", str(folder / "images.npz"), "-o", "new.yaml", "--mean-tokens", "6"],
    ])  # fmt: skip


def reseal(path: Path, document: object) -> None:
    """Write a manifest with a right seal, as somebody who means it would."""
    if isinstance(document, dict):
        body = {key: value for key, value in document.items() if key != "sha256"}
        document = {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}
    path.write_text(json.dumps(document, indent=2) + "\n")


def manifest(rng: random.Random, folder: Path) -> Case:
    path = folder / "bundle" / "manifest.json"
    if rng.random() < 0.3:
        text = path.read_text()
        changed = text_mutation(rng, text)
        path.write_text(changed, errors="surrogatepass")
        return Case("manifest", "text", _use(rng, folder), corrupt=changed != text)
    document = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        document = value_mutation(rng, document)
    reseal(path, document)
    return Case("manifest", "resealed", _use(rng, folder))


def bundle(rng: random.Random, folder: Path) -> Case:
    root = folder / "bundle"
    name = rng.choice(["model.onnx", "recipe.yaml", "samples.npz"])
    how = rng.randrange(7)
    if how == 0:
        (root / name).unlink()
        os.mkfifo(root / name)
    elif how == 1:
        (root / name).rename(folder / "moved")
        (root / name).symlink_to(folder / "moved")
    elif how == 2:
        (root / name).unlink()
    elif how == 3:
        link = rng.choice(["reports", "engines"])
        shutil.rmtree(root / link)
        (root / link).symlink_to(folder.parent / "outside")
    else:
        data = (root / name).read_bytes()
        changed = byte_mutation(rng, data)
        (root / name).write_bytes(changed)
        if how == 6:  # whoever changed it listed it anew
            document = json.loads((root / "manifest.json").read_text())
            document["files"][name] = hashlib.sha256(changed).hexdigest()
            reseal(root / "manifest.json", document)
            return Case("bundle", f"{name} resealed", _use(rng, folder))
        return Case("bundle", name, _use(rng, folder), corrupt=changed != data)
    return Case("bundle", f"{name} {how}", _use(rng, folder), corrupt=True)


def engine(rng: random.Random, folder: Path) -> Case:
    place = folder / "bundle" / "engines" / "onnxruntime-cpu"
    arguments = ["validate", str(folder / "bundle"), "--target", "onnxruntime-cpu", "--reference", "stored"]
    how = rng.randrange(6)
    if how == 0:
        (place / rng.choice(["libvitprune_plugin.so", "json.py", "onnx.py", "extra.bin"])).write_text(
            f"import os; os.system('touch {canary(folder)}')"
        )
        return Case("engine", "unlisted file", arguments, corrupt=True)
    if how == 1:
        shutil.copytree(place, place.parent / "dropped")
        return Case("engine", "dropped folder", [*arguments[:3], "dropped", *arguments[4:]], corrupt=True)
    name = "engine.json" if how < 4 else "model.onnx"
    data = (place / name).read_bytes()
    if how == 2:
        document = value_mutation(rng, json.loads(data))
        changed = json.dumps(document).encode()
        (place / name).write_bytes(changed)
        manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
        manifest["files"][f"engines/onnxruntime-cpu/{name}"] = hashlib.sha256(changed).hexdigest()
        reseal(folder / "bundle" / "manifest.json", manifest)
        return Case("engine", "engine.json resealed", rng.choice([arguments, ["inspect", str(folder / "bundle")]]))
    changed = byte_mutation(rng, data)
    (place / name).write_bytes(changed)
    return Case("engine", name, arguments, corrupt=changed != data)


def graph(rng: random.Random, folder: Path) -> Case:
    import onnx

    path = folder / "dense.onnx"
    arguments = ["rewrite", str(path), "-r", str(folder / "recipe.yaml"), "-o", "out"]
    if rng.random() < 0.4:
        path.write_bytes(byte_mutation(rng, path.read_bytes()))
        return Case("onnx", "bytes", arguments)
    model = onnx.load(str(path))
    nodes = model.graph.node
    node = nodes[rng.randrange(len(nodes))]
    how = rng.randrange(9)
    if how == 0:
        nodes.remove(node)
    elif how == 1:
        node.op_type = rng.choice(["Identity", "Relu", "Nothing", "Softmax", "MatMul", "", "Loop"])
    elif how == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(
            [name for other in nodes for name in other.output] + ["", "nowhere"]
        )
    elif how == 3:
        model.opset_import[0].version = rng.choice([0, 1, 9, 12, 16, 21, 23, 99, -1])
    elif how == 4 and model.graph.initializer:
        tensor = model.graph.initializer[rng.randrange(len(model.graph.initializer))]
        tensor.dims[:] = [rng.choice([0, 1, 2**31, -1, 7]) for _ in range(rng.randrange(4))]
    elif how == 5:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        dims[rng.randrange(len(dims))].dim_value = rng.choice([0, 1, 2, 1_000_000, 2**40, -1])
    elif how == 6 and node.attribute:
        attribute = node.attribute[rng.randrange(len(node.attribute))]
        attribute.i, attribute.f = rng.choice([0, -1, 2**62]), rng.choice([0.0, float("nan")])
        attribute.ints[:] = [rng.choice([0, -1, 2**40]) for _ in range(rng.randrange(3))]
    elif how == 7 and model.graph.initializer:
        tensor = model.graph.initializer[rng.randrange(len(model.graph.initializer))]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(["../outside/precious.txt", "/etc/passwd", "missing.bin", "dense.onnx"])
    else:
        del model.graph.output[:]
        model.ir_version = rng.choice([0, 3, 8, 14, 99])
    path.write_bytes(model.SerializeToString())
    return Case("onnx", f"structure {how}", arguments)


def weights(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(["weights.safetensors", "weights.pth"])
    path, corrupt = folder / name, False
    how = rng.randrange(5)
    if how == 0:
        path = folder / "weights.pth"
        path.write_bytes(pickle.dumps({"model": Canary(canary(folder))}))
        corrupt = True
    elif how == 1:
        import torch

        state = torch.load(folder / "weights.pth", weights_only=True)
        key = rng.choice(sorted(state))
        state[key] = rng.choice(
            [torch.zeros(0), torch.zeros(3, dtype=torch.complex64), state[key].double(), "text", None, state[key][:1]]
        )
        torch.save(state, folder / "weights.pth")
        path = folder / "weights.pth"
    elif how == 2:
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        corrupt = True
    elif how == 3:
        path = folder / "index.json"
        path.write_text(
            json.dumps(value_mutation(rng, {"weight_map": {"a": "weights.safetensors", "b": "../outside/precious.txt"}}))
        )
        corrupt = True
    else:
        path.write_bytes(byte_mutation(rng, path.read_bytes()))
    return Case(
        "weights",
        f"{path.name} {how}",
        ["export", "-r", str(folder / "recipe.yaml"), "-o", "out", "--weights", str(path)],
        corrupt,
    )


def images(rng: random.Random, folder: Path) -> Case:
    path, corrupt = folder / "images.npz", False
    bundle_path = str(folder / "bundle")
    how = rng.randrange(9)
    if how == 0:
        path.write_bytes(byte_mutation(rng, path.read_bytes()))
    elif how == 1:
        shape = rng.choice([(6, 3, 32), (0, 3, 32, 32), (6, 32, 32), (6, 3, 31, 32), (6, 32, 32, 3), (6,), (), (2, 3, 32, 32)])
        dtype = rng.choice(["uint8", "float32", "int64", "uint16", "bool", "complex64", "float16", "U3"])
        np.savez(
            path,
            images=np.zeros(shape, dtype),
            labels=np.zeros(rng.choice([0, 1, 2, 6, 7]), rng.choice(["int64", "float32", "int8"])),
        )
    elif how == 2:
        pixels = np.full((6, 3, 32, 32), rng.choice([np.nan, np.inf, 1e30]), np.float32)
        np.savez(path, images=pixels, labels=np.arange(6) % 5)
        corrupt = True
    elif how == 3:
        np.savez(path, images=np.asarray([Canary(canary(folder))], object), labels=np.zeros(1))
        corrupt = True
    elif how == 4:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            header = (
                b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (3000000000,), }".ljust(127) + b"\n"
            )
            with archive.open("images.npy", "w", force_zip64=True) as stream:
                stream.write(header)
                for _ in range(rng.choice([1, 300])):
                    stream.write(bytes(1 << 20))
        corrupt = True
    else:
        path = folder / "pictures"
        picture = path / "class0" / "0.png"
        if how == 5:
            picture.unlink()
            os.mkfifo(picture)
            corrupt = True
        elif how == 6:
            picture.write_bytes(byte_mutation(rng, picture.read_bytes()))
        elif how == 7:
            from PIL import Image

            Image.new("L", (30000, rng.choice([3000, 9000]))).save(picture)
            corrupt = True
        else:
            shutil.rmtree(path / "class1")
            (path / "class1").symlink_to(rng.choice([path, Path("/proc"), path / "nowhere"]))
    command = rng.choice([["validate", bundle_path, "--weights", str(folder / "weights.safetensors"), "--data", str(path)]] * 2 + [
        ["calibrate", bundle_path, "--weights", str(folder / "weights.safetensors"), "--data", str(path), "-o", "new.yaml", "--mean-tokens", "6"],
    ])  # fmt: skip
    return Case("images", f"{path.name} {how}", command, corrupt)


def command_line(rng: random.Random, folder: Path) -> Case:
    f = str(folder)
    base = rng.choice([
        ["export", "-r", f"{f}/recipe.yaml", "-o", "out", "--no-pretrained"], ["validate", f"{f}/bundle", "--reference", "stored"],
        ["inspect", f"{f}/bundle"], ["check", f"{f}/bundle", "--target", "desktop"], ["rewrite", f"{f}/dense.onnx", "-r", f"{f}/recipe.yaml", "-o", "out"],
        ["build-engine", f"{f}/bundle", "--target", "onnxruntime-cpu", "--force"], ["methods"], ["recipes"], ["targets"],
        ["calibrate", f"{f}/bundle", "--data", f"{f}/images.npz", "-o", "new.yaml", "--mean-tokens", "6"],
    ])  # fmt: skip
    options = [
        "-o", "-r", "--target", "--data", "--timeout", "--batch", "--workspace", "--seed", "--weights", "--set", "--backend", "--reference",
        "--samples", "--junit", "--mean-tokens", "--budget-macs", "--capacities", "--jetpack", "--module", "--tensorrt", "--sm", "--remote",
        "--force", "--json", "--inline", "--package", "--plugin", "-x", "--", "--exit-zero",
    ]  # fmt: skip
    values = [
        *STRINGS, "inf", "-1", "1e9", "0", "8:1", "1:4", "1GiB", "graph.batch=4", "prune.num_samples=0", "prune.stages=[0,1,2]", "a.b=c", "x=[",
        "prune=1", "model.args.depth=x", "model.args.embed_dim=30000", "model.args.depth=-1", "model.args.img_size=31", "model.image_size=100000",
        "prune.method=tome", "prune.method=evit", "validate.samples=999999999", f"{f}/bundle", f"{f}/images.npz", f"{f}/pictures", "/dev/zero",
        "/dev/full", "/proc/self/mem", ".", "..", "/", f"{f}/outside",
    ]  # fmt: skip
    line = list(base)
    for _ in range(rng.choice([1, 1, 2, 3])):
        how = rng.randrange(4)
        if how == 0 and len(line) > 1:
            del line[rng.randrange(1, len(line))]
        elif how == 1 and len(line) > 1:
            line[rng.randrange(1, len(line))] = rng.choice(values)
        else:
            line += [rng.choice(options), rng.choice(values)]
    return Case("command line", " ".join(line[:1]), [argument.replace("\0", "") for argument in line])


KINDS: dict[str, tuple[int, Mutation]] = {
    "recipe": (20, recipe), "target": (8, target), "manifest": (20, manifest), "bundle": (12, bundle), "engine": (8, engine),
    "onnx": (10, graph), "weights": (6, weights), "images": (10, images), "command line": (14, command_line),
}  # fmt: skip


def case(seed: int, folder: Path) -> Case:
    """The case of a seed: its mutation is applied in `folder`."""
    rng = random.Random(seed)
    names = list(KINDS)
    name = rng.choices(names, [KINDS[one][0] for one in names])[0]
    return KINDS[name][1](rng, folder)
