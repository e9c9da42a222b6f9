"""Error messages for configurations: pydantic's validation errors and JSON schemas, put into words."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from fedsvd.errors import ConfigError

_UNKNOWN_KEY = ("unexpected_keyword_argument", "unexpected_positional_argument")
# JSON schema keywords for the bounds of a number, lower bounds first.
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def config_error(schema: type[Any], arguments: ArgsKwargs, error: ValidationError) -> ConfigError:
    """Return the `ConfigError` for the first problem that pydantic found, unknown keys before all others.

    Args:
        schema: The `ConfigGroup` that was to be built.
        arguments: The arguments of its constructor.
        error: What pydantic raised.
    """
    names = [field.name for field in dataclasses.fields(schema)]
    problems = error.errors(include_url=False, include_context=False)
    problem = next((item for item in problems if item["type"] in _UNKNOWN_KEY), problems[0])
    position = problem["loc"][0]
    name = names[position] if isinstance(position, int) and position < len(names) else str(position)
    key = dotted(schema.group, name)
    if problem["type"] in _UNKNOWN_KEY:
        return unknown_key(key, problem["input"], [dotted(schema.group, known) for known in names])
    if problem["type"] == "missing":
        return missing_key(schema.group, name)
    # The problem may concern one item of a list; the message shows the whole value.
    values = {**dict(zip(names, arguments.args, strict=False)), **(arguments.kwargs or {})}
    shape = _json_schemas(schema)[name]
    return invalid_value(key, values.get(name, problem["input"]), _in_words(shape), _choices(shape))


def invalid_value(key: str, value: object, allowed: str, choices: Sequence[str] = ()) -> ConfigError:
    """Return the error for a value that is not allowed.

    Args:
        key: The dotted key.
        value: Its value.
        allowed: What is allowed, in words.
        choices: The names that are allowed, if any: the nearest one is suggested.
    """
    return ConfigError(
        f"{key} = {value!r} is invalid{did_you_mean(str(value), choices)}: expected {allowed}. Correct it, or leave "
        "the key out to keep the value of its YAML file."
    )


def missing_key(group: str, name: str) -> ConfigError:
    """Return the error for a key that has no value."""
    return ConfigError(f"{dotted(group, name)} is missing: give every key, as the YAML files in conf/ do.")


def unknown_key(key: str, value: object, known: Sequence[str]) -> ConfigError:
    """Return the error for a key that is not among the known dotted keys."""
    group = key.rpartition(".")[0]
    siblings = [_last_part(name) for name in known if name.rpartition(".")[0] == group]
    listing = f"; the keys of {group or 'the top level'} are {', '.join(siblings)}" if siblings else ""
    return ConfigError(
        f"{key} = {value!r} is invalid: unknown key{did_you_mean(key, known)}{listing}. Run `fedsvd train --cfg job` "
        "to see every key with its value."
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return " (did you mean …?)" with the closest known word, or an empty string if none is close.

    Dotted keys are compared by their last parts first: ``num_rounds`` leads to ``train.num_rounds``.
    """
    close = difflib.get_close_matches(_last_part(word), {_last_part(key) for key in known}, n=1)
    if not close:
        return ""
    best = difflib.get_close_matches(word, [key for key in known if _last_part(key) == close[0]], n=1, cutoff=0)
    return f" (did you mean {best[0]}?)"


def allowed_values(schema: type[Any]) -> dict[str, str]:
    """Describe in words what each field of a `ConfigGroup` allows.

    Raises:
        TypeError: A field whose type has no description and is not one that can be put into words.
    """
    return {name: _in_words(shape) for name, shape in _json_schemas(schema).items()}


def dotted(group: str, name: str) -> str:
    """Return ``group.name``, or the name alone at the top level."""
    return f"{group}.{name}" if group else name


def _json_schemas(schema: type[Any]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field."""
    properties: dict[str, dict[str, Any]] = TypeAdapter(schema).json_schema()["properties"]
    return properties


def _in_words(shape: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    match shape:
        case {"description": str(description)}:
            return description
        case {"anyOf": [*options]}:
            return ", or ".join(map(_in_words, options))
        case {"const": str(name)}:
            return name
        case {"enum": [*names]}:
            return f"one of {', '.join(names)}"
        case {"$ref": _}:
            return "a group of keys"
        case {"type": "null"}:
            return "null"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "integer" | "number" as kind}:
            bounds = " and ".join(f"{sign} {shape[keyword]}" for keyword, sign in _BOUNDS.items() if keyword in shape)
            return f"{'an integer' if kind == 'integer' else 'a number'} {bounds}".rstrip()
        case {"type": "array", "items": items}:
            kind = f"{'non-empty ' if shape.get('minItems') else ''}list"
            repetitions = " without repetitions" if shape.get("uniqueItems") else ""
            return f"a {kind}{repetitions}, each item {_in_words(items)}"
    raise TypeError(f"the JSON schema {dict(shape)} cannot be put into words: add a description to the field's type")


def _choices(shape: Mapping[str, Any]) -> list[str]:
    """Return the names that a JSON schema enumerates."""
    return [name for option in (shape, *shape.get("anyOf", ())) for name in option.get("enum", ())]


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]
