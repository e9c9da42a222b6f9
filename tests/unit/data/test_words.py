"""Texts of words with tags: what is read and refused, and the alignment of tags with tokens."""

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from fedsvd.config.compose import compose
from fedsvd.data.batches import collate, encode
from fedsvd.data.instructions import IGNORED
from fedsvd.data.loaders import load_data
from fedsvd.data.node_data import load_node_file
from fedsvd.data.partition import fingerprint
from fedsvd.data.rows import Columns
from fedsvd.data.targets import TAGS, count_labels
from fedsvd.data.text_files import TextLayout, read_texts
from fedsvd.data.words import locate_words
from fedsvd.errors import DataError, NodeDataError
from fedsvd.models.loading import load_tokenizer

OVERRIDES = ("model=tiny", "partition=iid", "model.task=token_classification", "data.text_column=tokens",
             "data.label_column=tags", "data.test_fraction=0.4")  # fmt: skip
WORDS, NAMES = ["Mr.", "Unbelievable-Smith", "met", "the", "BBC"], ["B-PER", "I-PER", "O", "O", "B-ORG"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("embedded:tiny")


def write(folder: Path, *rows: tuple[object, object]) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps({"tokens": words, "tags": tags}) + "\n" for words, tags in rows))
    return path


def load(path: Path) -> Dataset:
    config = compose([*OVERRIDES, f"data={path.suffix[1:]}", f"data.path={path}"])
    return load_data(config.data, 0, task=config.model.task).splits["train"]


def test_each_tag_is_at_the_first_token_of_its_word(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(WORDS, NAMES), (["fine", "."], ["O", "O"]), (None, ["O"]), ([], [])]
    train = load(write(tmp_path, *rows, (["He", "left"], ["O", "O"])))
    config = compose([*OVERRIDES, "data=jsonl"])
    batch = collate(list(encode(train, config.data, config.model, tokenizer)), tokenizer)
    names = train.features["label"].feature.names

    assert sorted(names) == ["B-ORG", "B-PER", "I-PER", "O"]
    for row, ids, labels in zip(train, batch["input_ids"], batch["labels"], strict=True):
        found = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in row["text"]]
        starts = [1 + sum(map(len, found[:i])) for i in range(len(found))]
        assert [ids[i] for i in starts] == [tokens[0] for tokens in found]
        assert [labels[i] for i in starts] == row["label"]
        assert int((labels != IGNORED).sum()) == len(starts)


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=6))
def test_first_tokens_are_those_of_transformers(tokenizer: PreTrainedTokenizerBase, drawn: list[str]) -> None:
    words = [word for word in drawn if not any(letter.isspace() for letter in word)]
    ids, positions = locate_words(words, tokenizer, 8)
    assert len(ids) <= 8

    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=8) if words else None
    if encoded is not None and encoded["input_ids"] == ids:
        owners = encoded.word_ids()
        assert positions == [owners.index(i) if i in owners else None for i in range(len(words))]


def test_words_behind_the_last_token_have_no_position(tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["unbelievable"] * 30
    ids, positions = locate_words(words, tokenizer, 16)

    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=16)
    assert ids == encoded["input_ids"]
    assert len(ids) == 16
    owners = encoded.word_ids()
    assert positions == [owners.index(i) if i in owners else None for i in range(30)]
    assert positions[-3:] == [None] * 3


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ("a b", ["O", "O"], "row 2: column 'tokens' holds 'a b': expected a list of words"),
        (["a", " "], ["O", "O"], "column 'tokens' holds a blank word"),
        (["a", None], ["O", "O"], "holds a list of words with a missing one"),
        (["a", "b"], ["O", "PER"], "column 'tags' holds the tag 'PER': expected O, B-TYPE or I-TYPE"),
        (["a", "b"], ["O"], "row 2: column 'tokens' holds 2 words and column 'tags' 1 tags: give one tag per word"),
    ],
)
def test_other_rows_are_refused(words: object, tags: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, (WORDS, NAMES), (words, tags)))
    assert message in str(caught.value)


def test_numbered_tags_and_nodes_own_files_have_the_runs_classes(tmp_path: Path) -> None:
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X", "I-X"]))})
    Dataset.from_dict({"tokens": [["a", "b"]] * 4, "tags": [[1, 2]] * 4}, features=features).save_to_disk(
        tmp_path / "own.arrow"
    )
    train = load(tmp_path / "own.arrow")
    assert (train["label"][0], count_labels(train)) == ([1, 2], {"O": 0, "B-X": len(train), "I-X": len(train)})

    columns, path = Columns("tokens", None, "tags", None, kind=TAGS), write(tmp_path, (WORDS, NAMES))
    node = load_node_file(str(path), columns, ["O", "B-ORG", "B-PER", "I-PER"])
    assert (node["text"][0], node["label"][0]) == (WORDS, [2, 3, 0, 0, 1])
    assert fingerprint(node) != fingerprint(node.map(lambda row: {"text": row["text"][::-1]}))
    with pytest.raises(NodeDataError, match="labels that the run does not know: B-PER, I-PER in 1 of 1 rows"):
        load_node_file(str(path), columns, ["O", "B-ORG"])
    assert read_texts(path, TextLayout(text=("tokens",), of_words=True))[0] == [WORDS]
    # Other texts are split at white space, as those of the command line are; a printed list is not.
    path.write_text('{"text": "Mr. Smith left"}\n')
    assert read_texts(path, TextLayout(of_words=True))[0] == ["Mr. Smith left"]
    path.write_text(json.dumps({"text": "['Mr.', 'Smith']"}) + "\n")
    with pytest.raises(DataError, match="expected a list of words"):
        read_texts(path, TextLayout(of_words=True))
