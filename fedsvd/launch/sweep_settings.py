"""Hydra's settings of a sweep: those that an experiment or the command line sets under ``hydra``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedsvd.config.compose import hydra_settings, sweep_choices
from fedsvd.errors import ConfigError

# What Hydra reads once for the whole sweep, and not for each of its runs.
_OF_THE_SWEEP = ("sweeper", "launcher")


def sweep_settings(overrides: Sequence[str]) -> DictConfig:
    """Return Hydra's settings with the first choice of each swept key.

    Raises:
        ConfigError: A launcher or sweeper is not installed, or an option of a swept group has settings of the sweep.
    """
    choices = sweep_choices(overrides)
    own = [item for item in overrides if item.lstrip("~+").startswith("hydra")]
    _check_options(choices, own)
    return hydra_settings([*first_choices(choices), *own])


def first_choices(choices: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the first override of each key."""
    return [values[0] for values in choices.values()]


def _check_options(choices: Mapping[str, Sequence[str]], own: Sequence[str]) -> None:
    """Raise `ConfigError` if a swept group has an option, such as an experiment, whose own sweep Hydra would ignore."""
    fixed = [values[0] for values in choices.values() if len(values) == 1]
    used = hydra_settings([*fixed, *own])
    groups = [key for key in choices if key in used.hydra.runtime.choices and len(choices[key]) > 1]
    for choice in (choice for key in groups for choice in choices[key]):
        option = hydra_settings([*fixed, choice, *own])
        ignored = [name for name in _OF_THE_SWEEP if _values(option, name) != _values(used, name)]
        if ignored:
            raise ConfigError(
                f"{choice} cannot be one of several choices: it sets hydra.{ignored[0]}, as an experiment with a sweep "
                f"of its own does, and Hydra would ignore that. Leave it out, or start it alone with -m {choice}."
            )


def _values(settings: DictConfig, name: str) -> Any:
    return OmegaConf.to_container(settings.hydra[name])
