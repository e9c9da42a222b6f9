"""Tests of what ``fedsvd predict`` prints with generated answers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedsvd.cli import main
from fedsvd.commands.predict import _print_rows
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DataError
from fedsvd.models.loading import load_tokenizer
from fedsvd.trained import run as trained_run
from fedsvd.trained.prediction import check_max_new_tokens, predict


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


QUESTION, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}
CHATS = ["data=chitchat", "model=smollm2", "partition=iid"]


@pytest.mark.parametrize("arguments", [[], ["--stream"], ["--json", "--batch-size", "2"]])
def test_a_conversation_that_cannot_be_answered_is_named_by_its_row_before_any_answer(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(CHATS)
    finished = SimpleNamespace(config=config, generates_text=True, best=None)
    # Without a model: the first answer would raise AttributeError.
    loaded = SimpleNamespace(run=finished, tokenizer=load_tokenizer("embedded:smollm2"))
    monkeypatch.setattr(trained_run, "read_run", lambda folder, best: finished)
    monkeypatch.setattr(trained_run, "load_trained_model", lambda run, device: loaded)
    path, rows = tmp_path / "own.jsonl", [[QUESTION], [], *[[QUESTION]] * 33, [ANSWER], [QUESTION]]
    column = config.data.messages_column
    path.write_text("".join(json.dumps({column: turns}) + "\n" for turns in rows))

    assert main(["predict", str(tmp_path), "--file", str(path), *arguments]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: --file = '{path}': row 36: the conversation starts with an assistant turn" in printed.err


def test_a_conversation_that_cannot_be_answered_is_named_by_its_position_in_a_list() -> None:
    run = SimpleNamespace(config=compose(CHATS), generates_text=True)
    loaded = SimpleNamespace(run=run, tokenizer=load_tokenizer("embedded:smollm2"))
    with pytest.raises(DataError, match=r"^texts\[1\]: the conversation starts with an assistant turn: put a system"):
        predict(loaded, ["Hello", [ANSWER]])  # type: ignore[arg-type]
