"""A call of Hydra's compose that does not change the state of a running Hydra application."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from fedsvd.config import plugins

# hydra.compose uses one global object per process.
_LOCK = threading.Lock()


class PluginSearchPath(SearchPathPlugin):
    """Adds the YAML files of packages that add a method or a data set; see `fedsvd.config.plugins`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append their directories, after fedsvd's own."""
        for folder in plugins.conf_dirs():
            search_path.append("fedsvd.plugins", f"file://{folder}")


def register_search_path() -> None:
    """Make Hydra use `PluginSearchPath`; repeated calls change nothing."""
    if PluginSearchPath not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(PluginSearchPath)


def call_hydra(folder: Path, root: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose ``folder/root.yaml`` with overrides.

    Args:
        folder: Directory of the YAML files.
        root: Name of the primary configuration.
        overrides: Hydra overrides.
        with_hydra: Include Hydra's own keys.
    """
    register_search_path()
    with _LOCK, _without_running_hydra(), hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose(root, overrides=list(overrides), return_hydra_config=with_hydra)


@contextmanager
def _without_running_hydra() -> Iterator[None]:
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
