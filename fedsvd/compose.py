"""From overrides to a `Config`, with errors that a person can act on: the only room that knows Hydra."""

from __future__ import annotations

import dataclasses
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.validate import build, did_you_mean, unknown_key

# Hydra's compose works through one object of the whole process.
_HYDRA_LOCK = threading.Lock()


def app_root() -> Path:
    """Return the folder that holds ``conf/``, ``server/`` and ``client/``.

    It is ``fedsvd/_app`` in an installed wheel, and the folder beside the package in a checkout or a Flower bundle.

    Raises:
        ConfigError: There is no ``conf/config.yaml`` in either.
    """
    package = Path(__file__).resolve().parent
    # The wheel's first: beside an installed package lie other people's folders, and one may be called conf.
    for root in (package / "_app", package.parent):
        if (root / "conf" / "config.yaml").is_file():
            return root
    raise ConfigError(f"no conf/config.yaml lies in or beside {package}: this installation is not whole; reinstall it.")


def conf_dir() -> Path:
    """Return the folder of the YAML files; raises as `app_root` does."""
    return app_root() / "conf"


def compose(overrides: str | Sequence[str] = ()) -> Config:
    """Compose and validate a configuration, once for the same overrides.

    Args:
        overrides: Hydra overrides, as a list or as one line that is split as a shell would; Hydra's own
            (``hydra.…``) are passed over. Works inside a running Hydra application too.

    Raises:
        ConfigError: An override, key, type or value that is not allowed.
    """
    if isinstance(overrides, str):
        try:
            overrides = shlex.split(overrides)
        except ValueError as error:
            raise ConfigError(f"overrides = {overrides!r} cannot be split into words ({error}): close it.") from error
    return _compose(tuple(overrides))


def from_run_config(run_config: Mapping[str, Any]) -> Config:
    """Compose what Flower's run configuration holds in its one key, ``overrides``; raises as `compose` does."""
    if not isinstance(run_config.get("overrides"), str):
        raise ConfigError(
            "the run configuration has no text under overrides: declare overrides = '' in the app's pyproject.toml, "
            "and pass for example --run-config 'overrides=\"method=ffa_lora\"'."
        )
    return compose(run_config["overrides"])


def from_dictconfig(cfg: DictConfig) -> Config:
    """Build and validate a `Config` from what Hydra composed.

    Raises:
        ConfigError: A key that is unknown or missing, or a type or value that is not allowed.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key} cannot be resolved ({_first_line(error)}): give a plain value.") from error
    config = build(Config, values)
    if not isinstance(config, Config):
        raise ConfigError(f"a configuration must be a mapping of keys to values, not {values!r}.")
    return config


def as_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dicts and scalars, in the order of the schema."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """Render the configuration as YAML; `from_dictconfig` makes the same configuration of it."""
    return OmegaConf.to_yaml(OmegaConf.create(as_dict(config)))


def check_overrides(overrides: Sequence[str], *, multirun: bool) -> None:
    """Check a command line before Hydra starts; Hydra's own overrides are passed over.

    Args:
        overrides: Hydra overrides.
        multirun: Whether a sweep is asked for. Then each alternative of each swept key is checked, beside the first
            alternatives of the others; an interval at both ends.

    Raises:
        ConfigError: As `compose`; also a sweep without ``multirun``, and one that has no alternative.
    """
    ours = _parse(overrides)
    if not multirun:
        compose([str(item.input_line) for item in ours])
        return
    alternatives = [_alternatives(item) for item in ours]
    first = [choices[0] for choices in alternatives]
    compose(first)
    for index, choices in enumerate(alternatives):
        for choice in choices[1:]:
            compose([*first[:index], choice, *first[index + 1 :]])


@lru_cache(maxsize=256)
def _compose(overrides: tuple[str, ...]) -> Config:
    parsed = _parse(overrides)
    for item in parsed:
        _check_override(item)
    lines = [str(item.input_line) for item in parsed]
    try:
        composed = _hydra_compose(lines)
    except (HydraException, OmegaConfBaseException) as error:
        chosen = [str(item.input_line) for item in parsed if item.key_or_group in _groups()]
        if chosen != lines:
            _check_keys(parsed, list(_keys(_hydra_compose(chosen))))
        raise ConfigError(f"{shlex.join(lines)} cannot be composed: {_first_line(error)}.") from error
    return from_dictconfig(composed)


def _hydra_compose(overrides: Sequence[str]) -> DictConfig:
    """Call Hydra's compose, and leave a Hydra application around us as it was."""
    with _HYDRA_LOCK, _without_running_hydra(), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


@contextmanager
def _without_running_hydra() -> Iterator[None]:
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides, and leave Hydra's own out."""
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


def _alternatives(item: Override) -> list[str]:
    value: object = item.value()
    if not item.is_sweep_override():
        return [str(item.input_line)]
    key = item.get_key_element()
    if isinstance(value, Glob):
        choices = value.filter(_groups().get(item.key_or_group, []))
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


def _check_override(item: Override) -> None:
    """Raise what can be said of one override before Hydra composes."""
    key, line, groups = item.key_or_group, item.input_line, _groups()
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


def _check_keys(parsed: Sequence[Override], known: Sequence[str]) -> None:
    """Raise for the first override whose key is not among those of the chosen groups."""
    groups = _groups()
    for item in parsed:
        key = item.key_or_group
        if key not in groups and key not in known:
            raise unknown_key(key, item.value(), known)
        if item.is_add():
            raise ConfigError(f"{item.input_line} adds a key that is already there: drop the +.")


def _keys(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values that are not groups."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _groups() -> dict[str, list[str]]:
    """Return the options of each group."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    return {
        folder.name: sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        for folder in folders
    }


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
