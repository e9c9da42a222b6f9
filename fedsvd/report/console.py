"""The console that a run prints to: a terminal, a file, or the output of a notebook's cell."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from rich.console import Console


def output_console() -> Console:
    """Return a console on standard output.

    In a notebook, rich displays its output in the cell. Where standard output has been redirected, it must not.
    """
    in_cell = type(sys.stdout).__module__.startswith("ipykernel.")
    return Console(force_jupyter=None if in_cell else False)


def shows_bars(console: Console) -> bool:
    """Return whether progress bars can be updated in place: in a terminal, or in a notebook with ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
