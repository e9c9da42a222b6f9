"""Builds the configuration's dataclasses from plain values, and says so when a key or value does not fit."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Bounds of a number; a bound is inside unless it is open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Say whether a number lies inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '≥'} {self.low}"
        return low if math.isinf(self.high) else f"{low} and {'<' if self.open_high else '≤'} {self.high}"


@dataclass(frozen=True)
class Matches:
    """A pattern that a text must match as a whole, and what it means in words."""

    pattern: str
    words: str


class Allowed(NamedTuple):
    """What one annotation allows."""

    words: str
    accepts: Callable[[Any], bool]


def allowed(hint: Any) -> Allowed:
    """Return what an annotation allows.

    Args:
        hint: ``bool``, ``int``, ``float``, ``str``, ``tuple[X, ...]``, a ``Mapping``, a dataclass, a ``Literal`` of
            texts, ``Annotated`` with a `Range` or `Matches`, or one of these ``| None``.

    Raises:
        TypeError: An annotation that has no rule.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        each_of = [allowed(item) for item in arguments if item is not types.NoneType]
        if types.NoneType in arguments:
            each_of.append(Allowed("null", lambda value: value is None))
        return Allowed(
            ", or ".join(item.words for item in each_of), lambda value: any(item.accepts(value) for item in each_of)
        )
    if origin is Annotated:
        base, rule = allowed(arguments[0]), arguments[1]
        if isinstance(rule, Matches):
            return Allowed(rule.words, lambda value: base.accepts(value) and bool(re.fullmatch(rule.pattern, value)))
        return Allowed(f"{base.words} {rule}", lambda value: base.accepts(value) and rule.holds(value))
    if origin is Literal:
        return Allowed(f"one of {', '.join(arguments)}", lambda value: _is_text(value) and value in arguments)
    if origin is tuple and arguments[0] is not str:
        each = allowed(arguments[0])
        words = f"a list, each of it {each.words}"
        return Allowed(words, lambda value: isinstance(value, tuple) and bool(value) and all(map(each.accepts, value)))
    if origin is tuple:
        return Allowed("a list of different names, such as [query,value]", _is_list_of_names)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Allowed("a name and its options", lambda value: isinstance(value, Mapping) and "name" in value)
    if hint is bool:
        return Allowed("true or false", lambda value: type(value) is bool)
    if hint is int:
        return Allowed("a whole number", lambda value: type(value) is int)
    if hint is float:
        return Allowed("a number", lambda value: type(value) in (int, float) and math.isfinite(value))
    if hint is str:
        return Allowed("a text (quote it where it looks like a number)", _is_text)
    if dataclasses.is_dataclass(hint):
        return Allowed("a group of keys", lambda value: isinstance(value, hint))  # type: ignore[arg-type]
    raise TypeError(f"no rule for the annotation {hint!r}")


def check_fields(instance: Any, prefix: str) -> None:
    """Check every field of a dataclass against its annotation.

    Args:
        instance: The dataclass.
        prefix: Name of its group, for the message; empty at the top.

    Raises:
        ConfigError: A value that is not allowed.
    """
    for name, hint in get_type_hints(type(instance), include_extras=True).items():
        rule, value = allowed(hint), getattr(instance, name)
        if not rule.accepts(value):
            key = f"{prefix}.{name}" if prefix else name
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            raise ConfigError(
                f"{key} = {value!r} is not allowed{did_you_mean(str(value), choices)}: give {rule.words}, or leave "
                "the key out to keep the value of its YAML."
            )


def build(hint: Any, value: Any, key: str = "") -> Any:
    """Turn plain values into what an annotation asks for: dataclasses, tuples, floats; `check_fields` does the rest.

    Args:
        hint: The annotation.
        value: Mappings, lists and scalars, as YAML gives them.
        key: Where the value stands; empty at the top.

    Raises:
        ConfigError: A key that is unknown or missing, or a value that is not allowed.
    """
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(item for item in get_args(hint) if item is not types.NoneType)
        return None if value is None else build(inner, value, key)
    if not (dataclasses.is_dataclass(hint) and isinstance(value, Mapping)):
        if get_origin(hint) is tuple and isinstance(value, list):
            return tuple(value)
        is_float = hint is float or (get_origin(hint) is Annotated and get_args(hint)[0] is float)
        return float(value) if is_float and type(value) is int else value
    hints = get_type_hints(hint, include_extras=True)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise unknown_key(f"{prefix}{name}", value[name], [f"{prefix}{known}" for known in hints])
    for name in hints:
        if name not in value:
            raise ConfigError(f"{prefix}{name} is missing: give every key, as the YAML files in conf/ do.")
    return hint(**{name: build(hints[name], value[name], f"{prefix}{name}") for name in value})  # type: ignore[operator]


def unknown_key(key: str, value: object, known: Sequence[str]) -> ConfigError:
    """Return the error for a key that is not among the known dotted keys."""
    group = key.rpartition(".")[0]
    beside = [_last_part(name) for name in known if name.rpartition(".")[0] == group]
    there = f"; {group or 'the top level'} has {', '.join(beside)}" if beside else ""
    return ConfigError(
        f"{key} = {value!r}: there is no such key{did_you_mean(key, known)}{there}. "
        "fedsvd train --cfg job shows every key with its value."
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return " (did you mean …?)" with the nearest known word, or nothing where none is near.

    Dotted keys are compared by their last parts first: ``num_rounds`` leads to ``train.num_rounds``.
    """
    near = difflib.get_close_matches(_last_part(word), {_last_part(key) for key in known}, n=1)
    if not near:
        return ""
    best = difflib.get_close_matches(word, [key for key in known if _last_part(key) == near[0]], n=1, cutoff=0)
    return f" (did you mean {best[0]}?)"


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_text, value)) and len(set(value)) == len(value)
