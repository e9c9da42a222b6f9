"""Where a run prints in a notebook: to the cell, or to where standard output was redirected."""

import contextlib
import io
import sys

import pytest
from rich import console as rich_console

from fedsvd.report import console


def test_redirected_output_of_a_notebook_does_not_reach_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich_console, "_is_jupyter", lambda: True)
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", cell)
    in_cell = console.output_console()
    with contextlib.redirect_stdout(io.StringIO()) as log:
        console.output_console().print("round 1")

    assert in_cell.is_jupyter
    assert console.shows_bars(in_cell)
    assert log.getvalue() == "round 1\n"
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    assert not console.shows_bars(in_cell)
