"""Unusual prompts, and greedy decoding whatever a checkpoint says."""

import re
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedsvd.config import DataConfig, ModelConfig
from fedsvd.data.instructions import build_instructions, end_token, tokenize_prompt
from fedsvd.data.sequences import build_prompts
from fedsvd.errors import ConfigError, DataError, ModelError
from fedsvd.models.embedded import resolve_source
from fedsvd.models.loading import load_causal_lm, load_tokenizer
from fedsvd.trained.prediction import unanswered_dataset
from fedsvd.training.generation import generate


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("embedded:tiny-llama")


@pytest.fixture
def bare() -> PreTrainedTokenizerBase:
    """A tokenizer that adds no token at the start or end, as many chat models have."""
    tokenizer = load_tokenizer("embedded:smollm2")
    assert tokenizer("fine")["input_ids"] == tokenizer("fine", add_special_tokens=False)["input_ids"]
    return tokenizer


def test_an_end_token_in_a_prompt_is_kept_and_one_that_the_tokenizer_adds_is_not(
    tokenizer: PreTrainedTokenizerBase, bare: PreTrainedTokenizerBase
) -> None:
    assert tokenizer.decode(tokenize_prompt("a fine film", tokenizer)) == "[CLS] a fine film"
    assert tokenizer.decode(tokenize_prompt("a fine film [SEP]", tokenizer)) == "[CLS] a fine film [SEP]"
    end = bare.decode([end_token(bare)])
    assert tokenize_prompt(f"a fine film{end}", bare) == [*tokenize_prompt("a fine film", bare), end_token(bare)]


def test_a_prompt_without_tokens_is_the_end_token(bare: PreTrainedTokenizerBase) -> None:
    assert tokenize_prompt("", bare) == [end_token(bare)]


def test_a_conversation_without_a_question_is_an_error(bare: PreTrainedTokenizerBase) -> None:
    conversations = ["How are you?", [{"role": "assistant", "content": "Fine."}]]
    config = DataConfig("jsonl", messages_column="messages", label_column=None)
    with pytest.raises(DataError, match="conversation 2: the conversation starts with an assistant turn"):
        build_prompts(unanswered_dataset(conversations), config, ModelConfig("own", "embedded:smollm2"), bare, 64)


def test_a_tokenizer_without_an_end_token_is_an_error(bare: PreTrainedTokenizerBase) -> None:
    bare.eos_token = None
    with pytest.raises(ModelError, match=r"no end token.* set its eos_token"):
        end_token(bare)


@pytest.mark.parametrize(("field", "key"), [("choices", "label_column"), ("text_pair", "text_pair_column")])
def test_a_template_needs_the_columns_that_fill_it(field: str, key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"data.{key} = None, which would fill {{{field}}}")):
        DataConfig("jsonl", prompt_template=f"{{text}} {{{field}}}", label_column=None, response_column="answer")


@pytest.mark.parametrize(
    "template",
    ["{{text}} is {text}", "{{{text}}}", "{text}{{text}} {{", "}}{text_pair:>9}{{{{text}}{text}}}", "{text}"],
)
def test_a_template_is_filled_as_by_str_format(template: str) -> None:
    config = DataConfig("jsonl", prompt_template=template, text_pair_column="more", response_column="answer")
    rows = {"text": ["{a} film"], "text_pair": ["{pair}"], "label": [0], "response": ["yes"]}
    features = Features({name: Value("string") for name in rows} | {"label": ClassLabel(names=["any"])})
    [row] = build_instructions(Dataset.from_dict(rows, features=features), config, None, chat_template=False)

    assert row.prompt == template.format(text="{a} film", text_pair="{pair}")
    assert row.text == "{a} film"


@pytest.mark.parametrize(
    "template", ["{text} {choices:d}", "{text} {choices!x}", "{text} {choices:{text_pair}>5}", "{{text}} {text!r}"]
)
def test_a_template_that_cannot_be_filled_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.prompt_template = .* is invalid"):
        DataConfig("jsonl", prompt_template=template, text_pair_column="more")


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_answers_are_greedy_whatever_the_checkpoint_says(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(resolve_source("embedded:tiny-llama")).save_pretrained(tmp_path)
    GenerationConfig(num_beams=3, repetition_penalty=5.0, min_new_tokens=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path)).model
    prompt = tokenize_prompt("a fine film", tokenizer)
    pieces: list[str] = []

    expected = tokenizer.decode(greedy(model, prompt, 8), skip_special_tokens=True).strip()
    [answer] = generate(model, tokenizer, [prompt], max_new_tokens=8)
    assert answer.text == expected
    assert generate(model, tokenizer, [prompt], max_new_tokens=8, on_text=pieces.append) == [answer]
    assert not answer.is_complete
    last = greedy(model, prompt, 8)[-1]
    [ended] = generate(model, tokenizer, [prompt], max_new_tokens=8, stop_tokens=[last])
    assert ended.is_complete
    assert "".join(pieces).strip() == expected
    assert model.generation_config.num_beams == 3
