"""Tests of what ``fedsvd predict`` prints with generated answers."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedsvd.cli import main
from fedsvd.commands.predict import _print_rows
from fedsvd.errors import ConfigError
from fedsvd.trained.prediction import check_max_new_tokens


@pytest.mark.parametrize("are_complete", [(True, True), (True, False), (False, False)])
def test_answers_that_were_cut_are_counted(are_complete: tuple[bool, ...], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "why?", "answer": "because", "is_complete": is_complete} for is_complete in are_complete]

    _print_rows(Console(), rows, SimpleNamespace(json=True, stream=False, max_new_tokens=7))

    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == rows
    cut = are_complete.count(False)
    note = f"answers that were cut: {cut}. An answer has at most 7 tokens (--max-new-tokens N)"
    assert (note in printed.err) == (cut > 0)


def test_an_answer_has_at_least_one_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "runs", "--text", "a", "--max-new-tokens", "0"]) == 2
    assert "--max-new-tokens 0 is invalid: expected an integer ≥ 1" in capsys.readouterr().err


def test_the_length_of_answers_is_refused_for_a_model_that_gives_none() -> None:
    run = SimpleNamespace(generates_text=False)
    check_max_new_tokens(run, None)
    with pytest.raises(ConfigError, match="max_new_tokens = 5 has no effect: this run's model generates no text"):
        check_max_new_tokens(run, 5)
    run.generates_text = True
    check_max_new_tokens(run, 5)
    with pytest.raises(ConfigError, match="max_new_tokens = 0 is invalid"):
        check_max_new_tokens(run, 0)
