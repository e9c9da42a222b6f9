"""A user's own files from the command line: train, evaluate, predict, report, and damaged run directories."""

import json
import shutil
from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.runs.folder import read_rows
from fedsvd.runtime.data import clear_data_cache

TRAIN = [
    "train", "experiment=smoke", "privacy=none", "partition=iid", "partition.min_partition_size=2", "plots=false",
    "train.num_rounds=1", "data.max_train_examples=null", "data.max_test_examples=20",
]  # fmt: skip
COLUMNS = ["data.text_column=note", "data.label_column=urgency"]


def notes(count: int, *, separator: str = ",", labels: tuple[str, ...] = ("low", "high")) -> str:
    lines = [f"note {n} was written{separator}{labels[n % len(labels)]}" for n in range(count)]
    return "\n".join([f"note{separator}urgency", *lines, ""])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file with a row without a label, whose held-out set, limits and test file must not leak."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.csv").write_text(notes(60) + "a note without a label,\n")
    (folder / "test.csv").write_text(notes(30))
    data = ["data=csv", f"data.path={folder / 'own.csv'}", f"data.test_path={folder / 'test.csv'}", *COLUMNS]
    assert main([*TRAIN, *data, f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder / "run"


def evaluate(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, object], str]:
    capsys.readouterr()
    assert main(["evaluate", str(run), *arguments, "--json"]) == 0
    printed = capsys.readouterr()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(printed.out, parse_constant=refuse), printed.err


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_rows_left_out_are_in_log_record_and_report(trained: Path, tmp_path: Path) -> None:
    own = trained.parent / "own.csv"
    assert f"'{own}': 1 of 61 rows are left out: 1 with no label (row 62)" in (trained / "train.log").read_text()
    [record] = json.loads((trained / "run.json").read_text())["left_out"]
    assert record["reasons"] == {"no label": {"count": 1, "rows": [62]}}
    assert main(["report", str(trained), "--to", str(tmp_path)]) == 0
    assert "| no label | 1 of 61 | 62 |" in (tmp_path / "report.md").read_text()


def test_named_data_are_scored_whole(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.csv"
    path.write_text(notes(50))
    for arguments in ([f"data.path={path}"], ["data=csv", f"data.path={path}"], [f"data.test_path={path}"]):
        result, said = evaluate(trained, capsys, *arguments)
        assert result["num_examples"] == 50
        assert said.startswith("scoring 50 texts: all rows of ")
        assert str(path) in said.splitlines()[0]
    assert evaluate(trained, capsys, f"data.path={path}", "data.max_test_examples=7")[0]["num_examples"] == 7

    own, said = evaluate(trained, capsys)
    assert own["num_examples"] == 20
    assert "held-out set of the run's own data" in said
    assert own["accuracy"] == pytest.approx(read_rows(trained / "metrics.jsonl")[-1]["accuracy"])
    result, said = evaluate(trained, capsys, f"data.path={trained.parent / 'own.csv'}")
    assert result["num_examples"] == 60
    assert "1 of 61 rows are left out: 1 with no label (row 62)" in said
    assert "the model was trained on rows of" in said


def test_one_class_other_formats_and_separators(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.csv").write_text(notes(10, labels=("high",)))
    result, _ = evaluate(trained, capsys, f"data.path={tmp_path / 'one.csv'}")
    classes = {score["name"]: score for score in result["classes"]}  # type: ignore[attr-defined]
    assert classes["high"]["num_examples"] == 10
    assert classes["low"]["recall"] is None

    (tmp_path / "semi.csv").write_text(notes(10, separator=";"))
    path = f"data.path={tmp_path / 'semi.csv'}"
    assert "the header holds ';' and no ',': set data.separator=';'" in error_of(capsys, "evaluate", str(trained), path)
    # As a shell passes data.separator=';'.
    assert evaluate(trained, capsys, path, "data.separator=;")[0]["num_examples"] == 10
    lines = [json.dumps({"note": f"n {n}", "urgency": "low"}) for n in range(9)]
    (tmp_path / "own.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert evaluate(trained, capsys, "data=jsonl", f"data.path={tmp_path / 'own.jsonl'}")[0]["num_examples"] == 9
    (tmp_path / "own.csv").write_text(notes(10, labels=("low", "urgent")))
    unknown = error_of(capsys, "evaluate", str(trained), f"data.path={tmp_path / 'own.csv'}")
    assert "the model knows low, high, the data have also urgent (rows 3, 5, 7, 9, 11 of" in unknown


def test_own_data_that_have_changed_are_not_scored_as_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, run = tmp_path / "own.csv", tmp_path / "run"
    own.write_text(notes(60))
    assert main([*TRAIN, "data=csv", f"data.path={own}", *COLUMNS, f"hydra.run.dir={run}"]) == 0
    assert evaluate(run, capsys)[0]["num_examples"] == 12
    assert evaluate(run, capsys, "data.max_test_examples=5")[0]["num_examples"] == 5

    own.write_text(notes(65))
    clear_data_cache()
    for arguments in ([], ["--best"], ["data.max_test_examples=5"]):
        error = error_of(capsys, "evaluate", str(run), *arguments)
        assert f"the held-out examples of {run} have changed from 12 examples (SHA-256 " in error
        assert " to 13 examples (SHA-256 " in error
        assert "Restore the data, or name a file, as in data=csv data.path=…" in error
    assert evaluate(run, capsys, "data=csv", f"data.path={own}")[0]["num_examples"] == 65
    # A run of an earlier version has no fingerprint.
    record = json.loads((run / "run.json").read_text())
    del record["held_out"]
    (run / "run.json").write_text(json.dumps(record))
    assert evaluate(run, capsys)[0]["num_examples"] == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.test_fraction=0.5"], "would score texts that the model was trained on"),
        (["seed=1"], "would score texts that the model was trained on"),
        (["data.evaluate_on=validation"], "would score texts that the model was trained on"),
        (["data.path=OWN", "data.test_fraction=0.5"], "data.test_fraction = 0.5 has no effect: all rows"),
        (["data.path=OWN", "data.text_pair_column=urgency"], "whose model expects single texts"),
        (["data=csv"], "data=csv needs data.path"),
        (["data=bbc_news", "data.path=OWN"], "has no effect with data=bbc_news"),
    ],
)
def test_evaluation_that_would_mislead_is_refused(
    arguments: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [argument.replace("OWN", str(trained.parent / "own.csv")) for argument in arguments]
    assert message in error_of(capsys, "evaluate", str(trained), *words)


def test_files_to_predict_have_the_users_columns(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "semi.csv").write_text(notes(6, separator=";") + ";low\n")
    file = str(tmp_path / "semi.csv")
    assert "set --separator=';'" in error_of(capsys, "predict", str(trained), "--file", file)
    assert main(["predict", str(trained), "--file", file, "--separator", ";", "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["text"] for line in printed.out.splitlines()] == [
        f"note {n} was written" for n in range(6)
    ]
    assert "1 of 7 rows are left out: 1 with no text (row 8)" in printed.err
    (tmp_path / "pages.txt").write_bytes("page one\fpage\u2028two\r\nlast line\n".encode())
    assert main(["predict", str(trained), "--file", str(tmp_path / "pages.txt"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [row["text"] for row in rows] == ["page one\fpage\u2028two", "last line"]


@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "config.yaml", "metrics.jsonl",
        "classes.json", "run.json", "partitions.json",
    ],
)  # fmt: skip
def test_damaged_directory_gives_one_line_that_names_the_file(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    content = (copy / name).read_bytes()
    target = tmp_path / "export"
    for size in (0, len(content) // 2):
        (copy / name).write_bytes(content[:size])
        commands = [
            ["predict", str(copy), "--text", "a"],
            ["evaluate", str(copy)],
            ["export", str(copy), "--to", str(target)],
            ["export", str(copy), "--to", str(target), "--merge"],
        ]
        if not name.startswith("adapter"):
            commands.append(["report", str(copy), "--to", str(tmp_path / "report")])
        for command in commands:
            assert Path(name).name in error_of(capsys, *command)
            assert not target.exists()


def test_damaged_privacy_record_is_not_read_as_no_privacy(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    (copy / "privacy.json").write_text('{"clients": {"0": {"eps')
    assert str(copy / "privacy.json") in error_of(capsys, "report", str(copy))
    assert str(copy / "privacy.json") in error_of(capsys, "export", str(copy), "--to", str(tmp_path / "export"))


def test_a_column_can_be_label_and_silo(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(notes(60))
    data = ["data=csv", f"data.path={tmp_path / 'own.csv'}", *COLUMNS]
    run = tmp_path / "run"
    by_column = ["partition=by_column", "partition.column=urgency", f"hydra.run.dir={run}"]
    assert main([*TRAIN, *data, *by_column]) == 0
    counts = [client["examples_by_class"] for client in json.loads((run / "partitions.json").read_text())["clients"]]
    assert counts == [{"low": 24, "high": 0}, {"low": 0, "high": 24}]
