"""The app as Flower wants to find it: a folder with a pyproject.toml, out of a checkout or an installed wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedsvd.config.compose import app_root

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "_app", "*.j2")


def stage_app(folder: Path) -> None:
    """Lay out the library, both apps and the configuration below an empty or new ``folder``."""
    root = app_root()
    for name, source in (
        ("fedsvd", Path(__file__).resolve().parents[1]),
        ("server", root / "server"),
        ("client", root / "client"),
        ("conf", root / "conf"),
    ):
        shutil.copytree(source, folder / name, ignore=_LEFT_OUT)
    shutil.copy(root / "pyproject.toml", folder)
