"""Types of configuration values that several groups share.

pydantic checks values against these types. The error messages and ``docs/configuration.md`` describe a type by its
``description`` where it has one, and by its base type and bounds otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, Strict

Item = TypeVar("Item")


def _check_distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(items)) != len(items):
        raise ValueError("an item occurs twice")
    return items


class ByClass(dict[str, Item]):
    """Values by class name; hashable, because configuration groups are keys of caches."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def _name_classes(values: Any) -> Any:
    """Return a mapping with the names of its classes as keys: YAML reads those of numbers and booleans as such."""
    if not isinstance(values, Mapping):
        return values
    return {_name(key): value for key, value in values.items()}


def _name_listed(values: Any) -> Any:
    """Return a list of classes as names."""
    return [_name(item) for item in values] if isinstance(values, (list, tuple)) else values


def _name(value: Any) -> Any:
    """Return a number or a boolean as text, as YAML would write it; other values are unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def _check_order(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError("the first limit is not below the second")
    return limits


Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
SampleRate = Annotated[float, Field(gt=0, le=1)]
FractionOrZero = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# At least one character that is not whitespace.
Text = Annotated[str, Field(pattern=r"\S", description="a string (quote a value that looks like a number)")]
# YAML has lists only. The outer type is not strict, so that a list becomes a tuple; the items stay strict.
NonEmptyTuple = Annotated[tuple[Item, ...], Strict(False), Field(min_length=1)]
DistinctTuple = Annotated[
    NonEmptyTuple[Item], AfterValidator(_check_distinct), Field(json_schema_extra={"uniqueItems": True})
]
Names = Annotated[
    DistinctTuple[Text],
    Field(description="a non-empty list of different names, for example [query,value]"),
]
# Like `Names`, and numbers and booleans are names, too.
ClassNames = Annotated[Names, BeforeValidator(_name_listed)]
LabelRange = Annotated[
    tuple[float, float],
    Strict(False),
    AfterValidator(_check_order),
    Field(description="two numbers, the smaller one first, for example [1,5]"),
]
# One tuple of sentences per class, by class name or in the order of the classes.
ClassDescriptions = Annotated[
    Annotated[Mapping[str, NonEmptyTuple[Text]], AfterValidator(ByClass), BeforeValidator(_name_classes)]
    | NonEmptyTuple[NonEmptyTuple[Text]],
    Field(
        description="a list of sentences for each class: a mapping by class name, or a list in the order of the "
        "classes, for example [['A bad film.'],['A good film.']]"
    ),
]
# One number per class, by class name or in the order of the classes.
ClassWeights = Annotated[
    Annotated[Mapping[str, PositiveFloat], AfterValidator(ByClass), BeforeValidator(_name_classes)]
    | NonEmptyTuple[PositiveFloat],
    Field(
        description="a number > 0 for each class: a mapping by class name, or a list in the order of the classes, for "
        "example [1,3]"
    ),
]
LabelCounts = Annotated[
    Annotated[Mapping[str, Count], AfterValidator(ByClass), BeforeValidator(_name_classes)] | NonEmptyTuple[Count],
    Field(
        description="an integer ≥ 1 for each class: a mapping by class name, or a list in the order of the classes, "
        "for example [9000,1000]"
    ),
]
