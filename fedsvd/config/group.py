"""The base class of the configuration groups: pydantic checks the values, `fedsvd.config.messages` words the errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from fedsvd.config.messages import config_error, invalid_value, missing_key


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True))
class ConfigGroup:
    """A group of configuration keys: a frozen dataclass that validates its values on construction.

    Subclasses inherit the validation rules and must be decorated with ``pydantic.dataclasses.dataclass(frozen=True)``.
    Strict mode converts nothing except ints to floats, lists to tuples (see `fedsvd.config.types`), and mappings to
    nested groups.

    Attributes:
        group: Name of the group, the prefix of its keys; empty for the top level.

    Raises:
        ConfigError: An unknown key, a missing value, or a value that the field's type does not allow.
    """

    group: ClassVar[str] = ""

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Build the group from a mapping, as YAML files provide it; every key must be present.

        A direct call of the class may omit the fields that have a default.

        Raises:
            ConfigError: Not a mapping; otherwise as for the constructor.
        """
        if not isinstance(values, Mapping):
            raise invalid_value(cls.group or "the configuration", values, "a group of keys")
        arguments = {str(key): value for key, value in values.items()}
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in arguments]
        # With an unknown key too, the missing one is probably misspelled: the constructor then reports the unknown key.
        if missing and all(key in names for key in arguments):
            raise missing_key(cls.group, missing[0])
        return cls(**arguments)

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate constructor arguments; also called for the value of a field whose type is a group."""
        if isinstance(values, cls):
            return values
        if not isinstance(values, ArgsKwargs):
            return cls.from_mapping(values)
        try:
            return handler(values)
        except ValidationError as error:
            raise config_error(cls, values, error) from error
