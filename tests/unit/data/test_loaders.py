"""Every data set that can be had here, and a user's own in every format: shapes, splits, and clear errors."""

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from fedsvd import data
from fedsvd.config import DataConfig
from fedsvd.config.compose import compose
from fedsvd.data.sentiment import load_sentiment_domains
from fedsvd.errors import ConfigError, DataError
from fedsvd.models.loading import load_tokenizer

ROWS = [
    {
        "premise": f"It rains in town {i}.",
        "claim": f"It is dry {i}.",
        "verdict": "no" if i % 3 else "yes",
        "site": i % 2,
    }
    for i in range(60)
]


def configured(*overrides: str) -> DataConfig:
    return compose(list(overrides)).data


def texts_of(side: Dataset) -> list[str]:
    return list(side["text"])


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        # Training texts that are also held out are left out: 5 of R8's 5,485, 7 of the newsgroups' 11,293.
        ("reuters_r8", 5480, 2189, 8),
        ("newsgroups", 11286, 7528, 20),
        # 2,225 stories, of which 98 occur twice.
        ("bbc_news", 1701, 426, 5),
        ("sentiment_domains", 15150, 3939, 2),
    ],
)
def test_embedded_sets_are_whole_split_and_shuffled(name: str, train: int, test: int, classes: int) -> None:
    sides = data.load(configured(f"data={name}"), seed=0)

    assert (len(sides["train"]), len(sides["test"])) == (train, test)
    assert not set(texts_of(sides["train"])) & set(texts_of(sides["test"])) or name == "sentiment_domains"
    assert sides["train"].features["label"].num_classes == classes
    assert set(sides["train"]["label"]) == set(sides["test"]["label"]) == set(range(classes))
    # Shuffled: the first hundredth already holds several classes.
    assert len(set(sides["train"]["label"][: len(sides["train"]) // 100])) >= min(classes, 4) - 1
    again, other = (data.load(configured(f"data={name}"), seed=seed) for seed in (0, 1))
    assert texts_of(again["train"]) == texts_of(sides["train"]) != texts_of(other["train"])


def test_a_topic_is_that_of_its_text() -> None:
    sides = data.load(configured("data=bbc_news"), seed=0)
    names = sides["train"].features["label"].names
    topics = {
        text: names[label] for side in sides.values() for text, label in zip(side["text"], side["label"], strict=True)
    }
    assert next(topic for text, topic in topics.items() if text.startswith("Ad sales boost Time Warner")) == "business"


def test_snippets_of_one_review_are_on_one_side() -> None:
    sides = load_sentiment_domains(domains=["products"], test_fraction=0.3, min_abs_rating=0.5, seed=0)
    # The first review's snippets, as its source numbers them.
    first = {"troubleshooting ad-2500 and ad-2600 no picture scrolling b/w."}
    beside = {text for side in sides.values() for text in texts_of(side) if "ad-2500 and ad-2600" in text}
    assert first <= beside
    assert 0.2 < len(sides["test"]) / (len(sides["test"]) + len(sides["train"])) < 0.4
    with pytest.raises(DataError, match="'films', which is not known; allowed: movies, products"):
        load_sentiment_domains(domains=["films"], test_fraction=0.3, min_abs_rating=0.5, seed=0)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    whole = Dataset.from_list(ROWS)
    paths = {name: tmp_path / f"rows.{name}" for name in ("csv", "jsonl", "parquet", "arrow")}
    whole.to_csv(paths["csv"])
    paths["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    whole.to_parquet(paths["parquet"])
    whole.save_to_disk(paths["arrow"])
    return paths


COLUMNS = ["data.text_column=premise", "data.text_pair_column=claim", "data.label_column=verdict"]


@pytest.mark.parametrize("file_format", ["csv", "jsonl", "parquet", "arrow"])
def test_ones_own_file_in_every_format(file_format: str, files: dict[str, Path]) -> None:
    config = configured(f"data={file_format}", f"data.path={files[file_format]}", *COLUMNS)
    sides = data.load(config, seed=0, keep_column="site")

    assert (len(sides["train"]), len(sides["test"])) == (48, 12)
    assert sides["train"].features["label"] == ClassLabel(names=["no", "yes"])
    found = {
        (row["text"], row["text_pair"], sides["train"].features["label"].int2str(row["label"]), row["site"])
        for side in sides.values()
        for row in side
    }
    assert found == {(row["premise"], row["claim"], row["verdict"], row["site"]) for row in ROWS}


def test_a_held_out_file_and_numbered_labels(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("test", 12)):
        rows = [{"text": f"{name} {i}", "label": i % 11 if name == "train" else i % 3} for i in range(count)]
        # A label of -1, as in hidden tests, and an empty text are no examples.
        Dataset.from_list([*rows, {"text": "x", "label": -1}, {"text": " ", "label": 1}]).to_csv(
            tmp_path / f"{name}.csv"
        )
    sides = data.load(
        configured("data=csv", f"data.path={tmp_path / 'train.csv'}", f"data.test_path={tmp_path / 'test.csv'}"), seed=0
    )

    assert (len(sides["train"]), len(sides["test"])) == (40, 12)
    assert sides["train"].features["label"].names == [str(number) for number in range(11)]
    assert {(row["text"], row["label"]) for row in sides["test"]} == {(f"test {i}", i % 3) for i in range(12)}


def test_a_hub_data_set_is_loaded_by_its_real_loader_from_a_local_copy(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        Dataset.from_list([{**row, "premise": f"{split} {i}"} for i, row in enumerate(ROWS)]).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    words = ["data=hub", f"data.path={tmp_path}", *COLUMNS]
    sides = data.load(configured(*words, "data.test_split=validation"), seed=0)

    assert {text.split()[0] for text in texts_of(sides["train"])} == {"train"}
    assert {text.split()[0] for text in texts_of(sides["test"])} == {"validation"}
    with pytest.raises(DataError, match=r"no split 'test'; it has train, validation. Set data\.test_split"):
        data.load(configured(*words), seed=0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.label_column=verdic"], "no column 'verdic'; they have premise, claim, verdict, site"),
        (["data.text_column=nothing"], "no column 'nothing'"),
        (["data.path=/nowhere.csv"], r"data\.path = '/nowhere\.csv' is not there"),
        (["data.test_path=/nowhere.csv"], r"data\.test_path = '/nowhere\.csv' is not there"),
        (["data.text_column=site"], "no row with both a text and a label"),
        (["data.test_fraction=0.001"], "leaves one side empty"),
    ],
)
def test_what_is_wrong_with_ones_own_data_is_named(overrides: list[str], said: str, files: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=said):
        data.load(configured("data=csv", f"data.path={files['csv']}", *COLUMNS, *overrides), seed=0)


def test_free_answers_need_no_class(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {i}?", "answer": f"It is {i}." if i else "", "topic": "ab"[i % 2]} for i in range(20)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "own.jsonl")
    words = ["data=jsonl", f"data.path={tmp_path / 'own.jsonl'}", "data.text_column=question"]
    words += ["data.response_column=answer", "model=tiny_llama"]

    for label, names in (("null", ["any"]), ("topic", ["a", "b"])):
        sides = data.load(configured(*words, f"data.label_column={label}"), seed=0)
        found = [row for side in sides.values() for row in side]
        # The row without an answer is left out.
        assert sorted((row["text"], row["response"]) for row in found) == sorted(
            (row["question"], row["answer"]) for row in rows if row["answer"]
        )
        assert sides["train"].features["label"].names == names


def test_a_file_that_is_not_what_it_should_be_is_named(files: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"cannot be read as parquet"):
        data.load(configured("data=parquet", f"data.path={files['csv']}", *COLUMNS), seed=0)
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        data.load(configured("data=csv"), seed=0)


def test_labels_that_training_does_not_hold_are_named(tmp_path: Path) -> None:
    for name, label in (("train", "a"), ("test", "c")):
        rows = [{"text": f"{name} {i}", "label": label if i % 2 else "b"} for i in range(10)]
        Dataset.from_list(rows).to_csv(tmp_path / f"{name}.csv")
    with pytest.raises(DataError, match="the labels a, b, the held-out ones also c"):
        data.load(
            configured("data=csv", f"data.path={tmp_path / 'train.csv'}", f"data.test_path={tmp_path / 'test.csv'}"),
            seed=0,
        )


def test_pairs_are_tokenised_as_pairs_and_padded_together() -> None:
    tokenizer = load_tokenizer("embedded:tiny")
    pairs = Dataset.from_dict({"text": ["a film", "it"], "text_pair": ["a good one", "no"], "label": [1, 0]})

    batch = data.collate(list(data.tokenize(pairs, tokenizer, 16)), tokenizer)

    expected = tokenizer(["a film", "it"], ["a good one", "no"], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == expected[name].tolist()
    assert batch["token_type_ids"].max() == 1


def test_a_fingerprint_covers_the_second_text() -> None:
    pairs = [Dataset.from_dict({"text": ["a"], "text_pair": [other], "label": [0]}) for other in ("b", "c")]
    assert data.fingerprint(pairs[0]) != data.fingerprint(pairs[1])


def test_a_column_makes_a_client_of_each_value_in_the_order_of_names() -> None:
    sides: DatasetDict = data.load(configured("data=sentiment_domains"), seed=0)
    parts = data.partition(
        sides["train"], name="by_column", num_partitions=4, dirichlet_alpha=1, min_partition_size=1, seed=0
    )

    assert [set(part["domain"]) for part in parts] == [{"editorials"}, {"movies"}, {"products"}, {"tweets"}]
    assert sum(map(len, parts)) == len(sides["train"])
    assert [len(part) for part in parts] == [
        Counter(sides["train"]["domain"])[name] for name in sorted(set(sides["train"]["domain"]))
    ]
