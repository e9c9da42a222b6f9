"""Single overrides of a command line: read them, and say what is wrong with one before Hydra composes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from fedsvd.config.validate import did_you_mean, unknown_key
from fedsvd.errors import ConfigError

# Launchers and sweepers that an extra of the same name brings.
_EXTRAS = ("joblib", "optuna", "ray", "submitit")
# From each group to its options.
Groups = Mapping[str, Sequence[str]]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides, and leave Hydra's own out.

    Raises:
        ConfigError: An override that is not KEY=VALUE.
    """
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            wrong = "is not understood" if "=" in line else "has no ="
            raise ConfigError(
                f"the override {line!r} {wrong}: write KEY=VALUE, for example train.num_rounds=5, and put quotes "
                "around a value with blanks, commas, brackets or =."
            ) from error
    return [item for item in parsed if not item.is_hydra_override()]


def expand_choices(item: Override, groups: Groups) -> list[str]:
    """Return the single overrides that a sweep stands for; of any other, itself.

    Raises:
        ConfigError: A sweep over nothing, or over what cannot be listed.
    """
    value: object = item.value()
    if not item.is_sweep_override():
        return [str(item.input_line)]
    key = item.get_key_element()
    if isinstance(value, Glob):
        choices = value.filter(list(groups.get(item.key_or_group, [])))
    elif isinstance(value, IntervalSweep):
        choices = [str(value.start), str(value.end)]
    else:
        try:
            choices = list(item.sweep_string_iterator())
        except (HydraException, ValueError) as error:
            raise ConfigError(
                f"{item.input_line} cannot be swept ({error}): list the values, as in {key}=1,2."
            ) from error
    if not choices:
        raise ConfigError(f"{item.input_line} sweeps over nothing: list the values, as in {key}=1,2.")
    return [f"{key}={choice}" for choice in choices]


def check_override(item: Override, groups: Groups) -> None:
    """Raise what can be said of one override before Hydra composes.

    Raises:
        ConfigError: A sweep, a removal, a package, or a group or option that is not there.
    """
    key, line = item.key_or_group, item.input_line
    if not key:
        raise ConfigError(f"the override {line!r} names no key: write KEY=VALUE, for example train.num_rounds=5.")
    if item.package is not None:
        raise ConfigError(f"{line} moves a group to another package: leave @{item.package} out.")
    if item.is_sweep_override():
        raise ConfigError(
            f"{line} gives several values: give one, add -m to run a job for each, or write a list as {key}=[…]."
        )
    if item.is_delete():
        raise ConfigError(f"{line} would remove a key, but every key is needed: set it to a value instead.")
    if key in groups:
        value, options = item.value(), groups[key]
        if item.is_add() or item.is_force_add():
            raise ConfigError(f"{line} adds a group that is already there: drop the +, as in {key}={value}.")
        if value not in options:
            raise ConfigError(
                f"{key} = {value!r} is not an option{did_you_mean(str(value), options)}: choose one of "
                f"{', '.join(options)}, or leave {key} out."
            )


def check_keys(parsed: Sequence[Override], known: Sequence[str], groups: Groups) -> None:
    """Raise for the first override whose key is not among those of the chosen groups.

    Raises:
        ConfigError: It names the key.
    """
    for item in parsed:
        key = item.key_or_group
        if key not in groups and key not in known:
            raise unknown_key(key, item.value(), known)
        if item.is_add():
            raise ConfigError(f"{item.input_line} adds a key that is already there: drop the +.")


def dotted_keys(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values that are not groups."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def missing_extra(error: Exception) -> str:
    """Say which extra brings the plugin that Hydra did not find; nothing where it missed none."""
    missed = re.search(r"hydra/(?:launcher|sweeper)/([a-z]+)", str(error))
    if missed is None or missed[1] not in _EXTRAS:
        return ""
    return f" It comes with an extra: pip install 'fedsvd[{missed[1]}]'."
