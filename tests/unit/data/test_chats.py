"""Conversations of the Chit-Chat Challenge: turns by hand, and the real package."""

import json

from fedsvd.config.compose import compose
from fedsvd.data.chats import chitchat_file, to_turns
from fedsvd.runtime.data import load_client_data, load_tokenizer


def message(sender: str, text: str) -> dict[str, str]:
    return {"sender": sender, "text": text, "timestamp": "2018-05-02T19:38:15Z"}


def test_messages_in_a_row_are_one_turn_and_who_writes_first_is_the_user() -> None:
    written = [message("x", "Hello "), message("x", "How are you?"), message("y", " "), message("y", "fine"),
               message("x", "good")]  # fmt: skip
    assert to_turns(written) == [
        {"role": "user", "content": "Hello\nHow are you?"},
        {"role": "assistant", "content": "fine"},
        {"role": "user", "content": "good"},
    ]


def test_conversations_of_one_or_three_people_are_left_out() -> None:
    assert to_turns([message("x", "Hello"), message("x", "Is anyone there?")]) == []
    assert to_turns([message("x", "Hello"), message("y", "Hi"), message("z", "Hey")]) == []
    assert to_turns([message("x", "Hello"), message("y", "")]) == []


def test_the_package_has_conversations_of_two_people() -> None:
    rows = [json.loads(line)["messages"] for line in chitchat_file().read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4017
    assert rows[0][0] == {"role": "user", "content": "Hello\nHow are you doing today?"}
    for turns in rows:
        # Roles alternate, beginning with the user.
        assert [turn["role"] for turn in turns] == (["user", "assistant"] * len(turns))[: len(turns)]


def test_only_what_the_second_person_writes_is_learned() -> None:
    config = compose(["model=smollm2", "data=chitchat", "partition=iid", "data.max_train_examples=40"])
    example = load_client_data(config, 0).examples[0]
    learned = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
    tokenizer = load_tokenizer(config)
    text = tokenizer.decode(learned)
    assert text.strip()
    assert "<|im_start|>user" in tokenizer.decode(example["input_ids"])
    assert "<|im_start|>user" not in text
