"""The rows beside docs/comparison.md: the page's commands repeat them, and its first table is computed from them."""

import functools
import itertools
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from documented import ROOT, commands

from fedsvd.comparison import final_jobs, overrides
from fedsvd.comparison.tuning import tune
from fedsvd.comparison.workers import Job
from fedsvd.config import Config
from fedsvd.config.compose import compose, compose_compare

PAGE, README = ROOT / "docs" / "comparison.md", ROOT / "README.md"
Row = Mapping[str, Any]
# What differs between the runs of one contender, task and budget.
VARIED = ("seed=", "train.learning_rate=", "data.evaluate_on=")
# The names of contenders whose rows have an earlier name.
EARLIER = {"best": "fedsvd_pivot_batch_250"}
DOMAINS = frozenset({"data=sentiment_domains", "partition=by_column"})


def rows(name: str) -> list[dict[str, Any]]:
    path = PAGE.parent / "comparison" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def job_of(row: Row) -> Job:
    contender = EARLIER.get(row["contender"], row["contender"])
    factor = row.get("clipping_factor", 1.0)
    return Job(row["phase"], row["task"], contender, row["epsilon"], row["seed"], row["learning_rate"], factor)


@functools.cache
def composed(items: tuple[str, ...]) -> Config:
    return compose(list(items))


def are_equal(first: Sequence[str], second: Sequence[str]) -> bool:
    """Return whether two lists of overrides are the same run, though their order or what they repeat may differ."""
    if list(first) == list(second):
        return True
    varied, shared = zip(*(split(items) for items in (first, second)), strict=True)
    return varied[0] == varied[1] and composed(shared[0]) == composed(shared[1])


def split(items: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    return sorted(item for item in items if item.startswith(VARIED)), tuple(
        item for item in items if not item.startswith(VARIED)
    )


def comparisons() -> Iterator[tuple[str, list[str]]]:
    """Yield each command of fedsvd compare whose runs the page reports, and the name of the file with its rows."""
    for words in commands(PAGE):
        if words[:2] != ["fedsvd", "compare"] or "run_dir=runs/compare" in words:
            continue
        is_first = "experiment=compare_first_token" in words
        has_factors = {"train.num_rounds=70", "model.target_modules=[query,value]"} & {*words}
        yield "results" if is_first else "factors" if has_factors else "pooled", words[2:]


def repeated(words: Sequence[str], measured: Sequence[Row]) -> list[int]:
    """Return the indices of the rows that a command repeats; it must repeat nothing else."""
    _, settings = compose_compare(words)
    base = [word for word in words if not word.lstrip("+").startswith(("compare.", "run_dir="))]
    if not any(word.startswith("experiment=") for word in base):
        base = ["experiment=compare", *base]
    by_job: dict[Job, list[int]] = {}
    for index, row in enumerate(measured):
        by_job.setdefault(job_of(row), []).append(index)
    found: list[int] = []

    def execute(jobs: Iterable[Job]) -> list[dict[str, Any]]:
        results = []
        for job in jobs:
            items = overrides(job, base, settings)
            same = [index for index in by_job.get(job, ()) if are_equal(measured[index]["overrides"], items)]
            assert same, f"no row for {job} with {' '.join(items)}"
            found.extend(same)
            results.append({**measured[same[0]], "contender": job.contender})
        return results

    execute(final_jobs(settings, tune(settings, execute)))
    return found


def test_the_commands_of_the_comparisons_repeat_all_rows() -> None:
    files = {name: rows(name) for name in ("pooled", "factors", "results")}
    covered: dict[str, set[int]] = {name: set() for name in files}
    counts = []
    for name, words in comparisons():
        indices = repeated(words, files[name])
        covered[name].update(indices)
        counts.append(len(indices))

    left = {(row["phase"], row["contender"]) for name in files for index, row in enumerate(files[name])
            if index not in covered[name] and row["phase"] != "longer"}  # fmt: skip
    # Tried by hand at two rates, as the page says.
    assert left == {("tuning", "fedsvd_pivot_shared_noise")}
    page = PAGE.read_text(encoding="utf-8")
    [stated] = re.findall(r"the (\d+) runs took two hours", page)
    assert int(stated) in counts


def test_the_commands_of_the_heads_repeat_all_rows() -> None:
    planned = []
    for words in commands(PAGE):
        if words[:3] == ["fedsvd", "train", "-m"]:
            pairs = [word.split("=", 1) for word in words[3:]]
            choices = [[f"{key}={value}" for value in values.split(",")] for key, values in pairs]
            planned += [frozenset(item.lower() for item in run) for run in itertools.product(*choices)]

    measured = [frozenset(item.lower() for item in row["overrides"]) for row in rows("best")]
    assert sorted(map(sorted, planned)) == sorted(map(sorted, measured))


def measured_cell(experiment: str, epsilon: str, *, domains: bool, shared_noise: bool = False) -> str:
    """Return mean ± standard error in percent of the runs of a private head."""
    wanted = {f"experiment={experiment}", f"privacy.target_epsilon={epsilon}"}
    accuracies = [
        100 * row["accuracy"]
        for row in rows("best")
        if wanted <= {*row["overrides"]}
        and domains == ({*row["overrides"]} >= DOMAINS)
        and shared_noise == ("privacy.noise_share=True" in row["overrides"])
    ]
    assert len(accuracies) == 5
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5
    return f"{statistics.mean(accuracies):.1f} ± {error:.1f}"


def test_the_table_of_the_heads_is_that_of_the_rows() -> None:
    table = re.findall(
        r"^\| `experiment=(\w+)`(, shared noise)? \| ([\d.]+) \| (.*?) \| (.*?) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(table) == 9
    for experiment, noise, epsilon, *cells in table:
        expected = [
            measured_cell(experiment, epsilon, domains=domains, shared_noise=bool(noise)) for domains in (False, True)
        ]
        assert cells == expected, (experiment, epsilon)


@pytest.mark.parametrize(
    ("label", "experiment"), [("", "best"), (", shared noise", "shared_noise"), (" of MPNet", "best_large")]
)
def test_the_table_of_the_heads_in_the_readme_is_that_of_the_rows(label: str, experiment: str) -> None:
    text = README.read_text(encoding="utf-8")
    [line] = re.findall(rf"^\| head only, pooled features{label} \| (.*) \|$", text, re.MULTILINE)
    cells = [(domains, epsilon) for domains in (False, True) for epsilon in ("3", "1")]
    assert line.split(" | ") == [measured_cell(experiment, epsilon, domains=domains) for domains, epsilon in cells]
