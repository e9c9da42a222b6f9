"""Sentences of the privacy statement that must not say more than the records do."""

import json
from pathlib import Path

import pytest
from run_directories import write_run

from fedsvd.config.compose import as_dict, compose
from fedsvd.config.flat import flatten
from fedsvd.privacy.round_settings import ROW_KEY, round_settings
from fedsvd.report.privacy_statement import guarantee_line, statement_markdown

GROUPS = "for a person with k examples at one client, ε is k times as large, at a larger δ;"
UNFINISHED = "The run has not finished. What an interrupted round has cost exactly is only in the clients' ledgers."


@pytest.mark.parametrize("state", ["running", "failed", "interrupted", "finished"])
def test_an_unfinished_run_says_that_ledgers_know_more(state: str, tmp_path: Path) -> None:
    markdown = statement_markdown(write_run(tmp_path / "run", state=state))

    assert (UNFINISHED in markdown) is (state != "finished")


def test_several_examples_of_a_person_have_a_larger_epsilon_and_delta(tmp_path: Path) -> None:
    assert GROUPS in statement_markdown(write_run(tmp_path / "examples"))
    assert "More than one example" not in statement_markdown(write_run(tmp_path / "clients", "privacy=client_level"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["privacy.max_grad_norm=0.75"], "every example's gradient was clipped to an L2 norm of 0.75, batches"),
        (["privacy=client_level", "privacy.max_update_norm=0.75"], "update was clipped to an L2 norm of 0.75; clients"),
    ],
)
def test_the_largest_clipping_norm_is_stated(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", *overrides)
    assert sentence in statement_markdown(folder)

    settings = round_settings(flatten(as_dict(compose(["experiment=smoke", *overrides]))))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    for row, norm in zip(rows, (0.5, 0.5, 0.75), strict=True):
        row[ROW_KEY] = {**settings, "clipping_norm": norm}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert sentence in statement_markdown(folder)


NODES = ["data=node", "data.labels=[negative,positive]", "method=fedsa_lora"]
TEST_FILES = "The held-out texts of sites that have their own (test-path): exact metrics on them were sent"


def test_metrics_on_test_files_of_sites_are_not_covered(tmp_path: Path) -> None:
    parts = {"parts_sent": ["A"], "parts_trained": ["A", "B"]}
    folder = write_run(tmp_path / "personal", *NODES, **parts)
    assert TEST_FILES in statement_markdown(folder)
    # Simulated clients evaluate on the texts that the server has held out, and models that all share are not evaluated.
    assert TEST_FILES not in statement_markdown(write_run(tmp_path / "simulated", "method=fedsa_lora", **parts))
    assert TEST_FILES not in statement_markdown(write_run(tmp_path / "shared", *NODES[:2]))

    # Round 0 is evaluated by the server, on its own held-out texts.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    rows[1:] = [{**row, "loss": None, "accuracy": None} for row in rows[1:]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert TEST_FILES not in statement_markdown(folder)


def test_the_statement_describes_the_noise_that_was_drawn(tmp_path: Path) -> None:
    secure = statement_markdown(write_run(tmp_path / "secure"))
    torch = statement_markdown(write_run(tmp_path / "torch", "privacy.secure_random=false"))

    assert "ChaCha20" in secure
    assert "combined from four draws" in secure
    assert "single draws" not in secure
    assert "single draws" in torch
    assert "four draws" not in torch
    assert "no guarantee for real data" in torch
    assert "seeds" not in secure
    assert "only against those who do not search the noise's seeds" in guarantee_line(tmp_path / "torch")


def test_the_statement_says_what_epsilon_means_if_nodes_used_a_part_of_their_rows(tmp_path: Path) -> None:
    drawn = (
        "at most 70 rows were drawn by a hash of each row. ε compares with the same file in which one row contributes"
    )
    node, limit = NODES[:2], "data.max_train_examples=70"
    assert drawn in statement_markdown(write_run(tmp_path / "limited", *node, limit))
    assert "by a hash" not in statement_markdown(write_run(tmp_path / "all", *node, "data.max_train_examples=null"))
    assert "by a hash" not in statement_markdown(write_run(tmp_path / "simulated", limit))
    assert "by a hash" not in statement_markdown(write_run(tmp_path / "client", *node, limit, "privacy=client_level"))
