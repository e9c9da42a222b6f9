"""Compose a `Config` from overrides."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedsvd.config import Config, plugins
from fedsvd.config.audit import AuditConfig
from fedsvd.config.compare import CompareConfig
from fedsvd.config.data_keys import check_new_keys, check_sampling_keys, check_used_keys
from fedsvd.config.earlier_versions import add_defaults
from fedsvd.config.environment import environment_refused
from fedsvd.config.flat import flatten
from fedsvd.config.hydra_call import call_hydra, compose_with_values
from fedsvd.config.overrides import check_keys, check_override, expand_choices, missing_extra, parse
from fedsvd.config.quoting import plain_text
from fedsvd.config.search_path import config_dirs, group_options, merge_search_paths, search_paths
from fedsvd.config.types import ByClass
from fedsvd.errors import ConfigError, first_line

Settings = TypeVar("Settings", AuditConfig, CompareConfig)


def app_root() -> Path:
    """Return the directory that contains ``conf/``, ``server/`` and ``client/``.

    It is ``fedsvd/_app`` in an installed wheel, and the parent of the package in a checkout or a Flower app bundle.

    Raises:
        ConfigError: Neither directory contains ``conf/config.yaml``.
    """
    package = Path(__file__).resolve().parents[1]
    # The wheel's directory first: next to an installed package, conf/ may belong to another package.
    for root in (package / "_app", package.parent):
        if (root / "conf" / "config.yaml").is_file():
            return root
    raise ConfigError(
        f"conf/config.yaml is missing in and next to {package}: the installation is incomplete; reinstall it."
    )


def conf_dir() -> Path:
    """Return the directory of the YAML files; raises as `app_root` does."""
    return app_root() / "conf"


def compose(overrides: str | Sequence[str] = (), *, environment: bool = True) -> Config:
    """Compose and validate a configuration; the result is cached per overrides.

    Works inside a running Hydra application too.

    Args:
        overrides: Hydra overrides, as a list or as one line that is split like a shell command. Overrides of Hydra
            itself (``hydra.…``) are ignored, except ``hydra.searchpath``.
        environment: Whether the configuration may read environment variables (``${oc.env:NAME}``).

    Raises:
        ConfigError: An invalid override, key, type or value.
    """
    return _compose(tuple(split(overrides)), environment)


def split(overrides: str | Sequence[str]) -> Sequence[str]:
    """Split one line of overrides like a shell command; raises `ConfigError` if a quotation is not closed."""
    if not isinstance(overrides, str):
        return overrides
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides = {overrides!r} cannot be split ({error}): close the quotation.") from error


def compose_audit(overrides: Sequence[str]) -> tuple[Config, AuditConfig]:
    """Compose the configuration of ``fedsvd audit``: a run, and the keys under ``audit``, which no other command has.

    Raises:
        ConfigError: As `compose`.
    """
    config, settings = _with_settings(overrides, "audit", AuditConfig)
    check_used_keys(config.data)
    check_new_keys(config, overrides)
    return config, settings


def compose_compare(overrides: Sequence[str]) -> tuple[Config, CompareConfig]:
    """Compose what the runs of ``fedsvd compare`` share, and the keys under ``compare``; raises as `compose` does."""
    return _with_settings(overrides, "compare", CompareConfig)


def _with_settings(overrides: Sequence[str], name: str, schema: type[Settings]) -> tuple[Config, Settings]:
    composed = _composed(overrides, name)
    settings = schema.from_mapping(OmegaConf.to_container(composed)[name])  # type: ignore[index,call-overload]
    with open_dict(composed):
        del composed[name]
    return from_dictconfig(composed), settings


def from_dictconfig(cfg: DictConfig) -> Config:
    """Build and validate a `Config` from the configuration that Hydra composed.

    Raises:
        ConfigError: An unknown or missing key, or an invalid type or value.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key} cannot be resolved ({first_line(error)}): give a plain value.") from error
    return Config.from_mapping(values)


def read_config(path: Path) -> Config:
    """Read the ``config.yaml`` of a run; keys that an earlier version did not have get their defaults.

    Raises:
        ConfigError: The file cannot be read, or contains invalid keys or values.
    """
    values = add_defaults(read_yaml(path))
    try:
        return Config.from_mapping(values)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged, or of another version of fedsvd: {error}") from error


def as_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dicts and scalars, in the order of the schema."""
    values = dataclasses.asdict(config)
    for group in (values["data"], values["train"]):
        # YAML has plain dicts only.
        group |= {key: dict(value) for key, value in group.items() if isinstance(value, ByClass)}
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run by this or an earlier version, without validation.

    Raises:
        ConfigError: The file cannot be read, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)}): is {path.parent} a run directory?") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} contains no keys: is {path.parent} a run directory?")
    return {str(key): value for key, value in values.items()}


def to_yaml(config: Config) -> str:
    """Render the configuration as YAML, from which `read_config` reads an equal configuration."""
    # Not by OmegaConf, which would read a ${ in a value, such as a path, as an interpolation.
    values = as_dict(config)
    # Unless it escapes it (as \N), PyYAML writes a next line character as a line break, which it reads as a space.
    escaped = yaml.safe_dump(values, sort_keys=False)
    return str(escaped if "\\N" in escaped else yaml.safe_dump(values, allow_unicode=True, sort_keys=False))


def check_overrides(overrides: Sequence[str], *, multirun: bool) -> None:
    """Check the overrides of a command line before Hydra starts; overrides of Hydra itself are ignored.

    Args:
        overrides: Hydra overrides.
        multirun: Whether sweeps are allowed. Each choice of a swept key is then checked together with the first
            choices of the other keys; an interval is checked at both ends.

    Raises:
        ConfigError: As `compose`; also for a sweep without ``multirun``, and for a sweep without choices.
    """
    parsed, added = parse(overrides), search_paths(overrides)
    if not multirun:
        compose([*added, *(str(item.input_line) for item in parsed)])
        return
    choices_per_key = [expand_choices(item, _groups(overrides)) for item in parsed]
    first = [choices[0] for choices in choices_per_key]
    compose([*added, *first])
    for index, choices in enumerate(choices_per_key):
        for choice in choices[1:]:
            compose([*added, *first[:index], choice, *first[index + 1 :]])


def sweep_choices(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return, by key, the single overrides that each override expands to; raises as `check_overrides` does."""
    return {item.key_or_group: expand_choices(item, _groups(overrides)) for item in parse(overrides)}


def hydra_settings(overrides: Sequence[str]) -> DictConfig:
    """Compose including Hydra's keys under ``hydra``; raises `ConfigError` if, for example, a launcher is missing."""
    try:
        return call_hydra(conf_dir(), "config", overrides, with_hydra=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{shlex.join(overrides)} cannot be composed: {first_line(error)}.{missing_extra(error)}"
        ) from error


@lru_cache(maxsize=256)
def _compose(overrides: tuple[str, ...], environment: bool) -> Config:
    run_dir = plain_text(overrides, "run_dir")
    others = tuple(item for item in overrides if not item.startswith("run_dir="))
    if run_dir and not (search_paths(others) or plugins.conf_dirs() or any("run_dir" in item for item in others)):
        # No YAML file of fedsvd refers to run_dir, so the run and the check before it share one composition.
        return dataclasses.replace(_compose(others, environment), run_dir=run_dir)
    with nullcontext() if environment else environment_refused():
        config = from_dictconfig(_composed(overrides, "config"))
    # Not a rule of DataConfig: the directories of earlier runs stay readable.
    check_used_keys(config.data)
    check_sampling_keys(config, overrides)
    return config


def _composed(overrides: Sequence[str], root: str) -> DictConfig:
    """Compose ``conf/<root>.yaml`` with overrides, after checking them."""
    parsed, groups, added = parse(overrides), _groups(overrides), search_paths(merge_search_paths(overrides))
    for item in parsed:
        check_override(item, groups)
    lines = [str(item.input_line) for item in parsed]
    chosen = [str(item.input_line) for item in parsed if item.key_or_group in groups]
    if not (added or plugins.conf_dirs() or any(item.is_add() or item.is_force_add() for item in parsed)):
        values = [item for item in parsed if item.key_or_group not in groups]
        # An error is left to Hydra, which names the override.
        with suppress(HydraException, OmegaConfBaseException):
            return compose_with_values(conf_dir(), root, chosen, values)
    try:
        return call_hydra(conf_dir(), root, [*added, *lines])
    except (HydraException, OmegaConfBaseException) as error:
        if chosen != lines:
            check_keys(parsed, list(flatten(call_hydra(conf_dir(), root, [*added, *chosen]))), groups)
        raise ConfigError(
            f"{shlex.join(lines)} cannot be composed: {first_line(error)}.{missing_extra(error)}"
        ) from error


def _groups(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the options of each group, with those of the directories that the overrides and other packages add."""
    return group_options([conf_dir(), *config_dirs(overrides), *plugins.conf_dirs()])
