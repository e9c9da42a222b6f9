"""The overrides in Flower's run configuration: trusted like a command line only if this machine has written them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.config import Config
from fedsvd.config.compose import compose, split
from fedsvd.config.search_path import search_paths
from fedsvd.errors import ConfigError


class OwnOverrides(str):
    """Overrides of a run on the user's own machine, which may use its environment variables and directories.

    It is a type and not a key of the run configuration, because a SuperLink can send any key, but only plain strings.
    """

    __slots__ = ()


def own_run_config(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the run configuration of a federation on this machine."""
    return {"overrides": OwnOverrides(shlex.join(overrides))}


def from_run_config(run_config: Mapping[str, Any]) -> Config:
    """Compose the overrides in Flower's run configuration, under its key ``overrides``.

    Raises:
        ConfigError: As `compose`; also if overrides that a SuperLink has sent read an environment variable, or name a
            directory of YAML files: the error would tell what this machine has.
    """
    overrides = run_config.get("overrides")
    if not isinstance(overrides, str):
        raise ConfigError(
            "the run configuration has no string under overrides: declare overrides = '' in the app's pyproject.toml, "
            "and pass for example --run-config 'overrides=\"method=ffa_lora\"'."
        )
    if isinstance(overrides, OwnOverrides):
        return compose(overrides)
    if added := search_paths(split(overrides)):
        raise ConfigError(
            f"{added[0]} is not possible in the configuration of a run on real nodes: use --config-dir with fedsvd "
            "train, which sends the YAML files with the run."
        )
    return compose(overrides, environment=False)
