"""The robustness report: its tables are current, and a few of its inputs of each kind, without a fuzzer."""

import random
from collections.abc import Callable

import pytest
import robustness_inputs
import robustness_replies
import robustness_table
from robustness_fuzz import Check, Recorder
from robustness_mutants import sample


def test_tables_are_up_to_date() -> None:
    text = robustness_table.PAGE.read_text(encoding="utf-8")
    figures = robustness_table.read()
    assert text == robustness_table.page(text, figures), "run scripts/robustness table"
    checks = {**figures["replies"]["checks"], **figures["inputs"]["checks"], **figures["kills"]["killed"]}
    assert [name for name, check in checks.items() if check["faults"]] == []
    assert checks.keys() == robustness_table.NAMES.keys()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("prepare", "count"),
    [
        (robustness_replies.changed_contents, 100),
        (robustness_replies.changed_bytes, 100),
        (robustness_inputs.own_data_files, 50),
        (robustness_inputs.overrides, 5),
        (robustness_inputs.node_configurations, 100),
        (robustness_inputs.node_configuration_texts, 50),
        (robustness_inputs.damaged_ledgers, 50),
    ],
)
def test_random_inputs_are_used_or_refused(prepare: Callable[[], Check], count: int) -> None:
    recorder, rng = Recorder(prepare()), random.Random(5)
    for _ in range(count):
        recorder(rng.randbytes(rng.randrange(120)))
    assert recorder.faults == {}
    assert len(recorder.outcomes) > 1 or prepare is robustness_inputs.overrides


def test_faults_are_recorded_once_each_with_an_input() -> None:
    recorder = Recorder(lambda source: str(1 // source.integer(0, 1)))
    for data in (b"\1", b"\0", b"\2"):
        recorder(data)
    assert recorder.figures()["outcomes"] == {"1": 1, "fault": 2}
    ((fault, data),) = recorder.faults.items()
    assert (data, "ZeroDivisionError" in fault) == ("00", True)


def test_larger_samples_of_mutants_contain_smaller_ones() -> None:
    names = [f"mutant {number}" for number in range(50)]
    assert set(sample(names, 10)) < set(sample(reversed(names), 20)) < set(sample(names, 99)) == set(names)
