"""Causal language models: tokenized prompts and answers, losses, exact match, packing and generation."""

import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedsvd import data
from fedsvd.config import DataConfig
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DataError
from fedsvd.models.loading import load_causal_lm, load_classifier, load_tokenizer
from fedsvd.training.causal_lm import score_answers
from fedsvd.training.evaluation import evaluate
from fedsvd.training.generation import generate
from fedsvd.training.loop import model_inputs
from fedsvd.training.objectives import make_objective

OBJECTIVE = make_objective("causal_lm")
TEMPLATE = "Review: {text}\nIs it {choices}?"
TEXTS = ["a fine film", "dull", "the worst of the three, by a mile", "see it twice"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("embedded:tiny-llama")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_causal_lm("embedded:tiny-llama").model


def rows(texts: list[str] = TEXTS, **more: list[str]) -> Dataset:
    label = ClassLabel(names=["bad", "good"])
    features = Features({"text": Value("string"), "label": label, **dict.fromkeys(more, Value("string"))})
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(len(texts))], **more}, features=features)


def encoded(tokenizer: PreTrainedTokenizerBase, max_length: int = 64, **more: list[str]) -> Dataset:
    config = DataConfig("movie_reviews", prompt_template=TEMPLATE)
    return data.tokenize_instructions(
        data.build_instructions(rows(**more), config, tokenizer, False), tokenizer, max_length, chat_template=False
    )


def answer_tokens(example: dict[str, list[int]]) -> list[int]:
    return [token for token in example["labels"] if token != -100]


def test_labels_are_the_answer_and_its_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    first = encoded(tokenizer)[0]

    assert tokenizer.decode(first["input_ids"]) == "[CLS] review : a fine film is it bad, good? bad [SEP]"
    assert tokenizer.decode(answer_tokens(first)) == "bad [SEP]"
    assert len(first["labels"]) == len(first["input_ids"])


def test_free_answers_replace_class_names(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = encoded(tokenizer, response=["go see it", "stay home", "no", "yes"])

    assert [tokenizer.decode(answer_tokens(row)) for row in examples][:2] == ["go see it [SEP]", "stay home [SEP]"]


@pytest.mark.parametrize("max_length", [8, 12, 16])
def test_long_texts_are_truncated_at_their_end(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    examples = encoded(tokenizer, max_length)

    assert max(len(row["input_ids"]) for row in examples) <= max_length
    assert all(tokenizer.decode(answer_tokens(row)) in ("bad [SEP]", "good [SEP]") for row in examples)
    if max_length == 16:
        # The question is not truncated.
        assert tokenizer.decode(examples[2]["input_ids"]) == (
            "[CLS] review : the worst of the three is it bad, good? bad [SEP]"
        )


def test_a_long_answer_is_truncated_to_half_of_the_length(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encoded(tokenizer, 20, response=["so " * 100] * 4)[2]

    assert len(row["input_ids"]) == 20
    assert 10 <= len(answer_tokens(row)) < 20


def test_losses_are_means_over_answer_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    batch = data.collate(list(encoded(tokenizer, response=["go see it", "no", "stay at home", "yes"])), tokenizer)
    logits = model(**model_inputs(batch)).logits
    expected = [
        functional.cross_entropy(row[:-1], labels[1:], ignore_index=-100)
        for row, labels in zip(logits, batch["labels"], strict=True)
    ]

    torch.testing.assert_close(OBJECTIVE.losses(model, batch), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_perplexity_weighs_tokens_equally(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = encoded(tokenizer, response=["go see it", "no", "stay at home", "yes"])
    batch = data.collate(list(examples), tokenizer)
    logits = model(**model_inputs(batch)).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    result = evaluate(model, data.eval_batches(examples, 3, tokenizer), torch.device("cpu"), OBJECTIVE)

    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.num_examples == 4


def test_exact_match_agrees_with_greedy_decoding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [row["input_ids"][: row["labels"].index(next(t for t in row["labels"] if t != -100))]
               for row in encoded(tokenizer)]  # fmt: skip
    with torch.no_grad():
        generated = [
            model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, use_cache=True)[0, len(prompt) :]
            for prompt in prompts
        ]
    wrong = generated[3].clone()
    wrong[-1] += 1
    answers = [*generated[:3], wrong]
    examples = [
        {"input_ids": [*prompt, *answer.tolist()], "labels": [-100] * len(prompt) + answer.tolist()}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch = data.collate(examples, tokenizer)

    assert score_answers(model, model_inputs(batch), batch["labels"]).exact.tolist() == [True, True, True, False]


def test_exact_match_is_about_the_last_answer_of_a_conversation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    first, second = (tokenizer(text)["input_ids"] for text in TEXTS[:2])
    wrong = [7, 8]
    with torch.no_grad():
        prompt = [*first, *wrong, *second]
        generated = model.generate(torch.tensor([prompt]), max_new_tokens=2, do_sample=False)[0, len(prompt) :].tolist()
    conversations = [[*prompt, *generated], [*first, *wrong, *second, *wrong]]
    in_answer = [*[False] * len(first), True, True, *[False] * len(second), True, True]
    examples = [
        {"input_ids": ids, "labels": [token if inside else -100 for token, inside in zip(ids, in_answer, strict=True)]}
        for ids in conversations
    ]
    batch = data.collate(examples, tokenizer)

    answers = score_answers(model, model_inputs(batch), batch["labels"])

    assert answers.counts.tolist() == [4, 4]
    assert answers.exact.tolist() == [True, False]
    assert answers.correct.tolist() == [[False, False, True, True], [False, False, False, False]]


def test_plain_text_is_measured_by_its_share_of_predicted_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        # Make two tokens predictable.
        sequences[0] += model.generate(torch.tensor([sequences[0]]), max_new_tokens=2, do_sample=False)[0, -2:].tolist()
        predicted = [model(torch.tensor([ids])).logits[0, :-1].argmax(-1).tolist() for ids in sequences]
    hits = [token == ids[i + 1] for ids, row in zip(sequences, predicted, strict=True) for i, token in enumerate(row)]
    examples = Dataset.from_dict({"input_ids": sequences, "labels": sequences})

    batches = data.eval_batches(examples, 3, tokenizer)
    result = evaluate(model, batches, torch.device("cpu"), make_objective("plain_text"))

    assert sum(hits) >= 2
    assert (result.accuracy, result.num_examples) == (sum(hits) / len(hits), 4)


def test_packed_sequences_are_independent(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = encoded(tokenizer)
    unpacked = data.collate(list(examples), tokenizer)
    separate = score_answers(model, model_inputs(unpacked), unpacked["labels"])

    packs = data.pack_sequences(examples, max_length=40)
    batch = data.collate(list(packs), tokenizer)
    packed = score_answers(model, model_inputs(batch), batch["labels"])

    assert 1 < len(packs) < len(examples)
    assert "attention_mask" not in batch
    torch.testing.assert_close(packed.losses.sum(), separate.losses.sum(), atol=1e-4, rtol=1e-5)
    assert packed.counts.sum() == separate.counts.sum()


def test_batched_generation_matches_single_prompts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [tokenizer(text)["input_ids"][:-1] for text in TEXTS]

    batched = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=3)

    assert batched == [generate(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    pieces: list[str] = []
    generate(model, tokenizer, prompts[:1], max_new_tokens=6, on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces).strip() == batched[0].text


def test_chat_templates_wrap_prompts(tokenizer: PreTrainedTokenizerBase) -> None:
    config = DataConfig("movie_reviews", prompt_template=TEMPLATE)
    with pytest.raises(DataError, match="no chat template"):
        data.build_instructions(rows(), config, tokenizer, True)

    with_template = load_tokenizer("embedded:tiny-llama")
    with_template.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<assistant> "
    [first, *_] = data.build_instructions(rows(), config, with_template, True)

    assert first.prompt == "<user> Review: a fine film\nIs it bad, good? <assistant> "
    assert first.answer == "bad"


@pytest.mark.parametrize("template", ["no place", "{text} {text}", "{text} {label}", "{text", "{text!r}"])
def test_invalid_prompt_templates_are_rejected(template: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.prompt_template"):
        DataConfig("movie_reviews", prompt_template=template)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.packing=true"], r"train\.packing = True is not possible"),
        (["train.packing=true", "model=tiny_llama"], "protect a packed sequence"),
        (["data=csv", "data.label_column=null"], r"name the column of the classes"),
        (["data=csv", "data.label_column=null", "data.response_column=answer"], r"use model\.task=causal_lm"),
        (["model=tiny_llama", "model.max_length=4"], "no room for a prompt"),
    ],
)
def test_incompatible_settings_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides)


def test_a_checkpoint_without_a_language_model_head_is_rejected(tmp_path) -> None:  # type: ignore[no-untyped-def]
    load_classifier("embedded:tiny-llama", num_labels=2, seed=0).model.model.save_pretrained(tmp_path)
    load_tokenizer("embedded:tiny-llama").save_pretrained(tmp_path)
    from fedsvd.errors import ModelError

    with pytest.raises(ModelError, match="not a causal language model"):
        load_causal_lm(str(tmp_path))


def test_uniform_predictions_have_the_perplexity_of_the_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    uniform = load_causal_lm("embedded:tiny-llama").model
    torch.nn.init.zeros_(uniform.get_output_embeddings().weight)

    result = evaluate(uniform, data.eval_batches(encoded(tokenizer), 4, tokenizer), torch.device("cpu"), OBJECTIVE)

    assert math.exp(result.loss) == pytest.approx(len(tokenizer), rel=1e-3)
