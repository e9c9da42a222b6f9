"""A run on classes whose names are marks in some language: every command shows them as they are."""

import csv
import importlib
import logging
from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.report import plots

CLASSES = ["$$", "$", "[/red]", "[bold]x", "_a", "中文", "a|b", "<script>", "esc\x1b[31m"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first plot fails."""
    folder = tmp_path_factory.mktemp("[bold]names")
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows([f"film {number} [/red] \x1b[2J", name] for number in range(8) for name in CLASSES)
    overrides = ["data=csv", f'data.path="{folder / "data.csv"}"', "privacy=none", "train.num_rounds=1"]
    federation = ["partition=iid", "partition.min_partition_size=1", "data.max_train_examples=null"]
    # A report imports the function by its name, and would keep the one that fails.
    importlib.import_module("fedsvd.report.run_sections")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "accuracy_figure", lambda *_: 1 / 0)
        directory = f'hydra.run.dir="{folder / "run"}"'
        assert main(["train", "experiment=smoke", *overrides, *federation, directory]) == 0
    return folder / "run"


@pytest.mark.slow
def test_run_finishes_although_a_plot_fails(run: Path) -> None:
    assert not (run / "plots" / "accuracy.png").exists()
    assert (run / "plots" / "partitions.png").is_file()
    assert (run / "adapter").is_dir()


def test_report_shows_the_names(run: Path) -> None:
    assert main(["report", str(run)]) == 0

    page, markdown = ((run / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "md"))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert r"esc\\x1b\[31m |" in markdown
    assert r"| \$\$ |" in markdown
    assert r"a\|b" in markdown
    assert "\x1b" not in page + markdown


def test_evaluation_and_predictions_show_the_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CLASSES[:-1])
    assert r"esc\x1b[31m" in printed
    assert main(["predict", str(run), "--text", "a [/red] text \x1b[2J"]) == 0
    assert r"← a [/red] text \x1b[2J" in capsys.readouterr().out


def test_model_card_shows_the_names(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "model"), "--merge"]) == 0
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in card.splitlines() if "classifies each text" in line]
    assert all(mark in line for mark in (r"\$\$", r"\[/red\]", r"\_a", "中文", r"a\|b", r"\<script>"))


def test_error_shows_a_path_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "[/red]\x1b[2J"]) != 0
    assert r"[/red]\x1b[2J" in capsys.readouterr().err


def test_failed_plot_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "accuracy_figure", lambda *_: 1 / 0)
        plots.plot_accuracy([], tmp_path / "accuracy.png")
    assert "plot_accuracy failed (ZeroDivisionError: division by zero)" in caplog.text
