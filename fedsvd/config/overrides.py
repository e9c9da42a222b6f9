"""Parse the overrides of a command line, and check each one before Hydra composes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from fedsvd.config.messages import did_you_mean, unknown_key
from fedsvd.errors import ConfigError

# Launchers and sweepers that are installed by an extra of the same name.
_EXTRAS = ("joblib", "optuna", "ray", "submitit")
# The options of each group.
Groups = Mapping[str, Sequence[str]]


def quote_separator(override: str) -> str:
    """Quote the value of ``data.separator``, from which a shell has removed the quotation marks.

    Hydra does not parse values such as ``;`` and drops a tab.
    """
    key, equals, value = override.partition("=")
    if key.lstrip("+") != "data.separator" or not equals or len(value) != 1:
        return override
    return f"{key}='{value}'"


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides, and drop those of Hydra itself.

    Raises:
        ConfigError: An override that is not of the form KEY=VALUE.
    """
    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(quote_separator(line)))
        except HydraException as error:
            problem = "cannot be parsed" if "=" in line else "has no ="
            raise ConfigError(
                f"the override {line!r} {problem}: write KEY=VALUE, for example train.num_rounds=5, and quote a value "
                "that contains spaces, commas, brackets or =."
            ) from error
    return [item for item in parsed if not item.is_hydra_override()]


def override_values(overrides: Iterable[str]) -> dict[str, object]:
    """Return the values of single overrides by key, however they are written and quoted; raises as `parse` does."""
    return {item.key_or_group: item.value() for item in parse(list(overrides))}


def expand_choices(item: Override, groups: Groups) -> list[str]:
    """Return the single overrides that a sweep expands to; for any other override, only itself.

    Raises:
        ConfigError: A sweep without choices, or one whose choices cannot be listed.
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
        raise ConfigError(f"{item.input_line} has no values to sweep over: list the values, as in {key}=1,2.")
    return [f"{key}={choice}" for choice in choices]


def check_override(item: Override, groups: Groups) -> None:
    """Check one override before Hydra composes.

    Raises:
        ConfigError: A sweep, a deletion, a change of package, an added group, or an unknown option.
    """
    key, line = item.key_or_group, item.input_line
    if not key:
        raise ConfigError(f"the override {line!r} has no key: write KEY=VALUE, for example train.num_rounds=5.")
    if item.package is not None:
        raise ConfigError(
            f"{line} moves a group to another package, which is not supported: leave @{item.package} out."
        )
    if item.is_sweep_override():
        raise ConfigError(
            f"{line} gives several values: give one, add -m to run a job for each, or write a list as {key}=[…]."
        )
    if item.is_delete():
        raise ConfigError(f"{line} deletes a key, but every key is required: set it to a value instead.")
    if key in groups:
        value, options = item.value(), groups[key]
        if item.is_add() or item.is_force_add():
            raise ConfigError(f"{line} adds a group that already exists: drop the +, as in {key}={value}.")
        if value not in options:
            raise ConfigError(
                f"{key} = {value!r} is invalid{did_you_mean(str(value), options)}: expected one of "
                f"{', '.join(options)}. Choose one, or leave {key} out."
            )


def check_keys(parsed: Sequence[Override], known: Sequence[str], groups: Groups) -> None:
    """Check that each override sets an existing key of the chosen options.

    Raises:
        ConfigError: The first override with an unknown key, or one that adds an existing key.
    """
    for item in parsed:
        key = item.key_or_group
        if key not in groups and key not in known:
            raise unknown_key(key, item.value(), known)
        if item.is_add():
            raise ConfigError(f"{item.input_line} adds a key that already exists: drop the +.")


def missing_extra(error: Exception) -> str:
    """Return which extra installs the plugin that Hydra did not find, or an empty string for any other error."""
    plugin = re.search(r"hydra/(?:launcher|sweeper)/([a-z]+)", str(error))
    if plugin is None or plugin[1] not in _EXTRAS:
        return ""
    return f" Install it as an extra: pip install 'fedsvd[{plugin[1]}]'."
