"""Console output of a run, during training and at its end."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.plots import plot_accuracy
from fedsvd.report.progress import Reporter


def row(server_round: int, accuracy: float | None, epsilon: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "server_round": server_round,
        "accuracy": accuracy,
        "loss": None if accuracy is None else 0.5,
        "epsilon": epsilon,
        "clients_sampled": 2,
        "clients_used": 2,
        "clients_refused": {},
        "skipped": False,
        "bytes_down": 2048,
        "bytes_up": 1024,
        "seconds_train": 1.5,
        "seconds_aggregate": 0.25,
        "seconds_evaluate": 0.5,
        "seconds_write": 0.0,
    } | changes


ROWS = [row(0, 0.5, None), row(1, 0.625, 1.2301), row(2, None, 2.0, clients_refused={"1": "no budget left"})]
CLIENT = {"num_examples": 10, "sample_rate": 0.5, "noise_multiplier": 1.25, "steps": 4, "epsilon": 1.00001}


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [(6.0, "6.00"), (5.98, "5.98"), (5.981, "5.99"), (1e-9, "0.01"), (0.0, "0.00"), (-1e-3, "0.00"), (math.inf, "inf")],
)
def test_epsilon_is_rounded_up(epsilon: float, expected: str) -> None:
    assert rounded_up(epsilon, 2) == expected


@given(st.floats(0, 1e6), st.integers(0, 6))
def test_a_formatted_epsilon_is_never_below_the_exact_value(epsilon: float, digits: int) -> None:
    assert epsilon <= float(rounded_up(epsilon, digits)) <= epsilon + 10.0**-digits + 1e-9


def report_run(terminal: bool, folder: Path = Path("the-run")) -> str:
    """Report a run of two rounds and return the console output."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Reporter(folder, 2, 1e-5, console=console) as reporter:
        reporter.started(0, 2)
        for round_row in ROWS:
            reporter.reply_arrived(None)
            reporter.round_done(round_row)
    reporter.finished(ROWS, {"0": CLIENT})
    return console.file.getvalue()


def test_without_a_terminal_each_round_prints_one_line() -> None:
    lines = report_run(terminal=False).splitlines()

    assert lines[:4] == [
        "round 0/2  loss 0.500  accuracy 50.0%",
        "round 1/2  loss 0.500  accuracy 62.5%  ε ≤ 1.24",
        "round 2/2  ε ≤ 2.00",
        "  excluded client 1: no budget left",
    ]


def test_a_terminal_shows_the_last_evaluation_and_the_current_epsilon() -> None:
    output = report_run(terminal=True)

    assert "accuracy 62.5% at round 1  ε ≤ 2.00" in output
    assert "clients" in output


def test_the_final_output_has_accuracy_privacy_spent_traffic_phases_and_files(tmp_path: Path) -> None:
    for name in ("the-run/adapter", "the-run/metrics.jsonl"):
        (tmp_path / name).mkdir(parents=True)
    output = report_run(terminal=False, folder=tmp_path / "the-run")

    for part in ("62.5%", "1.0001", "1.250", "2/2", "4.50", "the-run", "adapter/", "metrics.jsonl"):
        assert part in output
    # A file that the run did not write is not announced.
    assert "adapter-best/" not in output


@pytest.mark.parametrize("rows", [ROWS, [row(0, 0.5, None)]])
def test_the_plot_is_a_png_file(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_accuracy(rows, tmp_path / "plots" / "accuracy.png")

    assert (tmp_path / "plots" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
