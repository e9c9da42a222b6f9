"""Keys that the chosen dataset ignores, and the separator as a key."""

import re
from pathlib import Path

import pytest

from fedsvd.commands.run_directory import prepare_run
from fedsvd.config.compose import compose, compose_audit, read_config, to_yaml
from fedsvd.errors import ConfigError
from fedsvd.launch.sweep import plan_sweep

IGNORED = [
    ([], "data.path=own.csv", "choose data=csv, data=jsonl, data=parquet, data=arrow or data=hub, or leave"),
    ([], "data.test_path=own.csv", "data=node"),
    ([], "data.text_column=note", "data=hub or data=node"),
    ([], "data.domains=[movies]", "choose data=sentiment_domains, or leave data.domains out"),
    (["data=reuters_r8"], "data.test_fraction=0.5", "ignores it"),
    (["data=csv", "data.path=a.csv"], "data.domains=[movies]", "data=csv, which ignores it"),
    (["data=csv", "data.path=a.csv"], "data.subset=mnli", "choose data=hub"),
    (["data=csv", "data.path=a.csv"], "data.labels=[a,b]", "choose data=node"),
    (["data=csv", "data.path=a.csv"], "data.min_abs_rating=1.5", "data=movie_reviews or data=sentiment_domains"),
    (["data=parquet", "data.path=a.parquet"], "data.separator=';'", "choose data=csv or data=node"),
    (["data=hub", "data.path=id"], "data.test_path=a.csv", "data=hub, which ignores it"),
    (["data=node", "data.labels=[a,b]"], "data.path=a.csv", "data=node, which ignores it"),
]


@pytest.mark.parametrize(("dataset", "override", "remedy"), IGNORED)
def test_key_that_the_dataset_ignores_is_refused(dataset: list[str], override: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([*dataset, override])
    assert f"{override.partition('=')[0]} = " in str(caught.value)
    assert "has no effect with data=" in str(caught.value)
    assert remedy in str(caught.value)
    if not dataset:
        with pytest.raises(ConfigError, match="has no effect"):
            compose_audit([override])


def test_a_column_of_answers_is_refused_for_a_new_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["data=csv", "data.path=a.csv", "data.response_column=answer"]
    message = (
        r"data.response_column = answer has no effect with model.task = sequence_classification: set it to null, or "
        r"use model.task=causal_lm"
    )
    calls = (
        compose_audit,
        prepare_run,
        lambda words: plan_sweep([*words, "seed=0,1"]),
        lambda words: plan_sweep([*words, "model=tiny_llama,tiny"]),
    )
    monkeypatch.chdir(tmp_path)
    for call in calls:
        with pytest.raises(ConfigError, match=message):
            call(own)
    assert not list(tmp_path.rglob("*.json"))
    assert compose([*own, "model=tiny_llama"]).data.response_column == "answer"
    # It comes with the dataset.
    assert compose(["data=dolly"]).data.response_column == "response"
    assert compose(["data=dolly", "data.response_column=null"]).data.response_column is None


FILE = ["data=csv", "data.path=a.csv"]
HUB = ["data=hub", "data.path=id"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*FILE, "data.test_path=b.csv"], "data.test_path = 'b.csv', whose texts are held out: leave one of them out"),
        (HUB, "data.test_split = 'test', whose texts are held out: leave it out, or set data.test_split=null"),
    ],
)
def test_a_fraction_to_hold_out_is_refused_where_other_texts_are_held_out(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*overrides, "data.test_fraction=0.4"]
    for call in (compose_audit, prepare_run, lambda words: plan_sweep([*words, "seed=0,1"])):
        with pytest.raises(ConfigError, match=re.escape(f"data.test_fraction = 0.4 has no effect with {message}")):
            call(words)
    # A run of an earlier version.
    assert compose(words).data.test_fraction == 0.4


@pytest.mark.parametrize(
    "overrides",
    [
        [*FILE, "data.test_fraction=0.4"],
        [*FILE, "data.test_path=b.csv", "data.test_fraction=0.2"],
        [*HUB, "data.test_split=null", "data.test_fraction=0.4"],
        ["data=dolly", "data.test_fraction=0.4"],
        # The fraction comes with the dataset.
        ["data=dolly", "data.test_split=test"],
        ["data=movie_reviews", "data.test_fraction=0.4"],
    ],
)
def test_a_fraction_to_hold_out_is_a_key_of_data_without_other_held_out_texts(overrides: list[str]) -> None:
    compose_audit(overrides)


@pytest.mark.parametrize(
    "option", ["dolly", "snli", "glue/mnli", "glue/sst2", "bbc_news", "node", "arrow", "newsgroups"]
)
def test_options_set_no_key_that_they_ignore(option: str) -> None:
    assert compose([f"data={option}"]).data.separator == ","


@pytest.mark.parametrize("value", ["''", "';;'", "'\"'", "comma"])
def test_separator_is_one_character(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.separator = .* is invalid: expected one character"):
        compose(["data=csv", "data.path=a.csv", f"data.separator={value}"])


@pytest.mark.parametrize(
    "overrides", ["data=csv data.path=a.csv data.separator=';'", "data=csv \"data.separator=';'\""]
)
def test_separator_may_have_lost_its_quotation_marks(overrides: str) -> None:
    """A shell removes them, and Hydra needs them."""
    assert compose(overrides).data.separator == ";"


def test_directories_of_earlier_versions_can_be_read(tmp_path: Path) -> None:
    text = to_yaml(compose(["data=csv", "data.path=a.csv"]))
    path = tmp_path / "config.yaml"
    # Before the key separator existed, and before ignored keys were refused.
    path.write_text(text.replace("  separator: ','\n", "").replace("  subset: null\n", "  subset: mnli\n"))
    assert "\n  separator" not in path.read_text()
    config = read_config(path)
    assert (config.data.separator, config.data.subset) == (",", "mnli")
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match=str(path)):
        read_config(path)
