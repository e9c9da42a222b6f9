"""The statement of a run whose clients do not disclose their number of examples."""

import json
from pathlib import Path

import pytest
from run_directories import write_run

from fedsvd.report.privacy_statement import statement_markdown


def statement(folder: Path, epsilons: tuple[float, float], *overrides: str) -> str:
    run = write_run(folder, *overrides, stopped_early={"server_round": 2, "num_rounds": 2, "best_round": 0,
                                                       "metric": "accuracy", "patience": 2})  # fmt: skip
    hidden = {"num_examples": None, "sample_rate": None, "noise_multiplier": None, "steps": 4, "epsilon": epsilons[1]}
    (run / "privacy.json").write_text(json.dumps({"clients": {"0": hidden}}), encoding="utf-8")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, value in zip(rows[1:], epsilons, strict=True):
        row |= {"epsilon": value, "client_epsilons": {"0": value}}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return statement_markdown(run)


def test_statement_says_how_counts_are_hidden(tmp_path: Path) -> None:
    uniform = statement(tmp_path / "uniform", (6.0, 12.0), "federation.weighting=uniform")
    assert "| steps and ε spent | yes | ε is rounded up to a multiple of 6, so that it does not tell" in uniform
    assert "noise multiplier | no | stays at the client; the noise in its updates permits estimates |" in uniform
    assert "ε is a bound for the 2 rounds that took place" in uniform
    secure = statement(tmp_path / "secure", (6.0, 6.0), "federation.secure_aggregation=true")
    assert "rounded up to a multiple of 6" in secure
    # Runs of earlier versions reported exact values, and a public sample rate makes them harmless.
    assert "| steps and ε spent | yes | none: public |" in statement(
        tmp_path / "exact", (2.5, 3.1), "federation.weighting=uniform"
    )


@pytest.mark.parametrize(
    ("epsilons", "maximum", "protection"),
    [
        ((6.0, 7.0), "7", "ε is rounded up to a multiple of 6, or to a client's limit (7) where that is less, so that"),
        # A node's own limit is not in the run's configuration.
        ((5.5, 5.5), "null", "ε is rounded up to a client's limit (5.5), so that it does not tell"),
        ((2.5, 3.1), "7", "none: public |"),
    ],
)
def test_statement_says_that_a_limit_was_reported(
    epsilons: tuple[float, float], maximum: str, protection: str, tmp_path: Path
) -> None:
    page = statement(tmp_path / "run", epsilons, "federation.weighting=uniform", f"privacy.max_epsilon={maximum}")
    assert f"| steps and ε spent | yes | {protection}" in page


@pytest.mark.parametrize(
    ("overrides", "meaning"),
    [
        ([], "within the budget. Each client's own ledger was charged for all of them in advance.\n"),
        (["privacy.noise_share=true", "federation.secure_aggregation=true"], "within the budget.\n"),
    ],
)
def test_clients_that_share_the_noise_are_charged_for_the_rounds_that_took_place(
    overrides: list[str], meaning: str, tmp_path: Path
) -> None:
    page = statement(tmp_path / "run", (3.0, 4.0), "privacy=client_level", *overrides)
    assert "ε is that of the 2 rounds that took place" in page
    assert meaning in page
