"""The app bundle that Flower expects: a folder with a pyproject.toml, from a checkout or an installed wheel."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from fedsvd.config.compose import app_root

_EXCLUDED = shutil.ignore_patterns("__pycache__", "_app", "py.typed")


def stage_app(folder: Path, config_dirs: Sequence[Path] = ()) -> None:
    """Copy the library, both apps and the configuration into a directory.

    Args:
        folder: An empty directory, or one that does not exist.
        config_dirs: The user's own directories of YAML files, which become part of the configuration.
    """
    root = app_root()
    for name, source in (
        ("fedsvd", Path(__file__).resolve().parents[1]),
        ("server", root / "server"),
        ("client", root / "client"),
        ("conf", root / "conf"),
    ):
        shutil.copytree(source, folder / name, ignore=_EXCLUDED)
    for source in config_dirs:
        for path in source.rglob("*.yaml"):
            target = folder / "conf" / path.relative_to(source)
            # As in Hydra's search path, the files of fedsvd come first.
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    shutil.copy(root / "pyproject.toml", folder)
