"""Several runs in one process, whose files change between them."""

import json
from pathlib import Path

import pytest

import fedsvd
from fedsvd.config.compose import compose
from fedsvd.errors import ResumeError
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.runtime.changed_files import forget_changed_files
from fedsvd.runtime.data import load_run_data

SHORT = ["experiment=smoke", "data=csv", "partition=iid", "data.test_fraction=0.5", "train.local_steps=1"]


def write_rows(path: Path, count: int) -> None:
    rows = [f"{'good' if n % 2 else 'bad'} {count} {n},{n % 2}" for n in range(count)]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")


def num_examples(run: fedsvd.Run) -> int:
    clients = json.loads((run.folder / "partitions.json").read_text(encoding="utf-8"))["clients"]
    return sum(client["num_examples"] for client in clients)


@pytest.mark.slow
def test_a_second_run_reads_a_file_that_has_changed(tmp_path: Path) -> None:
    data = tmp_path / "notes.csv"
    write_rows(data, 200)
    first = fedsvd.train(*SHORT, f"data.path={data}", run_dir=tmp_path / "first")
    write_rows(data, 320)
    second = fedsvd.train(*SHORT, f"data.path={data}", run_dir=tmp_path / "second")

    assert [num_examples(first), num_examples(second)] == [100, 160]
    with pytest.raises(ResumeError, match="data"):
        fedsvd.train(f"resume={first.folder}", "train.num_rounds=3")


@pytest.mark.parametrize("changed", ["notes.csv", "public.txt"])
def test_files_are_read_again_only_if_one_has_changed(changed: str, tmp_path: Path) -> None:
    data, public = tmp_path / "notes.csv", tmp_path / "public.txt"
    write_rows(data, 200)
    public.write_text("\n".join(f"public text {n}" for n in range(200)), encoding="utf-8")
    config = compose([*SHORT, f"data.path={data}", f"model.public_text={public}"])

    def load() -> tuple[object, object]:
        forget_changed_files(config)
        return load_run_data(config), load_public_corpus(config.model.public_text)

    first, second = load(), load()
    assert first[0] is second[0]
    assert first[1] is second[1]
    text = (tmp_path / changed).read_text(encoding="utf-8")
    (tmp_path / changed).write_text(text.replace("text 7\n", "word 7\n").replace("good 200 1,", "fine 200 1,"), "utf-8")
    third = load()
    assert third[0] is not first[0]
    assert third[1] is not first[1]


def test_files_in_a_directory_are_watched(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    config = compose([*SHORT, "data=movie_reviews", f"model.source={model}"])
    forget_changed_files(config)
    first = load_public_corpus("embedded:bbc_news")
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    forget_changed_files(config)
    assert load_public_corpus("embedded:bbc_news") is not first
