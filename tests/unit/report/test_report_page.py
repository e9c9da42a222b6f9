"""``fedsvd report`` on run folders written by hand: what stands in the page, and what must not."""

import html.parser
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsvd.cli import main
from fedsvd.config.compose import compose, to_yaml
from fedsvd.report.document import Grid, Paragraph, Section, to_html, to_markdown
from fedsvd.report.loaded_runs import changed_keys, find_runs, read_run, varied_keys
from fedsvd.report.privacy_statement import composed, statement_markdown
from fedsvd.report.sweep_sections import labelled, report_sections

SITE = {"singular_values": [0.5, 0.25], "effective_rank": 1.9, "nuclear_norm": 0.75, "principal_angle": 0.0}


def row(number: int, accuracy: float | None, epsilon: float | None) -> dict[str, Any]:
    phases = dict.fromkeys(("seconds_train", "seconds_aggregate", "seconds_evaluate", "seconds_write"), 0.5)
    return {
        "server_round": number, "accuracy": accuracy, "loss": 0.6, "epsilon": epsilon, "clients_sampled": 2,
        "client_epsilons": {"0": epsilon, "1": None if epsilon is None else epsilon / 2}, "clients_used": 2,
        "clients_refused": {}, "skipped": False, "signal_to_noise": None, "clipped_share": 0.25, "bytes_down": 2048,
        "bytes_up": 1024, "sites": {"q": SITE} if number else {}, **phases,
    }  # fmt: skip


def write_run(folder: Path, *words: str, accuracy: float = 0.75, **record: Any) -> Path:
    """A run of two rounds, as `fedsvd train experiment=smoke` would leave it."""
    config = compose(["experiment=smoke", *words])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "overrides.json").write_text(json.dumps(["experiment=smoke", *words]), encoding="utf-8")
    private = config.privacy.name != "none"
    spent = [None, config.privacy.target_epsilon / 2, config.privacy.target_epsilon - 0.0049] if private else [None] * 3
    rows = [row(number, value, spent[number]) for number, value in enumerate((0.5, None, accuracy))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    facts = {"state": "finished", "parts_sent": ["B"], "parts_trained": ["B"], "versions": {"flwr": "1.41.0"}, **record}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    counts = [{"examples_by_class": {"negative": 9, "positive": 4}, "fingerprint": "ab" * 32}] * 2
    (folder / "partitions.json").write_text(json.dumps({"clients": counts}), encoding="utf-8")
    if private:
        client = {"num_examples": 13, "sample_rate": 0.5, "noise_multiplier": 1.25, "steps": 4, "epsilon": spent[2]}
        (folder / "privacy.json").write_text(json.dumps({"clients": {"0": client}}), encoding="utf-8")
    return folder


class Page(html.parser.HTMLParser):
    """Whatever a page would fetch, and the tags that it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given: Mapping[str, str | None] = dict(attrs)
        self.fetched += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "img":
            self.alternatives.append(given.get("alt") or "")


def test_a_report_tells_all_of_a_run_and_fetches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", "privacy.target_epsilon=3")

    assert main(["report", str(folder)]) == 0

    assert "report.html" in capsys.readouterr().out
    told, page = (folder / "report.md").read_text("utf-8"), Page((folder / "report.html").read_text("utf-8"))
    for part in (
        "| privacy.target_epsilon | 6 | 3 |", "| train.batch_size | 500 | 16 |", "flwr 1.41.0", "| seed | 0 |",
        "| 2 | 75.0% | 0.600 | 3.00 | 2/2 |", "| 0 | 9 | 4 | 13 | abababababababab… |", "0.5, 0.25", "25%",
        "| from the server to the clients | 6,144 | 3,072 |", "## Privacy statement", "ε = 3.00",
        "updates of: LoRA factor B",
    ):  # fmt: skip
        assert part in told, part
    assert page.tags.count("img") == 5
    assert all(page.alternatives)
    assert all(target.startswith(("data:image/svg+xml;base64,", "#s")) for target in page.fetched)
    assert "script" not in page.tags


def test_what_comes_from_outside_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script> | **x**"
    sections = [Section(evil, [Paragraph(evil), Grid([evil, "b"], [[evil, "1"]], evil)])]

    assert "script" not in Page(to_html(evil, sections)).tags
    told = to_markdown(evil, sections)
    assert "<script" not in told.replace("\\<", "")
    assert "| \\<script>alert(1)\\</script> \\| \\*\\*x\\*\\* | 1 |" in told


def sweep(folder: Path) -> Path:
    for method in ("fedsvd", "ffa_lora"):
        for epsilon in (1, 3):
            for seed in (0, 1):
                words = [f"method={method}", f"privacy.target_epsilon={epsilon}", f"seed={seed}"]
                accuracy = 0.5 + 0.1 * epsilon + 0.02 * seed - 0.05 * (method == "ffa_lora")
                write_run(folder / ",".join(words), *words, accuracy=accuracy)
    return folder


def test_a_sweep_is_told_by_method_and_budget(tmp_path: Path) -> None:
    runs = find_runs([sweep(tmp_path)])
    told = to_markdown("a sweep", report_sections(runs))

    assert list(labelled(runs)) == ["fedsvd", "ffa_lora"]
    # Means of 60 and 62 %, of 80 and 82 %; the standard error of two values is half their distance.
    assert "| fedsvd | 61.0 ± 1.0 (2) | 81.0 ± 1.0 (2) |" in told
    assert "| ffa_lora | 56.0 ± 1.0 (2) | 76.0 ± 1.0 (2) |" in told
    assert "8 runs were private" in told
    # 4 (1 − 0.0049) + 4 (3 − 0.0049) = 15.9608, rounded up.
    assert "ε = 15.97 at δ = 8e-05" in told
    assert varied_keys(runs)[0] == "seed"


def test_a_search_is_told_by_what_it_varied(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.2, 0.4, 0.8, 1.6)):
        words = [f"train.learning_rate={rate}", f"model.rank={2 + number}"]
        write_run(tmp_path / str(number), *words, accuracy=0.5 + 0.05 * number * (number < 4))
    told = to_markdown("a search", report_sections(find_runs([tmp_path])))

    assert "## What the search found" in told
    assert "train.learning\\_rate = 0.8" in told or "train.learning_rate = 0.8" in told


def test_runs_that_failed_or_were_cut_off_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", "seed=1", state="failed", reason="RunError: the model has diverged")
    write_run(tmp_path / "cut", "seed=2", state="running")
    told = to_markdown("three", report_sections(find_runs([tmp_path])))

    assert "1 failed: bad" in told
    assert "1 unfinished: cut" in told
    alone = to_markdown("one", report_sections([read_run(tmp_path / "bad", tmp_path)]))
    assert "This run is failed: RunError: the model has diverged" in alone


def test_without_privacy_the_statement_promises_nothing(tmp_path: Path) -> None:
    told = statement_markdown(write_run(tmp_path / "open", "privacy=none"))

    assert "no guarantee" in told
    assert "ε =" not in told
    assert composed(find_runs([tmp_path])) is None


def test_a_language_model_shows_what_it_answers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    sample = {"prompt": "2 + 2?", "expected": "4", "before": "two | two", "generated": "4"}
    (folder / "samples.json").write_text(json.dumps([sample]), encoding="utf-8")
    told = to_markdown("one", report_sections([read_run(folder, folder)]))

    assert "| 2 + 2? | 4 | two \\| two | 4 |" in told


def test_client_level_trusts_the_server_and_says_so(tmp_path: Path) -> None:
    told = statement_markdown(write_run(tmp_path / "level", "privacy=client_level"))

    assert "The unit of protection is one client with all its data" in told
    assert "The server is trusted" in told
    assert "the server adds the noise to the sum" in told


def test_secure_sums_hide_what_the_server_would_have_seen(tmp_path: Path) -> None:
    told = statement_markdown(write_run(tmp_path / "secure", "federation.secure_aggregation=true"))

    assert "| number of examples, sample rate, noise multiplier | no | hidden in the sum |" in told


def test_the_defaults_differ_in_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text(to_yaml(compose()), encoding="utf-8")

    assert changed_keys(read_run(folder, folder)) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a folder"),
        (["/nowhere"], "is not a folder"),
        (["--too", "x"], "no option --too"),
        (["x", "--to"], "--to needs a folder"),
    ],
)
def test_wrong_words_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) in (1, 2)
    assert said in capsys.readouterr().err


def test_folders_without_a_run_and_torn_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{", encoding="utf-8")
    assert main(["report", str(folder)]) == 1
    assert "metrics.jsonl cannot be read" in capsys.readouterr().err


def test_several_folders_go_into_the_one_that_is_named(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", "privacy=none")

    assert main(["report", str(one), str(two), "--to", str(tmp_path / "out")]) == 0

    told = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "ε = ∞" in told
