"""``fedsvd report`` on synthetic run directories: what the report contains, and what it must not contain."""

import html.parser
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import write_run

from fedsvd.cli import main
from fedsvd.config.compose import compose, to_yaml
from fedsvd.errors import RunError
from fedsvd.report.document import Paragraph, Section, TableBlock, to_html, to_markdown
from fedsvd.report.loaded_runs import changed_keys, find_runs, read_run, varied_keys
from fedsvd.report.privacy_statement import statement_markdown, total_privacy_cost
from fedsvd.report.sweep_sections import group_by_setting, report_sections


class Page(html.parser.HTMLParser):
    """Collects the URLs that a page loads or links to, its opening tags and the text alternatives of its images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        attributes: Mapping[str, str | None] = dict(attrs)
        self.urls += [str(attributes[key]) for key in ("src", "href") if key in attributes]
        if tag == "img":
            self.alternatives.append(attributes.get("alt") or "")


def test_a_report_on_one_run_is_self_contained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", "privacy.target_epsilon=3")

    assert main(["report", str(folder)]) == 0

    assert "report.html" in capsys.readouterr().out
    markdown, page = (folder / "report.md").read_text("utf-8"), Page((folder / "report.html").read_text("utf-8"))
    for part in (
        "| privacy.target_epsilon | 6 | 3 |", "| train.batch_size | 500 | 16 |", "flwr 1.41.0", "| seed | 0 |",
        "| 2 | 75.0% | 0.600 | 3.00 | 2/2 |", "| 0 | 9 | 4 | 13 | abababababababab… |", "0.5, 0.25", "25%",
        "| downlink (server to clients) | 6,144 | 3,072 |", "## Privacy statement", "ε = 3.00",
        "updates of: LoRA factor B",
    ):  # fmt: skip
        assert part in markdown, part
    assert page.tags.count("img") == 5
    assert all(page.alternatives)
    assert all(target.startswith(("data:image/svg+xml;base64,", "#s")) for target in page.urls)
    assert "script" not in page.tags


def test_untrusted_text_is_escaped() -> None:
    evil = "<script>alert(1)</script> | **x**"
    sections = [Section(evil, [Paragraph(evil), TableBlock([evil, "b"], [[evil, "1"]], evil)])]

    assert "script" not in Page(to_html(evil, sections)).tags
    markdown = to_markdown(evil, sections)
    assert "<script" not in markdown.replace("\\<", "")
    assert "| \\<script>alert(1)\\</script> \\| \\*\\*x\\*\\* | 1 |" in markdown


def write_sweep(folder: Path) -> Path:
    for method in ("fedsvd", "ffa_lora"):
        for epsilon in (1, 3):
            for seed in (0, 1):
                overrides = [f"method={method}", f"privacy.target_epsilon={epsilon}", f"seed={seed}"]
                accuracy = 0.5 + 0.1 * epsilon + 0.02 * seed - 0.05 * (method == "ffa_lora")
                write_run(folder / ",".join(overrides), *overrides, accuracy=accuracy)
    return folder


@pytest.mark.slow
def test_the_report_on_a_sweep_groups_by_method_and_budget(tmp_path: Path) -> None:
    runs = find_runs([write_sweep(tmp_path)])
    markdown = to_markdown("a sweep", report_sections(runs))

    assert list(group_by_setting(runs)) == ["fedsvd", "ffa_lora"]
    # Means of 60 and 62 %, of 80 and 82 %; the standard error of two values is half their difference.
    assert "| fedsvd | 61.0 ± 1.0 (2) | 81.0 ± 1.0 (2) |" in markdown
    assert "| ffa_lora | 56.0 ± 1.0 (2) | 76.0 ± 1.0 (2) |" in markdown
    assert "8 runs were private" in markdown
    # 4 (1 − 0.0049) + 4 (3 − 0.0049) = 15.9608, rounded up.
    assert "ε = 15.97 at δ = 8e-05" in markdown
    assert varied_keys(runs)[0] == "seed"


@pytest.mark.slow
def test_the_report_on_a_search_shows_the_varied_settings(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.2, 0.4, 0.8, 1.6)):
        overrides = [f"train.learning_rate={rate}", f"model.rank={2 + number}"]
        write_run(tmp_path / str(number), *overrides, accuracy=0.5 + 0.05 * number * (number < 4))
    markdown = to_markdown("a search", report_sections(find_runs([tmp_path])))

    assert "## Search results" in markdown
    assert "train.learning\\_rate = 0.8" in markdown or "train.learning_rate = 0.8" in markdown


@pytest.mark.slow
def test_failed_and_unfinished_runs_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", "seed=1", state="failed", reason="RunError: the model has diverged")
    write_run(tmp_path / "cut", "seed=2", state="running")
    markdown = to_markdown("three", report_sections(find_runs([tmp_path])))

    assert "1 failed: bad" in markdown
    assert "1 unfinished: cut" in markdown
    cut = read_run(tmp_path / "cut", tmp_path)
    cut = replace(cut, rows=[*cut.rows[:2], {**cut.rows[2], "accuracy": None}])
    assert "Only 50.0% at round 0." in to_markdown("cut", report_sections([cut]))
    single = to_markdown("one", report_sections([read_run(tmp_path / "bad", tmp_path)]))
    assert "This run failed: RunError: the model has diverged" in single


def test_repeated_runs_are_named_and_none_is_omitted(tmp_path: Path) -> None:
    # As earlier versions left sweeps that were extended by a seed.
    for name, seed in ((".", 0), ("seed=0", 0), ("seed=1", 1)):
        write_run(tmp_path / "sweep" / name, f"seed={seed}")
    (tmp_path / "sweep" / "sweep.json").write_text("{}", encoding="utf-8")
    runs = find_runs([tmp_path / "sweep"])

    assert [run.name for run in runs] == ["sweep", "seed=0", "seed=1"]
    assert "seed=0: the same settings and seed as another run" in to_markdown("sweep", report_sections(runs)[:1])


@pytest.mark.slow
def test_a_run_that_used_no_update_is_marked_and_never_the_best(tmp_path: Path) -> None:
    write_run(tmp_path / "good", accuracy=0.6)
    for state in ("finished", "failed"):
        metrics = write_run(tmp_path / state, f"seed={len(state)}", accuracy=0.9, state=state) / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"clients_used": 2', '"clients_used": 0'), encoding="utf-8")
    write_run(tmp_path / "diverged", "seed=2", accuracy=0.95, state="failed", reason="DivergedError: nan")
    runs = find_runs([tmp_path])
    markdown = to_markdown("four", report_sections(runs))

    assert [run.state for run in runs] == ["failed", "failed", "failed", "finished"]
    assert "The best single run reached 60.0%: good." in markdown
    assert "3 failed: diverged, failed, finished" in markdown
    assert "No client's update was used in failed, finished" in markdown
    single = to_markdown("one", report_sections([read_run(tmp_path / "finished", tmp_path)]))
    assert "This run failed: no client's update was used in any round" in single


def test_the_statement_says_that_classes_that_were_read_from_the_data_are_not_protected(tmp_path: Path) -> None:
    own, item = ["data=csv", "data.path=own.csv", "partition=iid"], "The names of the classes, which were read from"

    assert item in statement_markdown(write_run(tmp_path / "own", *own))
    assert item not in statement_markdown(write_run(tmp_path / "embedded"))
    assert item not in statement_markdown(write_run(tmp_path / "numbers", *own, "model.task=regression"))


def test_without_privacy_the_statement_gives_no_guarantee(tmp_path: Path) -> None:
    markdown = statement_markdown(write_run(tmp_path / "open", "privacy=none"))

    assert "no guarantee" in markdown
    assert "ε =" not in markdown
    assert total_privacy_cost(find_runs([tmp_path])) is None


def test_the_report_shows_generated_answers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    sample = {"prompt": "2 + 2?", "expected": "4", "before": "two | two", "generated": "4"}
    (folder / "samples.json").write_text(json.dumps([sample]), encoding="utf-8")
    markdown = to_markdown("one", report_sections([read_run(folder, folder)]))

    assert "| 2 + 2? | 4 | two \\| two | 4 |" in markdown


def test_the_client_level_statement_says_that_the_server_is_trusted(tmp_path: Path) -> None:
    markdown = statement_markdown(write_run(tmp_path / "level", "privacy=client_level"))
    # Clients that were never sampled would be missing.
    assert "Privacy spent by each client" not in markdown
    assert "Privacy spent by each client" in statement_markdown(write_run(tmp_path / "example"))

    assert "The unit of protection is one client with all its data" in markdown
    assert "The server is trusted" in markdown
    assert "the server adds the noise to the sum" in markdown


def test_with_secure_aggregation_the_statement_lists_counts_as_hidden(tmp_path: Path) -> None:
    secure, counts = "federation.secure_aggregation=true", "| number of examples, sample rate, noise multiplier | no |"
    uniform = statement_markdown(write_run(tmp_path / "uniform", secure, "federation.weighting=uniform"))
    weighted = statement_markdown(write_run(tmp_path / "weighted", secure))

    assert f"{counts} hidden in the sum |" in uniform
    assert f"{counts} the server learns their sum over the clients of a round; sums of different clients" in weighted


def test_a_default_run_has_no_changed_keys(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state="running")
    (folder / "config.yaml").write_text(to_yaml(compose()), encoding="utf-8")

    assert changed_keys(read_run(folder, folder)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a directory"),
        (["/nowhere"], "is not a directory"),
        (["--too", "x"], "no option --too"),
        (["x", "--to"], "--to needs a directory"),
    ],
)
def test_invalid_arguments_are_reported(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


def test_missing_runs_and_truncated_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "contains no run" in capsys.readouterr().err
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{", encoding="utf-8")
    assert main(["report", str(folder)]) == 1
    assert "metrics.jsonl cannot be read" in capsys.readouterr().err


def test_a_report_on_several_directories_is_written_to_the_target_directory(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", "privacy=none")

    assert main(["report", str(one), str(two), "--to", str(tmp_path / "out")]) == 0

    assert "ε = ∞" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_a_finished_run_whose_rows_end_early_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(RunError, match=r"metrics.jsonl ends with round 1, but the run has finished 2 rounds"):
        read_run(folder, tmp_path)
