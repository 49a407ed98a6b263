"""Protobuf text of Triton's ModelConfig: the part that is written here, written and read back strictly.

Names, types and numbers of fields are those of Triton's model_config.proto. Reading knows the fields below and refuses all else,
repeated ones that may stand once included, so that a text that is read is one that protobuf's own reader takes.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Field -> kind: a message by its fields, or text, int, enum; [kind] where it repeats.
TENSOR: dict[str, Any] = {"name": "text", "data_type": "enum", "dims": ["int"]}
CONFIG: dict[str, Any] = {
    "name": "text", "backend": "text", "default_model_filename": "text", "max_batch_size": "int", "input": [TENSOR], "output": [TENSOR],
    "parameters": [{"key": "text", "value": {"string_value": "text"}}],
    "dynamic_batching": {"preferred_batch_size": ["int"], "max_queue_delay_microseconds": "int"},
}  # fmt: skip
TYPES = {
    "float": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "double": "TYPE_FP64", "int64": "TYPE_INT64",
    "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "bool": "TYPE_BOOL",
}  # fmt: skip
TOKEN = re.compile(r'\s*(?:("(?:[^"\\\n]|\\["\\])*")|(-?\d+)|([A-Za-z_]\w*)|([{}\[\],:]))')


def written(config: dict[str, Any], kinds: dict[str, Any] = CONFIG, indent: str = "") -> str:
    """The text of a configuration: text and ints, lists, and mappings for messages."""
    lines = []
    for key, value in config.items():
        kind = kinds[key]
        if isinstance(kind, dict):
            lines += [f"{indent}{key} {{", written(value, kind, indent + "  ").rstrip("\n"), f"{indent}}}"]
        elif isinstance(kind, list) and isinstance(kind[0], dict):
            for one in value:
                lines += [f"{indent}{key} {{", written(one, kind[0], indent + "  ").rstrip("\n"), f"{indent}}}"]
        elif isinstance(kind, list):
            lines.append(f"{indent}{key}: [ {', '.join(str(int(one)) for one in value)} ]")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value, ensure_ascii=True) if kind == 'text' else value}")
    return "\n".join(line for line in lines if line) + "\n"


def parsed(text: str) -> dict[str, Any]:
    """A configuration from its text.

    Raises:
        ValueError: it is not one, with the field and what is wrong.
    """
    tokens, at = [], 0
    while at < len(text.rstrip()):
        found = TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"'{text[at : at + 20].strip()}' is no token")
        tokens.append(found[0].strip())
        at = found.end()
    message, rest = _message(tokens, CONFIG, False)
    if rest:
        raise ValueError(f"'{rest[0]}' closes nothing")
    return message


def _message(tokens: list[str], kinds: dict[str, Any], inside: bool) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    while tokens:
        key, *tokens = tokens
        if key == "}" and inside:
            return found, tokens
        if key not in kinds:
            raise ValueError(f"'{key}' is no field here")
        kind = kinds[key]
        repeats = isinstance(kind, list)
        if key in found and not repeats:
            raise ValueError(f"'{key}' stands twice")
        value, tokens = _value(tokens, kind[0] if repeats else kind, key, repeats)
        found[key] = [*found.get(key, []), *value] if repeats else value[0]
    if inside:
        raise ValueError("a message is not closed")
    return found, tokens


def _value(tokens: list[str], kind: Any, key: str, repeats: bool) -> tuple[list[Any], list[str]]:
    colon = tokens[:1] == [":"]
    tokens = tokens[1:] if colon else tokens
    if isinstance(kind, dict):
        if tokens[:1] != ["{"]:
            raise ValueError(f"'{key}' is a message and needs {{")
        message, tokens = _message(tokens[1:], kind, True)
        return [message], tokens
    if not colon or not tokens:
        raise ValueError(f"'{key}' needs : and a value")
    if repeats and tokens[0] == "[":
        values, tokens = [], tokens[1:]
        while tokens and tokens[0] != "]":
            values.append(_scalar(tokens[0], kind, key))
            tokens = tokens[1:]
            if tokens[:1] == [","] and tokens[1:2] != ["]"]:
                tokens = tokens[1:]
            elif tokens[:1] != ["]"]:
                raise ValueError(f"the list of '{key}' is not closed")
        if not tokens:
            raise ValueError(f"the list of '{key}' is not closed")
        return values, tokens[1:]
    return [_scalar(tokens[0], kind, key)], tokens[1:]


def _scalar(token: str, kind: str, key: str) -> Any:
    form = {"text": r'".*"', "int": r"-?\d+", "enum": r"TYPE_\w+"}[kind]
    if not re.fullmatch(form, token) or (kind == "enum" and token not in TYPES.values()):
        raise ValueError(f"'{key}' cannot be {token}")
    return json.loads(token) if kind == "text" else int(token) if kind == "int" else token
