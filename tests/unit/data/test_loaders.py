"""Tests of the embedded datasets and of user data in every format: sizes, splits and error messages."""

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from fedsvd import data
from fedsvd.config import DataConfig
from fedsvd.config.compose import compose
from fedsvd.data.loaders import load_data
from fedsvd.data.sentiment import _filter_snippets, _read, load_sentiment_domains
from fedsvd.errors import ConfigError, DataError
from fedsvd.models.loading import load_tokenizer

ROWS = [
    {
        "premise": f"It rains in town {i}.",
        "claim": f"It is dry {i}.",
        "verdict": "no" if i % 3 else "yes",
        "site": i % 2,
        "blank": " ",
    }
    for i in range(60)
]


def data_config(*overrides: str) -> DataConfig:
    return compose(list(overrides)).data


def texts_of(split: Dataset) -> list[str]:
    return list(split["text"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        # Training texts that are also in the test split are removed: 5 of R8's 5,485, 7 of the newsgroups' 11,293.
        ("reuters_r8", 5480, 2189, 8),
        ("newsgroups", 11286, 7528, 20),
        # 2,225 articles, 98 of them duplicates.
        ("bbc_news", 1701, 426, 5),
        ("sentiment_domains", 15150, 3939, 2),
    ],
)
def test_embedded_datasets_are_complete_split_and_shuffled(name: str, train: int, test: int, classes: int) -> None:
    splits = data.load(data_config(f"data={name}"), seed=0)

    assert (len(splits["train"]), len(splits["test"])) == (train, test)
    assert not set(texts_of(splits["train"])) & set(texts_of(splits["test"])) or name == "sentiment_domains"
    assert splits["train"].features["label"].num_classes == classes
    assert set(splits["train"]["label"]) == set(splits["test"]["label"]) == set(range(classes))
    # If the rows are shuffled, the first hundredth contains several classes.
    assert len(set(splits["train"]["label"][: len(splits["train"]) // 100])) >= min(classes, 4) - 1
    same_seed, other_seed = (data.load(data_config(f"data={name}"), seed=seed) for seed in (0, 1))
    assert texts_of(same_seed["train"]) == texts_of(splits["train"]) != texts_of(other_seed["train"])


def test_bbc_news_labels_match_their_texts() -> None:
    splits = data.load(data_config("data=bbc_news"), seed=0)
    names = splits["train"].features["label"].names
    topics = {
        text: names[label]
        for split in splits.values()
        for text, label in zip(split["text"], split["label"], strict=True)
    }
    assert next(topic for text, topic in topics.items() if text.startswith("Ad sales boost Time Warner")) == "business"


def test_sentiment_domains_are_split_by_document() -> None:
    splits = load_sentiment_domains(domains=["products"], test_fraction=0.3, min_abs_rating=0.5, seed=0)
    # A snippet of the source's first review.
    first = {"troubleshooting ad-2500 and ad-2600 no picture scrolling b/w."}
    matching = {text for split in splits.values() for text in texts_of(split) if "ad-2500 and ad-2600" in text}
    assert first <= matching
    assert 0.2 < len(splits["test"]) / (len(splits["test"]) + len(splits["train"])) < 0.4
    documents = {snippet.text: snippet.document for snippet in _filter_snippets(_read("products"), 0.5)}
    train, test = ({documents[text] for text in texts_of(splits[name])} for name in ("train", "test"))
    assert train
    assert test
    assert not train & test
    with pytest.raises(DataError, match="'films', which is unknown; allowed: movies, products"):
        load_sentiment_domains(domains=["films"], test_fraction=0.3, min_abs_rating=0.5, seed=0)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    dataset = Dataset.from_list(ROWS)
    paths = {name: tmp_path / f"rows.{name}" for name in ("csv", "jsonl", "parquet", "arrow")}
    dataset.to_csv(paths["csv"])
    paths["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    dataset.to_parquet(paths["parquet"])
    dataset.save_to_disk(paths["arrow"])
    return paths


COLUMNS = ["data.text_column=premise", "data.text_pair_column=claim", "data.label_column=verdict"]


@pytest.mark.parametrize("file_format", ["csv", "jsonl", "parquet", "arrow"])
def test_user_file_is_loaded_in_every_format(file_format: str, files: dict[str, Path]) -> None:
    config = data_config(f"data={file_format}", f"data.path={files[file_format]}", *COLUMNS)
    splits = data.load(config, seed=0, keep_column="site")

    assert (len(splits["train"]), len(splits["test"])) == (48, 12)
    assert splits["train"].features["label"] == ClassLabel(names=["no", "yes"])
    rows = {
        (row["text"], row["text_pair"], splits["train"].features["label"].int2str(row["label"]), row["site"])
        for split in splits.values()
        for row in split
    }
    assert rows == {(row["premise"], row["claim"], row["verdict"], row["site"]) for row in ROWS}


def test_user_files_with_a_test_file_and_integer_labels(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("test", 12)):
        rows = [{"text": f"{name} {i}", "label": i % 11 if name == "train" else i % 3} for i in range(count)]
        # Rows without a text are left out. Without a list of classes, -1 is a class like any other.
        Dataset.from_list([*rows, {"text": "x", "label": -1}, {"text": " ", "label": 1}]).to_csv(
            tmp_path / f"{name}.csv"
        )
    splits = data.load(
        data_config("data=csv", f"data.path={tmp_path / 'train.csv'}", f"data.test_path={tmp_path / 'test.csv'}"),
        seed=0,
    )

    assert (len(splits["train"]), len(splits["test"])) == (41, 13)
    # The shortest names come first.
    names = [*map(str, range(10)), "-1", "10"]
    assert splits["train"].features["label"].names == names
    assert {(row["text"], names[row["label"]]) for row in splits["test"]} == {
        *((f"test {i}", str(i % 3)) for i in range(12)),
        ("x", "-1"),
    }


def test_limits_leave_every_class_of_sorted_files(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [{"text": f"{name} {i}", "label": "abc"[i // 20]} for i in range(60)]
        Dataset.from_list(rows).to_csv(tmp_path / f"{name}.csv")
    paths = [f"data.path={tmp_path / 'train.csv'}", f"data.test_path={tmp_path / 'test.csv'}"]
    limits = ["data.max_train_examples=20", "data.max_test_examples=20", "partition.min_partition_size=1"]
    config = data_config("data=csv", *paths, *limits)
    first, same, other = (data.load(config, seed=seed) for seed in (0, 0, 1))

    for name in ("train", "test"):
        assert set(first[name]["label"]) == {0, 1, 2}
        assert texts_of(first[name]) == texts_of(same[name])
        assert set(texts_of(first[name])) != set(texts_of(other[name]))


def test_hub_dataset_is_loaded_from_a_local_copy(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        Dataset.from_list([{**row, "premise": f"{split} {i}"} for i, row in enumerate(ROWS)]).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    overrides = ["data=hub", f"data.path={tmp_path}", *COLUMNS]
    splits = data.load(data_config(*overrides, "data.test_split=validation"), seed=0)

    assert {text.split()[0] for text in texts_of(splits["train"])} == {"train"}
    assert {text.split()[0] for text in texts_of(splits["test"])} == {"validation"}
    with pytest.raises(DataError, match=r"no split 'test'; it has train, validation. Set data\.test_split"):
        data.load(data_config(*overrides), seed=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.label_column=verdic"], "no column 'verdic'; they have premise, claim, verdict, site, blank"),
        (["data.text_column=nothing"], "no column 'nothing'"),
        (["data.path=/nowhere.csv"], r"data\.path = '/nowhere\.csv' does not exist"),
        (["data.test_path=/nowhere.csv"], r"data\.test_path = '/nowhere\.csv' does not exist"),
        (["data.text_column=blank"], "no usable row.*60 with no text"),
        (["data.test_fraction=0.001"], "leaves a split of 60 texts empty"),
    ],
)
def test_invalid_user_data_raises(overrides: list[str], message: str, files: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=message):
        data.load(data_config("data=csv", f"data.path={files['csv']}", *COLUMNS, *overrides), seed=0)


def test_responses_do_not_need_a_label_column(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {i}?", "answer": f"It is {i}." if i else "", "topic": "ab"[i % 2]} for i in range(20)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "own.jsonl")
    overrides = ["data=jsonl", f"data.path={tmp_path / 'own.jsonl'}", "data.text_column=question"]
    overrides += ["data.response_column=answer", "model=tiny_llama"]

    for label, names in (("null", ["any"]), ("topic", ["a", "b"])):
        config = data_config(*overrides, f"data.label_column={label}")
        splits = load_data(config, seed=0, task="causal_lm").splits
        loaded = [row for split in splits.values() for row in split]
        # The row without an answer is dropped.
        assert sorted((row["text"], row["response"]) for row in loaded) == sorted(
            (row["question"], row["answer"]) for row in rows if row["answer"]
        )
        assert splits["train"].features["label"].names == names


def test_wrong_file_format_or_missing_path_raises(files: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"cannot be read as parquet"):
        data.load(data_config("data=parquet", f"data.path={files['csv']}", *COLUMNS), seed=0)
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        data.load(data_config("data=csv"), seed=0)


def test_test_labels_missing_from_training_raise(tmp_path: Path) -> None:
    for name, label in (("train", "a"), ("test", "c")):
        rows = [{"text": f"{name} {i}", "label": label if i % 2 else "b"} for i in range(10)]
        Dataset.from_list(rows).to_csv(tmp_path / f"{name}.csv")
    with pytest.raises(DataError, match="the labels a, b, the held-out texts also c"):
        data.load(
            data_config("data=csv", f"data.path={tmp_path / 'train.csv'}", f"data.test_path={tmp_path / 'test.csv'}"),
            seed=0,
        )


def test_text_pairs_are_tokenized_and_padded_as_pairs() -> None:
    tokenizer = load_tokenizer("embedded:tiny")
    pairs = Dataset.from_dict({"text": ["a film", "it"], "text_pair": ["a good one", "no"], "label": [1, 0]})

    batch = data.collate(list(data.tokenize(pairs, tokenizer, 16)), tokenizer)

    expected = tokenizer(["a film", "it"], ["a good one", "no"], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == expected[name].tolist()
    assert batch["token_type_ids"].max() == 1


@pytest.mark.slow
def test_by_column_creates_one_client_per_value_in_sorted_order() -> None:
    splits: DatasetDict = data.load(data_config("data=sentiment_domains"), seed=0)
    parts = data.partition(
        splits["train"], name="by_column", num_partitions=4, dirichlet_alpha=1, min_partition_size=1, seed=0
    )

    assert [set(part["domain"]) for part in parts] == [{"editorials"}, {"movies"}, {"products"}, {"tweets"}]
    assert sum(map(len, parts)) == len(splits["train"])
    assert [len(part) for part in parts] == [
        Counter(splits["train"]["domain"])[name] for name in sorted(set(splits["train"]["domain"]))
    ]
