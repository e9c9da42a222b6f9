"""From overrides to a `Config`, with errors that a person can act on; this and `fedsvd.config.overrides` know Hydra."""

from __future__ import annotations

import dataclasses
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedsvd.config import Config
from fedsvd.config.audit import AuditConfig
from fedsvd.config.compare import CompareConfig
from fedsvd.config.overrides import check_keys, check_override, dotted_keys, expand_choices, missing_extra, parse
from fedsvd.config.validate import build
from fedsvd.errors import ConfigError

Settings = TypeVar("Settings", AuditConfig, CompareConfig)

# Hydra's compose works through one object of the whole process.
_HYDRA_LOCK = threading.Lock()


def app_root() -> Path:
    """Return the folder that holds ``conf/``, ``server/`` and ``client/``.

    It is ``fedsvd/_app`` in an installed wheel, and the folder beside the package in a checkout or a Flower bundle.

    Raises:
        ConfigError: There is no ``conf/config.yaml`` in either.
    """
    package = Path(__file__).resolve().parents[1]
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


def compose_audit(overrides: Sequence[str]) -> tuple[Config, AuditConfig]:
    """Compose what ``fedsvd audit`` takes: a run, and the keys under ``audit`` that no other command has.

    Raises:
        ConfigError: As `compose`.
    """
    return _with_settings(overrides, "audit", AuditConfig)


def compose_compare(overrides: Sequence[str]) -> tuple[Config, CompareConfig]:
    """Compose what ``fedsvd compare`` takes: what its runs share, and the keys under ``compare``.

    Raises:
        ConfigError: As `compose`.
    """
    return _with_settings(overrides, "compare", CompareConfig)


def _with_settings(overrides: Sequence[str], name: str, schema: type[Settings]) -> tuple[Config, Settings]:
    composed = _composed(overrides, name)
    settings = build(schema, OmegaConf.to_container(composed)[name], name)  # type: ignore[index,call-overload]
    if not isinstance(settings, schema):
        raise ConfigError(f"{name} = {settings!r} is not a group of keys: set its keys one by one.")
    with open_dict(composed):
        del composed[name]
    return from_dictconfig(composed), settings


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


def read_config(path: Path) -> Config:
    """Read the ``config.yaml`` of a run.

    Raises:
        ConfigError: It cannot be read, or holds keys or values that are not allowed.
    """
    try:
        return from_dictconfig(DictConfig(OmegaConf.load(path)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): is {path.parent} the folder of a run?") from error


def as_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dicts and scalars, in the order of the schema."""
    return dataclasses.asdict(config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a ``config.yaml`` that a run left behind, of this version or an earlier one.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({_first_line(error)}): is its folder a run's?") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys: is its folder a run's?")
    return {str(key): value for key, value in values.items()}


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
    ours = parse(overrides)
    if not multirun:
        compose([str(item.input_line) for item in ours])
        return
    sweep_choices = [expand_choices(item, _groups()) for item in ours]
    first = [choices[0] for choices in sweep_choices]
    compose(first)
    for index, choices in enumerate(sweep_choices):
        for choice in choices[1:]:
            compose([*first[:index], choice, *first[index + 1 :]])


def sweep_choices(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return, by key, the single overrides that each of ours stands for; raises as `check_overrides` does."""
    return {item.key_or_group: expand_choices(item, _groups()) for item in parse(overrides)}


def hydra_settings(overrides: Sequence[str]) -> DictConfig:
    """Compose with Hydra's own keys under ``hydra``; raises `ConfigError` where, say, a launcher is not installed."""
    try:
        return _hydra_compose(overrides, "config", with_hydra=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{shlex.join(overrides)} cannot be composed: {_first_line(error)}.{missing_extra(error)}"
        ) from error


@lru_cache(maxsize=256)
def _compose(overrides: tuple[str, ...]) -> Config:
    return from_dictconfig(_composed(overrides, "config"))


def _composed(overrides: Sequence[str], root: str) -> DictConfig:
    """Compose ``conf/<root>.yaml`` with overrides, after all checks that can be made of them."""
    parsed, groups = parse(overrides), _groups()
    for item in parsed:
        check_override(item, groups)
    lines = [str(item.input_line) for item in parsed]
    try:
        return _hydra_compose(lines, root)
    except (HydraException, OmegaConfBaseException) as error:
        chosen = [str(item.input_line) for item in parsed if item.key_or_group in groups]
        if chosen != lines:
            check_keys(parsed, list(dotted_keys(_hydra_compose(chosen, root))), groups)
        raise ConfigError(
            f"{shlex.join(lines)} cannot be composed: {_first_line(error)}.{missing_extra(error)}"
        ) from error


def _hydra_compose(overrides: Sequence[str], root: str, *, with_hydra: bool = False) -> DictConfig:
    """Call Hydra's compose, and leave a Hydra application around us as it was."""
    with _HYDRA_LOCK, _without_running_hydra(), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(root, overrides=list(overrides), return_hydra_config=with_hydra)


@contextmanager
def _without_running_hydra() -> Iterator[None]:
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def _groups() -> dict[str, list[str]]:
    """Return the options of each group."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    return {
        folder.name: sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        for folder in folders
    }


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
