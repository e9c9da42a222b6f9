"""The paper's experiments: their exact settings, and small runs of the same code path."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import fedsvd
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.runs.folder import read_rows

# From the field notes and the authors' scripts (github.com/seanie12/fed-svd, scripts/run_dp.sh and run_non_dp.sh):
# batches of 64 with 2 accumulation steps, 10 local steps, half of 6 clients a round.
TASKS = {
    "sst2": ("sst2", "validation", "sentence", None),
    "mnli": ("mnli", "validation_matched", "premise", "hypothesis"),
    "qqp": ("qqp", "validation", "question1", "question2"),
    "qnli": ("qnli", "validation", "question", "sentence"),
}
ROUNDS = 100
# Uplink of a round of a small run. The head is frozen and only B is sent: 2 layers × (query, value) × 32 × 8 values.
MAX_BYTES_UP = 3 * (2 * 2 * 32 * 8 * 4 + 1024)


@pytest.mark.parametrize("private", [True, False], ids=["dp", "nondp"])
@pytest.mark.parametrize("task", TASKS)
def test_settings_are_those_of_the_paper(task: str, private: bool) -> None:
    config = compose([f"experiment=paper/{task}_{'dp' if private else 'nondp'}"])
    model, train, data, federation = config.model, config.train, config.data, config.federation

    assert (data.path, data.subset, data.test_split, data.text_column, data.text_pair_column) == (
        "nyu-mll/glue",
        *TASKS[task],
    )
    assert (model.source, model.rank, model.lora_alpha, model.lora_dropout) == ("FacebookAI/roberta-large", 8, 8, 0.05)
    assert (model.target_modules, model.lora_layers, model.max_length) == (("query", "value"), "all", 128)
    assert (train.optimizer, train.learning_rate, train.lr_scheduler_type) == ("sgd", 0.5, "constant")
    assert (train.momentum, train.weight_decay, train.head) == (0, 0, "frozen")
    assert (train.batch_size, train.local_steps, train.num_rounds) == (128, 10, ROUNDS)
    assert (federation.num_clients, federation.clients_per_round) == (6, 3)
    assert (config.partition.name, config.partition.dirichlet_alpha, config.seed) == ("dirichlet", 0.5, 42)
    assert (config.method["name"], config.method["refactorize_every"]) == ("fedsvd", 1)
    if private:
        privacy = config.privacy
        assert (privacy.name, privacy.target_epsilon, privacy.target_delta) == ("dp_sgd", 6, 1e-5)
        assert (privacy.max_grad_norm, privacy.accountant, privacy.noise_multiplier) == (2, "prv", None)
    else:
        assert (config.privacy.name, train.clip_grad_norm) == ("none", 1.0)


@pytest.mark.parametrize("experiment", ["paper/local", "paper/local_twin"])
def test_local_experiment_has_the_protocol_of_the_paper(experiment: str) -> None:
    local, paper = compose([f"experiment={experiment}"]), compose(["experiment=paper/sst2_dp"])

    assert local.model.source == ("embedded:mpnet" if experiment == "paper/local" else "embedded:tiny-roberta")
    assert (local.federation, local.partition, local.method) == (paper.federation, paper.partition, paper.method)
    assert (local.privacy, local.seed) == (paper.privacy, paper.seed)
    rounds = paper.train.num_rounds if experiment == "paper/local" else 2
    expected = replace(paper.train, batch_size=64, num_rounds=rounds, eval_every=local.train.eval_every)
    assert local.train == expected


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["paper/twin_dp", "paper/local_twin"])
def test_small_private_run(experiment: str, tmp_path: Path) -> None:
    fedsvd.train(f"experiment={experiment}", "train.local_steps=3", "plots=false", run_dir=tmp_path)

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["clients_used"] for row in rows] == [0, 3, 3]
    assert all(
        client["epsilon"] <= 6 for client in json.loads((tmp_path / "privacy.json").read_text())["clients"].values()
    )
    assert rows[1]["bytes_up"] < MAX_BYTES_UP


@pytest.mark.slow
def test_small_run_without_privacy(tmp_path: Path) -> None:
    fedsvd.train("experiment=paper/twin_nondp", "train.local_steps=3", run_dir=tmp_path)

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["clients_used"], row["epsilon"]) for row in rows] == [(0, None), (3, None), (3, None)]
    assert rows[1]["bytes_up"] < MAX_BYTES_UP


@pytest.mark.slow
def test_text_pairs_in_the_format_of_glue(tmp_path: Path) -> None:
    """Read a folder with the files of the hub, which `datasets.load_dataset` reads in the same way."""
    for split, size in (("train", 240), ("validation_matched", 30)):
        rows = [
            {"premise": f"It rains in town {i}.", "hypothesis": f"Town {i} is dry.", "label": i % 3, "idx": i}
            for i in range(size)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: mnli\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        "  - split: validation_matched\n    path: validation_matched.jsonl\n---\n"
    )
    overrides = [
        f"data.path={tmp_path}",
        "model.source=embedded:tiny-roberta",
        "train.num_rounds=1",
        "train.local_steps=1",
    ]
    assert main(["train", "experiment=paper/mnli_nondp", f"hydra.run.dir={tmp_path / 'run'}", *overrides]) == 0

    [_, last] = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert (last["clients_used"], json.loads((tmp_path / "run" / "classes.json").read_text())) == (3, ["0", "1", "2"])
