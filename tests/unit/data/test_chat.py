"""Conversations: reading, chat templates, and labels on the assistant turns alone."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from test_user_tables import write
from transformers import PreTrainedTokenizerBase

from fedsvd import data
from fedsvd.config.compose import compose
from fedsvd.data.chat import conversation_check, encode_conversation, end_of_turn, render_prompt
from fedsvd.data.conversations import Turn, load_conversation
from fedsvd.data.loaders import LoadedData, load_data
from fedsvd.errors import ConfigError, DataError
from fedsvd.models.loading import load_tokenizer

SYSTEM, HELLO, SUM = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
)
HI, FOUR = {"role": "assistant", "content": "Hi."}, {"role": "assistant", "content": "4"}
CHAT = [SYSTEM, HELLO, HI, SUM, FOUR]
# What TRL's training templates mark: an answer and its end-of-turn token.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like that of Phi-3, which ends the last turn in another way than those before.
UNSTABLE = (
    "{% for m in messages %}{{ m.role + m.content }}{% if loop.last and not add_generation_prompt %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
# Without anything before an answer.
BARE = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@cache
def smollm2() -> PreTrainedTokenizerBase:
    return load_tokenizer("embedded:smollm2")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return smollm2()


def with_template(template: str | dict[str, str] | None) -> PreTrainedTokenizerBase:
    changed = copy.copy(smollm2())
    changed.chat_template = template
    return changed


def test_assistant_turns_are_learned_with_their_end_of_turn_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, labels = encode_conversation(CHAT, tokenizer, 100)

    tokens = [tokenizer.decode([token]) for token in ids]
    assert tokens == [
        "<|im_start|>", "system", "\n", "Be", " brief", ".", "<|im_end|>", "\n",
        "<|im_start|>", "user", "\n", "Hello", "<|im_end|>", "\n",
        "<|im_start|>", "ass", "istant", "\n", "Hi", ".", "<|im_end|>", "\n",
        "<|im_start|>", "user", "\n", "2", "+", "2", "?", "<|im_end|>", "\n",
        "<|im_start|>", "ass", "istant", "\n", "4", "<|im_end|>", "\n",
    ]  # fmt: skip
    assert [index for index, label in enumerate(labels) if label != -100] == [18, 19, 20, 35, 36]
    assert [labels[index] for index in (18, 19, 20, 35, 36)] == [ids[index] for index in (18, 19, 20, 35, 36)]


def test_a_shorter_sequence_is_the_beginning_of_a_longer_one(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [SYSTEM, *[HELLO, HI, SUM, FOUR] * 3]
    whole = encode_conversation(chat, tokenizer, 10**6)
    for max_length in range(1, len(whole[0]) + 2):
        assert encode_conversation(chat, tokenizer, max_length) == (whole[0][:max_length], whole[1][:max_length])


def test_turns_beyond_the_longest_sequence_are_not_rendered(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []
    apply = tokenizer.apply_chat_template

    def count(turns: list[Turn], **options: Any) -> Any:
        rendered.append(len(turns))
        return apply(turns, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", count)
    encode_conversation([HELLO, HI] * 50, tokenizer, 20)
    # The whole, and two renderings for each assistant turn that begins within 20 tokens, or first after them.
    assert len(rendered) <= 7


def test_marks_of_the_template_give_the_same_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode_conversation(CHAT, with_template(MARKED), 100) == encode_conversation(CHAT, tokenizer, 100)
    assert end_of_turn(with_template(MARKED)) == end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_generation_continues_where_the_answer_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, labels = encode_conversation(CHAT, tokenizer, 100)
    prompt = tokenizer(render_prompt(CHAT[:-1], tokenizer), add_special_tokens=False)["input_ids"]

    assert ids[: len(prompt)] == prompt
    assert labels[len(prompt)] == ids[len(prompt)] != -100
    assert labels[len(prompt) - 1] == -100


def test_a_template_that_changes_earlier_turns_is_refused() -> None:
    with pytest.raises(DataError, match=r"renders turn 3 differently .*\{% generation %\}"):
        encode_conversation(CHAT, with_template(UNSTABLE), 100)


def test_conversations_need_a_chat_template_and_a_token_to_learn(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no chat template: choose a chat model"):
        conversation_check(with_template(None), 100)
    with pytest.raises(DataError, match="several chat templates and no default"):
        conversation_check(with_template({"tools": MARKED, "plain": MARKED}), 100)
    with pytest.raises(DataError, match="starts with an assistant turn: put a system or user turn"):
        conversation_check(tokenizer, 100)([HI, HELLO, FOUR])
    # The first answer begins at position 18.
    assert [conversation_check(tokenizer, length)(CHAT) for length in (18, 19)] == [False, True]
    # The first token of a sequence is not predicted.
    assert [conversation_check(with_template(BARE), length)([HI]) for length in (1, 2)] == [False, True]


def load(path: Path, *overrides: str) -> LoadedData:
    config = compose([f"data={path.suffix[1:]}", f"data.path={path}", *LANGUAGE, *overrides]).data
    return load_data(config, 0, can_learn=conversation_check(smollm2(), 100))


LANGUAGE = ["model=smollm2", "data.messages_column=messages", "data.label_column=null"]


@pytest.mark.parametrize("file_format", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_conversations_and_counts_the_others(
    file_format: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    extra = [{**turn, "name": "someone"} for turn in CHAT]
    cells: list[Any] = [extra, [HELLO, HI], [HELLO], [], None, [SYSTEM, {**HELLO, "content": "long " * 100}, HI]]
    if file_format == "csv":
        # As json.dumps writes a conversation.
        cells = ["" if cell is None else json.dumps(cell) for cell in cells]
    path = write(tmp_path, file_format, {"messages": cells, "number": list("123456")})
    loaded = load(path, "data.test_fraction=0.5")

    stored = [text for split in loaded.splits.values() for text in split["messages"]]
    assert sorted(map(load_conversation, stored), key=len) == [[HELLO, HI], CHAT]
    first = 2 if file_format == "csv" else 1
    assert loaded.left_out[0].reasons == {
        "no assistant turn": [2 + first],
        "no messages": [3 + first, 4 + first],
        "no token of an assistant turn within model.max_length": [5 + first],
    }


INVALID: list[tuple[object, str]] = [
    ({"role": "user"}, r"row 1: column 'messages' holds an object: expected a list of turns"),
    ("[{'role': 'user'}]", r"row 1: column 'messages' holds text that is not JSON .*double quotation marks"),
    ([HELLO, {"role": "tool", "content": "4"}], r"the role 'tool' in turn 2: expected system, user, assistant"),
    ([HELLO, {"role": "assistant", "content": [{"type": "text"}]}], r"a content of type list in turn 2"),
    ([{"from": "human", "value": "Hello"}], r"turn 1 without the keys role and content: .*rename from to role"),
    ([HELLO, {**HI, "weight": 0}], r"the key 'weight' in turn 2, which is not supported"),
    ([HI, HELLO, FOUR], r"row 1: the conversation starts with an assistant turn"),
    ([HELLO, SUM], r"no usable row; .*1 with no assistant turn \(row 1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "message"), INVALID)
def test_malformed_conversations_are_refused_with_the_row_and_the_turn(
    cell: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": cell}))
    with pytest.raises(DataError, match=message):
        load(path)


def test_every_token_of_a_plain_text_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    config = compose(["model=smollm2", "data=jsonl", "data.path=x.jsonl", "data.label_column=null"])
    rows = Dataset.from_dict({"text": ["2+2 is 4", "Hello " * 200], "label": [0, 0]})
    short, long = data.encode(rows, config.data, config.model, tokenizer)

    assert tokenizer.decode(short["input_ids"]) == "2+2 is 4<|im_end|>"
    assert short["labels"] == short["input_ids"]
    # A truncated text does not end.
    assert len(long["labels"]) == config.model.max_length
    assert tokenizer.eos_token_id not in long["labels"]


INCOMPATIBLE = [
    (["data.response_column=answer"], r"data\.response_column = 'answer' has no effect with data\.messages_column"),
    (["data.prompt_template='Q: {text}'"], r"data\.prompt_template .* Set data\.prompt_template='\{text\}'"),
    (["data.text_column=question"], r"data\.text_column = 'question' has no effect"),
    (["model=tiny"], r"data\.messages_column = messages is not possible with model\.task = sequence_classification"),
    (["data.messages_column=null", "model.chat_template=true"], r"model\.chat_template = True has no effect"),
    (["data.messages_column=null", "data.text_pair_column=b"], r"data\.text_pair_column .*every token .*is learned"),
]


@pytest.mark.parametrize(("overrides", "message"), INCOMPATIBLE)
def test_keys_without_effect_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["data=jsonl", "data.path=x.jsonl", *LANGUAGE, *overrides])


def test_the_fingerprint_of_data_covers_their_conversations() -> None:
    one, other = (Dataset.from_dict({"messages": [json.dumps(turns)], "label": [0]}) for turns in (CHAT, CHAT[:3]))
    assert data.fingerprint(one) != data.fingerprint(other)


def test_prompts_end_before_the_last_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    config = compose(["data=jsonl", "data.path=x.jsonl", *LANGUAGE])
    conversations: list[list[Turn]] = [[*CHAT, HELLO], [HELLO, HI]]
    rows = Dataset.from_dict({"messages": list(map(json.dumps, conversations))})
    known = data.build_prompts(rows, config.data, config.model, tokenizer, 100, with_answers=True)
    asked = data.build_prompts(rows, config.data, config.model, tokenizer, 100)

    assert [prompt.answer for prompt in known] == ["4", "Hi."]
    assert known[0].text.endswith("2+2?<|im_end|>\n<|im_start|>assistant\n")
    assert asked[0].text.endswith("Hello<|im_end|>\n<|im_start|>assistant\n")
    assert asked[1] == known[1]
