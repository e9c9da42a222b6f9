"""Values of a table's cells as texts and as names of classes, the same for every file format."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal

from fedsvd.errors import DataError

# A whole number with a fraction of zeros, as pandas writes integers of a column with empty cells.
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.0+)?")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
# Python's float also reads "1_000" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# A list, a tuple, a set or an array, as Python, pandas and databases write it to CSV. In parentheses, texts have
# quotation marks and numbers a comma: others are names, such as (other).
_PRINTED_LIST = re.compile(
    r"""\[[^\[\]]*\] | \{[^{}]*\} | [\[{] \s* ['"].*['"] \s* [\]}]
    | \( \s* (?: (['"]).*\1 \s* (?:,.*)? | [\d.]+ \s* , [\d\s.,]* )? \)
    | (?: set | frozenset | array ) \(.*\)""",
    re.DOTALL | re.VERBOSE,
)
_PRINTED_TYPES = (Decimal, date, datetime, time, timedelta)
_MAX_SHOWN = 5


class WrittenFloat(float):
    """A JSON number with a fraction or an exponent.

    Attributes:
        literal: The number as it is written in the file.
    """

    literal: str

    def __new__(cls, literal: str) -> WrittenFloat:
        """Parse a number and keep its literal."""
        number = super().__new__(cls, literal)
        number.literal = literal
        return number


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: null, an empty or blank string, or not a number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, float) and math.isnan(value)


def to_text(value: object) -> str:
    """Return a cell's text: a string unchanged, a number as it is written, a boolean as in JSON.

    A number from a file without a written form (Parquet, Arrow) is written without a fraction if it is whole.

    Raises:
        DataError: The value is no text, for example a list.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, WrittenFloat):
        return value.literal
    if isinstance(value, (int, float)):
        return _number_text(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"holds bytes that are not UTF-8 (0x{value[error.start]:02x})") from error
    if isinstance(value, _PRINTED_TYPES):
        return str(value)
    raise DataError(f"holds {_kind(value)}: expected a string or a number")


def to_class_name(value: object) -> str:
    """Return the name of the class that a cell denotes; whitespace around it is ignored.

    A whole number is one class however it is written: 1, 1.0, "1" and "1.0". Other strings are classes as they are
    written, such as "01", "1e3" or "TRUE". JSON's and Arrow's booleans are "true" and "false".

    Raises:
        DataError: The value is no text, for example a list.
    """
    if isinstance(value, WrittenFloat):
        return _number_text(value)
    text = to_text(value).strip()
    whole = text.partition(".")[0] if _WHOLE_NUMBER.fullmatch(text) else text
    return "0" if whole == "-0" else whole


def match_classes(labels: Sequence[str], class_names: Sequence[str]) -> list[str | None]:
    """Return each label's class, whose name may be another form of the same number; None if there is none."""
    known = {to_class_name(name): name for name in class_names} | {name: name for name in class_names}
    return [known.get(label) for label in labels]


def repeated_class(class_names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first two names that `to_class_name` maps to the same class; None if there are none."""
    found: dict[str, str] = {}
    for name in class_names:
        first = found.setdefault(to_class_name(name), name)
        if first != name:
            return first, name
    return None


def is_printed_list(text: str) -> bool:
    """Return whether a text is a list, a tuple, a set or an array as a program prints it, and no name of a class."""
    return bool(_PRINTED_LIST.fullmatch(text.strip()))


def is_integer(name: str) -> bool:
    """Return whether `to_class_name` has returned the form of an integer of at most 64 bits."""
    return bool(_INTEGER.fullmatch(name)) and -(2**63) <= int(name) < 2**63


def to_number(text: str) -> float | None:
    """Return the finite number that a text denotes in decimal notation; None if it denotes none."""
    number = float(text) if _NUMBER.fullmatch(text.strip()) else math.inf
    return number if math.isfinite(number) else None


def sorted_values(names: Sequence[str]) -> list[str]:
    """Sort distinct values: by size if all are finite numbers, otherwise as strings."""
    numbers = {name: number for name in names if (number := to_number(name)) is not None}
    if len(numbers) < len(names):
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name], name))


def abbreviate(values: Sequence[object], limit: int = _MAX_SHOWN) -> str:
    """Join the first values with commas."""
    return ", ".join(map(str, values[:limit])) + (", …" if len(values) > limit else "")


def _number_text(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() else repr(float(value))


def _kind(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"
