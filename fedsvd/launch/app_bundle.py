"""The app bundle that Flower expects: a folder with a pyproject.toml, from a checkout or an installed wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedsvd.config.compose import app_root

_EXCLUDED = shutil.ignore_patterns("__pycache__", "_app", "*.j2")


def stage_app(folder: Path) -> None:
    """Copy the library, both apps and the configuration into ``folder``, which must be empty or not exist."""
    root = app_root()
    for name, source in (
        ("fedsvd", Path(__file__).resolve().parents[1]),
        ("server", root / "server"),
        ("client", root / "client"),
        ("conf", root / "conf"),
    ):
        shutil.copytree(source, folder / name, ignore=_EXCLUDED)
    shutil.copy(root / "pyproject.toml", folder)
