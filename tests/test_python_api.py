"""Runs from Python, and one of them again with the strategy for other people's Flower apps."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import run_example
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fedsvd
import server.strategy
from fedsvd.errors import ConfigError, DataError, RunError
from fedsvd.flower import FedSVD
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods.aggregate import Reply


@dataclass
class Recorded:
    """The initial adapter of a run, and the replies that each of its rounds has averaged."""

    initial: Adapter | None = None
    rounds: list[dict[int, Reply]] = field(default_factory=list)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Run the example of `fedsvd.train` in a directory of its own, and record what its server receives."""
    result, aggregate = Recorded(), server.strategy.aggregate_replies

    def record(replies: Iterator[Reply], adapter: Adapter, *others: Any) -> Any:
        received = list(replies)
        result.initial = result.initial or adapter
        result.rounds.append({reply.partition_id: reply for reply in received})
        return aggregate(received, adapter, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        patch.setattr(server.strategy, "aggregate_replies", record)
        run_example("train")
        patch.setattr(server.strategy, "aggregate_replies", aggregate)
        yield result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["load_run", "Run"])
def test_the_example_of_a_finished_run_runs(name: str, recorded: Recorded) -> None:
    run_example(name)


@pytest.mark.slow
def test_run_without_a_final_adapter_raises_run_error(recorded: Recorded, tmp_path: Path) -> None:
    shutil.copytree("runs/first", tmp_path / "cut", ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(RunError, match="has not finished"):
        fedsvd.load_run(tmp_path / "cut")


@pytest.mark.slow
def test_the_strategy_for_other_apps_gives_the_adapter_of_the_run(recorded: Recorded) -> None:
    app, initial = ClientApp(), recorded.initial
    assert initial is not None
    assert [len(replies) for replies in recorded.rounds] == [2, 2]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        reply = recorded.rounds[server_round - 1][int(context.node_config["partition-id"])]
        arrays = {f"base_model.model.{name}.lora_B.weight": B for name, B in reply.parts["B"].items()}
        metrics = MetricRecord({"num-examples": reply.num_examples})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    arrays = {f"base_model.model.{name}.lora_A.weight": A for name, A in initial.A.items()}
    arrays |= {f"base_model.model.{name}.lora_B.weight": B for name, B in initial.B.items()}
    result = FedSVD(fraction_evaluate=0.0).start(InProcessGrid(app, 2, {}), ArrayRecord(arrays), num_rounds=2)

    run = fedsvd.load_run("runs/first")
    factors = {key: tensor for key, tensor in run.adapter.items() if ".lora_" in key}
    new = dict(result.arrays.to_torch_state_dict())
    assert new.keys() == factors.keys()
    for key, tensor in factors.items():
        assert not torch.equal(new[key], arrays[key])
        # Single factors depend on the rounding where singular values are close to each other.
        if ".lora_B." in key:
            A = key.replace(".lora_B.", ".lora_A.")
            product = tensor @ factors[A]
            torch.testing.assert_close(new[key] @ new[A], product, rtol=0, atol=1e-6 * float(product.abs().max()))


@pytest.mark.slow
def test_a_run_is_resumed_without_output(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run = fedsvd.train("resume=runs/first", "train.num_rounds=3", "privacy.max_epsilon=12")

    assert [row["server_round"] for row in run.metrics] == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""
    assert "round" in (run.folder / "output.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_metrics_have_a_row_for_each_round_and_none_where_it_was_not_evaluated(tmp_path: Path) -> None:
    run = fedsvd.train(
        "experiment=smoke", "privacy=none", "plots=false", "train.eval_every=2", run_dir=tmp_path / "run"
    )

    assert [row["server_round"] for row in run.metrics] == [0, 1, 2]
    for key in ("accuracy", "loss"):
        assert [row[key] is None for row in run.metrics] == [False, True, False]


@pytest.mark.slow
def test_a_run_without_a_single_model_is_loaded_for_its_metrics(tmp_path: Path) -> None:
    settings = ["experiment=smoke", "privacy=none", "plots=false", "train.num_rounds=1", "method=fedsa_lora"]
    trained = fedsvd.train(*settings, run_dir=tmp_path / "run")

    run = fedsvd.load_run(tmp_path / "run")
    assert run.metrics == trained.metrics
    with pytest.raises(RunError, match="no single model: with method=fedsa_lora each client keeps its own B"):
        _ = run.adapter


def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overrides = '-m' is invalid: expected KEY=VALUE"):
        fedsvd.train("-m", "seed=0,1", run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.lerning_rate.*did you mean"):
        fedsvd.train("train.lerning_rate=1", run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is .* a run directory"):
        fedsvd.load_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.csv"):
        fedsvd.train("experiment=smoke", "data=csv", f"data.path={tmp_path}/missing.csv", run_dir=tmp_path / "run")

    assert "missing.csv" in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
