"""Configurations of runs by earlier versions, which lack the keys that were added since."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from fedsvd.config import Config

# Keys whose value in the YAML files has changed: a run keeps the one that it recorded.
_CHANGED = (("model", "attn_implementation"), ("train", "head_init"))


def missing_defaults(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (group, key, default) for every key that a run's configuration lacks; the group is empty at the top level.

    A key's default in the schema keeps the behavior from before the key existed. The YAML files may set another one.

    Args:
        values: The content of a run's ``config.yaml``.
    """
    groups = [(name, values.get(name), schema) for name, schema in get_type_hints(Config).items()]
    for name, group, schema in [("", values, Config), *groups]:
        if isinstance(group, Mapping) and dataclasses.is_dataclass(schema):
            for field in dataclasses.fields(schema):
                if field.name not in group and field.default is not dataclasses.MISSING:
                    yield name, field.name, field.default


def add_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Add the keys that a run's configuration lacks, in place, and return it."""
    for name, key, default in list(missing_defaults(values)):
        (values[name] if name else values)[key] = default
    return values


def pinned_overrides(values: Mapping[str, Any], current: Config) -> list[str]:
    """Return the overrides that keep an earlier version's behavior where the YAML files have other values today.

    Args:
        values: The content of the run's ``config.yaml``.
        current: The run's overrides, composed by this version.
    """
    overrides = []
    recorded = [(name, key, values[name][key]) for name, key in _CHANGED if key in (values.get(name) or {})]
    for name, key, default in [*missing_defaults(values), *recorded]:
        if getattr(getattr(current, name) if name else current, key) != default:
            value = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
            overrides.append(f"{name}.{key}={value}" if name else f"{key}={value}")
    return overrides
