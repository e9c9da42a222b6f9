"""A call of Hydra's compose that does not change the state of a running Hydra application."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

# hydra.compose uses one global object per process.
_LOCK = threading.Lock()


def call_hydra(folder: Path, root: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose ``folder/root.yaml`` with overrides.

    Args:
        folder: Directory of the YAML files.
        root: Name of the primary configuration.
        overrides: Hydra overrides.
        with_hydra: Include Hydra's own keys.
    """
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
